"""Where the features that the student is aligned to come from: a cache, or the teacher in the loop."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalog.cache.cache import Cache, open_cache
from catalog.cache.recipe import parse_grid
from catalog.datasets.dataset import Dataset
from catalog.errors import UserError
from trainer.align import Grid, pool
from trainer.config import AlignmentConfig


class CachedFeatures:
    """The features of the training frames in a cache. Holds row numbers and file descriptors only.

    Raises UserError if the cache is not sealed, belongs to other pixels than the dataset's, or lacks a frame, a view
    or the tap; all before the first step.
    """

    def __init__(
        self,
        path: str | Path,
        dataset: Dataset,
        views: Sequence[str],
        episodes: NDArray[np.int64],
        frames: NDArray[np.int64],
        layer: int,
    ):
        self.cache: Cache = open_cache(path, dataset)
        recipe = self.cache.recipe
        missing = [view for view in views if view not in recipe.views]
        if missing:
            raise UserError(
                f"{path}: no features of view {', '.join(missing)}; it has {', '.join(recipe.views)}: "
                "extract again with --views, or name only these in data.views"
            )
        self.tap: str = recipe.tap(f"tokens/{layer}")
        self.cache.check(dataset, [int(episode) for episode in np.unique(episodes)])
        self.rows = self.cache.rows_of(episodes, frames)  # [n] by the training frames' places
        self.columns = [recipe.views.index(view) for view in views]
        self.channels, self.native_grid, self.grid = self.cache.channels, recipe.native_grid, recipe.grid
        self.framings = [recipe.framing[view] for view in views]
        self.trained: bool = recipe.teacher["trained"]
        self.identity = {"cache_id": self.cache.header.cache_id, "feature_id": self.cache.header.feature_id}

    def digests(self, episodes: Sequence[int]) -> list[str]:
        """The digests under which the episodes' features were found."""
        return [self.cache.digest(episode) for episode in episodes]

    def read(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features float32 [n, V, tokens, C] of some training frames, and which views [n, V] there are."""
        rows = self.rows[places]
        features = self.cache.read(rows, tap=self.tap)
        present = self.cache.present(rows)
        if self.columns != list(range(features.shape[1])):
            features, present = features[:, self.columns], present[:, self.columns]
        return torch.from_numpy(features), torch.from_numpy(present)


class Teacher:
    """The frozen teacher in the loop. The one place where the trainer imports from the pipeline."""

    def __init__(self, config: AlignmentConfig, dataset: Dataset, views: Sequence[str], device: torch.device):
        from pipeline.teachers import load_teacher
        from pipeline.teachers.framing import framing

        sizes = None if config.teacher_config is None else _read_json(config.teacher_config)
        self.teacher = load_teacher(config.teacher, weights=config.weights, config=sizes, device=device)
        self.layer = config.teacher_layer
        self.teacher.resolve_layer(self.layer)
        cameras = [dataset.cameras[view] for view in views]
        self.steps = [
            framing(config.framing, camera.height, camera.width, self.teacher.image_size, self.teacher.patch)
            for camera in cameras
        ]
        sizes_seen = {each.size for each in self.steps}
        if len(sizes_seen) != 1:
            raise UserError(
                f"the views come to different sizes under framing '{config.framing}' ({sorted(sizes_seen)}); "
                "set alignment.framing=pad"
            )
        height, width = sizes_seen.pop()
        self.channels: int = self.teacher.channels
        self.native_grid: Grid = (height // self.teacher.patch, width // self.teacher.patch)
        self.grid = parse_grid(config.grid, self.native_grid)
        self.framings = [each.describe() for each in self.steps]
        self.trained: bool = self.teacher.trained
        self.identity = {"teacher": self.teacher.name, "weights_sha256": self.teacher.weights_sha256}

    def features(self, sources: Sequence[Tensor]) -> Tensor:
        """Source images, V times uint8 [B, H, W, 3], all views in one call -> features float32 [B, V, tokens, C]."""
        images = [steps.apply(view) for steps, view in zip(self.steps, sources, strict=True)]
        out = self.teacher(torch.stack(images, dim=1), layers=[self.layer], outputs=("tokens",))
        tokens = out.tokens[self.layer].float()
        return pool(tokens.unflatten(2, self.native_grid), self.grid).flatten(2, 3)


def _read_json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"alignment.teacher_config {path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"alignment.teacher_config {path}: expected a JSON object of sizes")
    return value
