"""AbsRel, RMSE and delta < 1.25 of depth maps, with intervals from a bootstrap over episodes.

Frames of an episode are nearly copies of each other, so the episode is what is drawn again, with replacement; within
an episode nothing is. All arms are drawn the same episodes, so differences between them are paired. Every pixel counts
the same: sums are kept by episode, and a metric is a function of their total.

Metrics as in Eigen et al. (arXiv 1406.2283): AbsRel = mean |p - t| / t, RMSE = sqrt(mean (p - t)^2) in metres,
delta = the share of pixels with max(p / t, t / p) < 1.25.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

LIMIT = 10.0  # metres: what is farther, or nothing, does not count
RATIO = 1.25
RESAMPLES = 2000
METRICS = ("abs_rel", "rmse", "delta")

Sums = NDArray[np.float64]  # [..., 4]: pixels, sum of |p - t| / t, sum of (p - t)^2, pixels with delta < 1.25


def counts(depth: Tensor) -> Tensor:
    """Which pixels count, bool, in the shape of true depth in metres (NaN and inf do not)."""
    return (depth > 0) & (depth <= LIMIT)


def sums(predicted: Tensor, true: Tensor) -> Sums:
    """Sums [M, 4] of M maps of depth [M, H, W] in metres."""
    valid = counts(true)
    true = true.double().where(valid, 1.0)  # ones in the place of what does not count: no NaN, no division by zero
    predicted = predicted.double().where(valid, 1.0)
    error = (predicted - true).abs()
    ratio = (predicted / true).maximum(true / predicted)
    parts = (valid, error / true, error**2, (ratio < RATIO) & valid)
    return np.stack([part.double().flatten(1).sum(1).cpu().numpy() for part in parts], axis=-1)


def metrics(total: Sums) -> dict[str, NDArray[np.float64]]:
    """The metrics of sums [..., 4], each [...]; NaN where no pixel counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pixels, relative, squared, within = np.moveaxis(total, -1, 0)
        return {"abs_rel": relative / pixels, "rmse": np.sqrt(squared / pixels), "delta": within / pixels}


@dataclass(frozen=True)
class Bootstrap:
    """Draws of E episodes, the same for everything that is measured with it."""

    weights: NDArray[np.float64]  # [RESAMPLES, E]: how often each episode was drawn

    @classmethod
    def of(cls, episodes: int, seed: int) -> "Bootstrap":
        draws = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES)
        return cls(draws.astype(np.float64))

    def summary(self, by_episode: Sums) -> dict[str, dict[str, float | None]]:
        """Value and 95 % interval of each metric, of sums [E, 4] by episode. One episode has no interval."""
        values, drawn = metrics(by_episode.sum(0)), metrics(self.weights @ by_episode)
        return {name: self._interval(values[name], drawn[name]) for name in METRICS}

    def difference(self, one: Sums, other: Sums) -> dict[str, dict[str, float | None]]:
        """`one` minus `other`, paired: both are drawn the same episodes."""
        values = [metrics(each.sum(0)) for each in (one, other)]
        drawn = [metrics(self.weights @ each) for each in (one, other)]
        return {
            name: self._interval(values[0][name] - values[1][name], drawn[0][name] - drawn[1][name]) for name in METRICS
        }

    def _interval(self, value: Any, drawn: NDArray[np.float64]) -> dict[str, float | None]:
        low = high = None
        # An episode may have no pixel that counts: draws of nothing but such say nothing.
        drawn = drawn[np.isfinite(drawn)]
        if self.weights.shape[1] > 1 and drawn.size:
            low, high = (float(each) for each in np.quantile(drawn, (0.025, 0.975)))
        return {"value": float(value) if np.isfinite(value) else None, "low": low, "high": high}


def by_episode(each: Sums, episode: NDArray[np.int64], episodes: Mapping[int, int]) -> Sums:
    """Sums of maps [M, 4] -> of episodes [E, 4]; `episode` [M] are numbers, `episodes` their places."""
    total = np.zeros((len(episodes), 4))
    np.add.at(total, [episodes[int(number)] for number in episode], each)
    return total
