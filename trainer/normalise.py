"""Actions and states to [-1, 1]: quantile bounds, as OpenVLA has it.

The 1st and 99th percentile of each number over all frames of the training episodes map to -1 and 1; what lies
outside is clipped. The statistics stored in a dataset are of no use for this: q01 and q99 there are averages over
episodes. They are computed from the data, and saved with the run, because a policy is useless without them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.datasets.statistics import Statistics


@dataclass(frozen=True)
class Bounds:
    """The 1st and 99th percentile of each column, in the dataset's units."""

    q01: NDArray[np.float32]  # [n]
    q99: NDArray[np.float32]  # [n]

    def normalise(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[..., n] -> [..., n] in [-1, 1]. A column that never changes becomes 0."""
        span = self.q99 - self.q01
        scaled = 2 * (values - self.q01) / np.where(span > 0, span, 1) - 1
        return np.where(span > 0, np.clip(scaled, -1, 1), 0).astype(np.float32)

    def restore(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse, inside the bounds: [-1, 1] -> the dataset's units."""
        return ((values + 1) / 2 * (self.q99 - self.q01) + self.q01).astype(np.float32)

    @classmethod
    def of(cls, statistics: Statistics) -> "Bounds":
        return cls(statistics.q01.astype(np.float32), statistics.q99.astype(np.float32))

    def to_json(self) -> dict[str, Any]:
        return {"q01": self.q01.tolist(), "q99": self.q99.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Bounds":
        return cls(np.asarray(value["q01"], np.float32), np.asarray(value["q99"], np.float32))
