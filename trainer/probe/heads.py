"""The probes: what turns a frozen network's image tokens into a map of log depth.

Both give a map four times as fine as the token grid, which is then resized to the pixels of the true depth.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
Kind = Literal["linear", "dpt"]
KINDS: tuple[Kind, ...] = ("linear", "dpt")
FINER = 4  # values a side that a token gives
FEATURES = 32  # channels of the DPT-like probe
TAPS = 4  # layers that it reads


class Linear(nn.Module):
    """A token -> its own FINER x FINER depths: nothing but what is linearly there, and no look at the neighbours."""

    def __init__(self, width: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.out = nn.Linear(width, FINER * FINER)

    def forward(self, layers_BNC: Sequence[Tensor]) -> Tensor:
        """One layer's tokens [B, n, width] -> log depth [B, FINER rows, FINER columns]."""
        (tokens_BNC,) = layers_BNC
        blocks = self.out(tokens_BNC).transpose(1, 2).unflatten(2, self.grid)
        return F.pixel_shuffle(blocks, FINER).squeeze(1)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x.relu()).relu())
        return out


class DPT(nn.Module):
    """A small DPT (arXiv 2103.13413): four layers, the first read as the finest map, fused from the coarsest on.

    Differs from the published head by size, and by resizing maps instead of learning transposed convolutions.
    """

    def __init__(self, width: int, grid: Grid):
        super().__init__()
        self.grid = grid
        self.projects = nn.ModuleList(nn.Conv2d(width, FEATURES, 1) for _ in range(TAPS))
        self.joins = nn.ModuleList(Residual(FEATURES) for _ in range(TAPS))
        self.fuses = nn.ModuleList(Residual(FEATURES) for _ in range(TAPS))
        self.out = nn.Conv2d(FEATURES, 1, 3, padding=1)

    def forward(self, layers_BNC: Sequence[Tensor]) -> Tensor:
        """Four layers' tokens, each [B, n, width] -> log depth [B, FINER rows, FINER columns]."""
        rows, columns = self.grid
        sizes = [(max(1, int(rows * by)), max(1, int(columns * by))) for by in (FINER, FINER / 2, 1, 0.5)]
        x: Tensor | None = None
        for number in reversed(range(TAPS)):
            tokens = layers_BNC[number].transpose(1, 2).unflatten(2, self.grid)
            finer = self.joins[number](_resize(self.projects[number](tokens), sizes[number]))
            x = self.fuses[number](finer if x is None else finer + _resize(x, sizes[number]))
        assert x is not None
        out: Tensor = self.out(x)
        return out.squeeze(1)


def make(kind: Kind, width: int, grid: Grid) -> Linear | DPT:
    return Linear(width, grid) if kind == "linear" else DPT(width, grid)


def to_pixels(log_depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] -> [B, *size]. Both cover the same image, so corners of pixels, not centres, stay in place."""
    return _resize(log_depth.unsqueeze(1), size).squeeze(1)


def spread(layers: Sequence[int]) -> list[int]:
    """The four of some layers that the DPT-like probe reads, evenly apart, first and last included; fewer repeat."""
    places = torch.linspace(0, len(layers) - 1, TAPS).round().int().tolist()
    return [layers[place] for place in places]


def _resize(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(map_BCHW.shape[-2:]) == tuple(size):
        return map_BCHW
    return F.interpolate(map_BCHW, size=size, mode="bilinear", align_corners=False)
