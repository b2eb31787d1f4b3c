"""Statistics in the form that LeRobot keeps them in: of pictures by channel in 0..1, of numbers by column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Summary = dict[str, Any]  # name of a statistic to nested lists


def picture_statistics(images: NDArray[np.uint8]) -> Summary:
    """Of one episode's images [n, H, W, 3], exact, each statistic [3][1][1]; count is in frames."""
    counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
    return {**_of_counts(counts), "count": [len(images)]}


def _of_counts(counts: NDArray[np.int64]) -> Summary:
    """From how often each of 256 values occurs in each channel [3, 256]."""
    values = np.arange(256) / 255
    total = counts.sum(1, keepdims=True)
    mean = counts @ values / total[:, 0]
    found = {
        "min": [values[np.flatnonzero(row)[0]] for row in counts],
        "max": [values[np.flatnonzero(row)[-1]] for row in counts],
        "mean": mean,
        "std": np.sqrt(counts @ values**2 / total[:, 0] - mean**2),
    }
    below = np.cumsum(counts, 1) / total
    for name, share in QUANTILES.items():
        found[name] = [values[np.searchsorted(row, share)] for row in below]
    return {name: np.reshape(value, (3, 1, 1)).tolist() for name, value in found.items()}


def number_statistics(values: NDArray[Any]) -> Summary:
    """Of a column [n, size], each statistic [size]."""
    values = np.asarray(values, np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


def together(summaries: Sequence[Summary]) -> Summary:
    """Of all frames, from those of episodes: exact but for quantiles, which are averaged as LeRobot does."""
    weights = np.array([each["count"][0] for each in summaries], np.float64)
    weights /= weights.sum()

    def average(name: str) -> NDArray[np.float64]:
        return np.tensordot(weights, np.array([each[name] for each in summaries]), 1)

    mean = average("mean")
    squares = np.array([np.square(each["std"]) + np.square(each["mean"]) for each in summaries])
    found = {
        "min": np.min([each["min"] for each in summaries], 0),
        "max": np.max([each["max"] for each in summaries], 0),
        "mean": mean,
        "std": np.sqrt(np.maximum(np.tensordot(weights, squares, 1) - mean**2, 0)),
        **{name: average(name) for name in QUANTILES},
    }
    return {name: value.tolist() for name, value in found.items()} | {
        "count": [sum(each["count"][0] for each in summaries)]
    }
