"""The teacher's own tokens from a feature cache, brought to the student's token grid: the ceiling of the probe."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from catalog.cache.cache import open_cache
from trainer.align import Targets
from trainer.geometry import places
from trainer.models.paligemma import PaliGemmaPolicy
from trainer.probe.frames import Frames
from trainer.targets import CachedFeatures

BATCH = 32  # frames read at once


@dataclass(frozen=True)
class Features:
    """A cache's features of the probe's frames, not read yet."""

    name: str
    cached: dict[int, CachedFeatures]  # by the teacher's layer
    resize: Targets  # without the position part: that is the loss's, not the teacher's
    seen: Tensor | None  # [V, n] bool: the teacher saw what the student's token shows; None: all of them

    @property
    def channels(self) -> int:
        return next(iter(self.cached.values())).channels

    def tokens(self, layer: int, frames: Frames, grid: tuple[int, int]) -> Tensor:
        """[M, n, C] float16 of one of the teacher's layers, on the student's grid."""
        cached = self.cached[layer]
        views, count = len(frames.cameras), len(frames.frame)
        out = torch.empty(count, views, grid[0] * grid[1], cached.channels, dtype=torch.float16)
        for start in range(0, count, BATCH):
            part = torch.arange(start, min(start + BATCH, count)).numpy()
            features, _ = cached.read(part)
            out[start : start + len(part)] = self.resize(features).half()
        return out.flatten(0, 1)


def open_features(path: Path, frames: Frames, policy: PaliGemmaPolicy) -> Features:
    """The features in a cache of the frames of `frames`, for a student like `policy`.

    Raises UserError for a cache that is not one, not sealed, of another dataset, or without these views or frames.
    """
    recipe = open_cache(path).recipe
    cached = {
        layer: CachedFeatures(path, frames.dataset, frames.cameras, frames.episode, frames.frame, layer)
        for layer in (recipe.layers if "tokens" in recipe.outputs else (-1,))  # -1: the error that says what is missing
    }
    source = next(iter(cached.values()))
    found = places(
        source.framings,
        policy.source_to_student,
        policy.image_size,
        policy.grid,
        source.native_grid,
        source.grid,
    )
    where, seen = (None, None) if found is None else map(torch.from_numpy, found)
    resize = Targets(source.channels, source.native_grid, source.grid, policy.grid, positions=False, places=where)
    name = "teacher" if source.trained else "teacher (untrained)"
    return Features(name, cached, resize, seen)
