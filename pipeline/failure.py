"""A shard that could not be made, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    shard: int
    reason: str
