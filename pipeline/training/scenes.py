"""Rendered scenes on disk, as `trainer scenes` writes them: one .npz a scene, with true depth and cameras.

images      uint8   [V, H, W, 3]
depth       float16 [V, H, W]      metres along z, inf where there is nothing
intrinsics  float   [V, 3, 3]      pixels; the first pixel has its centre at (0.5, 0.5)
extrinsics  float   [V, 4, 4]      world to camera, OpenCV axes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catalog.errors import UserError
from pipeline.training.truth import Truth, truth

KEYS = ("images", "depth", "intrinsics", "extrinsics")
FAR = 10.0  # metres; what lies beyond is the floor's horizon and tells nothing about a robot's scene


@dataclass(frozen=True)
class Batch:
    """B scenes of V views each."""

    images: Tensor  # [B, V, 3, H, W] float 0..1
    true: Truth
    metres: Tensor  # [B, V, H, W] depth as it was rendered, inf where there is nothing


class Scenes:
    """The scenes in a folder, held in memory as they are on disk (uint8 and float16)."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        files = sorted(folder.rglob("*.npz"))[:limit]
        if not files:
            raise UserError(f"{folder}: no scenes (*.npz); make some with `trainer scenes --out {folder}`")
        self.scenes: list[dict[str, np.ndarray]] = []
        for file in files:
            try:
                with np.load(file, allow_pickle=False) as content:
                    scene = {key: content[key] for key in KEYS}
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"{file}: not a scene ({error}); delete it and run `trainer scenes` again") from None
            scene["depth"] = np.where(scene["depth"] > FAR, np.float16(np.inf), scene["depth"])
            self.scenes.append(scene)
        self.views = np.array([len(scene["images"]) for scene in self.scenes])

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(
        self, numbers: Sequence[int], views: int, device: str = "cpu", halve: bool = False, seed: int | None = None
    ) -> Batch:
        """Some scenes with `views` of their views, which must not be more than they have.

        With a seed the views are drawn and ordered by it, and the colours shaken; without, the first ones as they are.
        `halve` gives a quarter of the pixels, to train cheaply at first.
        """
        generator = np.random.default_rng(seed)
        parts: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
        for number in numbers:
            scene = self.scenes[number]
            order = np.arange(views) if seed is None else generator.permutation(len(scene["images"]))[:views]
            for key in KEYS:
                parts[key].append(scene[key][order])
        stacked = {key: torch.from_numpy(np.stack(arrays)).to(device) for key, arrays in parts.items()}
        images = stacked["images"].permute(0, 1, 4, 2, 3).float() / 255
        if seed is not None:
            shape = (len(numbers), views, 3, 1, 1)
            gain = torch.from_numpy(generator.uniform(0.7, 1.3, shape)).float().to(device)
            gamma = torch.from_numpy(generator.uniform(0.8, 1.25, (*shape[:2], 1, 1, 1))).float().to(device)
            images = (images.clamp(1e-3, 1) ** gamma * gain).clamp(0, 1)
        depth, intrinsics = stacked["depth"].float(), stacked["intrinsics"].double()
        if halve:
            images = F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, images.shape[:2])
            # One pixel's depth, not a mean: an average across an edge is the depth of nothing.
            depth = depth[..., ::2, ::2]
            intrinsics = intrinsics / torch.tensor([[2.0], [2.0], [1.0]], device=device, dtype=torch.float64)
            intrinsics[..., :2, 2] += 0.25  # that pixel's centre lies a quarter pixel above and left of the new one's
        return Batch(images, truth(depth, intrinsics, stacked["extrinsics"].double()), depth)
