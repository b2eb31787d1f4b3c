"""A job: what a worker needs to make any shard of one cache. Small, frozen and picklable."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.cache.header import Header


@dataclass(frozen=True)
class Job:
    root: Path  # the cache
    header: Header
    dataset: Path
    teacher: str
    weights: Path | None
    teacher_config: dict[str, Any] | None
    device: str
    threads: int  # of the teacher on a CPU; the bits of its result may depend on it
    batch: int  # timesteps a forward; a shard's batches are the same in every run
