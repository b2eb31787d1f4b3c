"""Mean, deviation, range and quantiles of states and actions, computed from the data.

Never read from meta/: LeRobot's stored q01 and q99 are averages of the episodes' own quantiles. Holds all numbers
at once, 4 bytes each: 56 MB for a million frames of 14.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.datasets.dataset import Dataset
from catalog.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Of one column over `count` frames: each array is float64 [size]."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]  # of the population
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    count: int


def column_statistics(dataset: Dataset, episodes: Iterable[int] | None = None) -> dict[str, Statistics]:
    """{"state": ..., "action": ...} over all frames of all or some episodes; a column that is not there is left out.

    Raises UserError for no episodes, and as `Dataset.columns` does.
    """
    chosen = sorted(dataset.episodes if episodes is None else set(episodes))
    if not chosen:
        raise UserError(f"{dataset.path}: statistics over no episodes; expected at least one; choose some")
    columns = [dataset.columns(index) for index in chosen]
    parts = {
        "state": [column.state for column in columns if column.state is not None],
        "action": [column.action for column in columns if column.action is not None],
    }
    return {name: _statistics(np.concatenate(part)) for name, part in parts.items() if part}


def _statistics(values: NDArray[np.float32]) -> Statistics:
    low, high = np.quantile(values.astype(np.float64), [0.01, 0.99], axis=0)
    return Statistics(
        mean=values.mean(axis=0, dtype=np.float64),
        std=values.std(axis=0, dtype=np.float64),
        min=values.min(axis=0).astype(np.float64),
        max=values.max(axis=0).astype(np.float64),
        q01=low,
        q99=high,
        count=len(values),
    )
