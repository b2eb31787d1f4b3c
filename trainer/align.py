"""The Spatial Forcing alignment loss (arXiv 2510.12276), usable in anyone's training loop.

A student's image tokens, taken from one of its layers, go through a small projector and are pulled by their cosine
towards the geometry features of a frozen 3D foundation model. Example, for any model that gives its hidden states:

    cache = open_cache("metaworld.zarr", open_dataset("metaworld"))
    recipe = cache.recipe
    targets = Targets(cache.channels, recipe.native_grid, recipe.grid, student_grid=(16, 16))
    forcing = SpatialForcing(width=2048, channels=cache.channels)     # give its parameters to the optimiser

    rows = cache.rows_of(episode_index, frame_index)
    features = torch.from_numpy(cache.read(rows, tap="tokens/-1"))    # [B, V, N, C]
    present = torch.from_numpy(cache.present(rows))                   # [B, V]
    student = hidden_states[12][:, image_positions]                   # [B, V*n, width]
    result = forcing(student.unflatten(1, (views, -1)), targets(features), present)
    loss = action_loss + 0.5 * result.total

What is aligned: target = resize(features + 0.1 * position grid) to the student's grid, bilinear, corners aligned.
Resizing is linear, so it equals resize(features) + resize(0.1 * position grid): a cache stores the first part, the
second is added here, through the same chain of grids that the features went through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalog.positions import POSITION_SCALE, position_grid

Grid = tuple[int, int]
Norm = Literal["layer", "batch", "none"]


def pool(tokens: Tensor, to_grid: Grid) -> Tensor:
    """Resize a grid of tokens [..., rows, columns, C] to [..., *to_grid, C]: bilinear, corners aligned."""
    rows, columns, channels = tokens.shape[-3:]
    if (rows, columns) == tuple(to_grid):
        return tokens
    flat = tokens.reshape(-1, rows, columns, channels).movedim(-1, 1)
    resized = F.interpolate(flat, size=tuple(to_grid), mode="bilinear", align_corners=True)
    return resized.movedim(1, -1).reshape(*tokens.shape[:-3], *to_grid, channels)


def sample(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, V, rows, columns, C] at places [V, n, 2] (x, y; 0 is the first token's centre) -> [B, V, n, C].

    Bilinear; beyond the outermost tokens' centres, those tokens.
    """
    B, V, rows, columns, C = tokens.shape
    last = places.new_tensor([max(columns - 1, 1), max(rows - 1, 1)])
    where = (2 * places / last - 1).expand(B, *places.shape).reshape(B * V, 1, -1, 2)
    flat = tokens.reshape(B * V, rows, columns, C).movedim(-1, 1)
    read = F.grid_sample(flat, where, mode="bilinear", padding_mode="border", align_corners=True)
    return read.squeeze(2).movedim(1, -1).reshape(B, V, -1, C)


class Targets(nn.Module):
    """Features on the grid they are stored on -> what the student's tokens are compared with, in float32.

    Args:
        channels: C of the features.
        native_grid: the teacher's own (rows, columns).
        grid: the grid the features are stored on; the teacher's own unless the cache pooled them.
        student_grid: the (rows, columns) of the student's image tokens.
        positions: whether the position part is added, as the published targets have it.
        places: of the student's tokens in the stored grid, [V, n, 2] from `trainer.geometry`, where student and
            teacher frame the images differently. Without it both show the same, and the grid is pooled as published.
    """

    places: Tensor | None
    positions: Tensor | None

    def __init__(
        self,
        channels: int,
        native_grid: Grid,
        grid: Grid,
        student_grid: Grid,
        positions: bool = True,
        places: Tensor | None = None,
    ):
        super().__init__()
        self.grid, self.student_grid = grid, student_grid
        # Functions of the sizes alone, so they stand in no checkpoint.
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("positions", None, persistent=False)
        if positions:
            native = torch.from_numpy(position_grid(*native_grid, channels)) * POSITION_SCALE
            stored = pool(native, grid).reshape(1, -1, channels)
            self.positions = self(stored if places is None else stored.expand(1, len(places), -1, -1))[0]

    def forward(self, features: Tensor) -> Tensor:
        """[..., rows * columns of the stored grid, C] -> float32 [..., tokens of the student, C].

        With places, features are [B, V, rows * columns, C].
        """
        tokens = features.float().reshape(*features.shape[:-2], *self.grid, features.shape[-1])
        if self.places is None:
            tokens = pool(tokens, self.student_grid).flatten(-3, -2)
        else:
            tokens = sample(tokens, self.places)
        return tokens if self.positions is None else tokens + self.positions


@dataclass(frozen=True)
class Alignment:
    """The loss of a batch and its parts."""

    total: Tensor  # scalar: mean of `per_sample` over the samples that have valid tokens, 0 if none has
    per_sample: Tensor  # [B]: mean over the sample's valid tokens of 1 - cosine, 0 where it has none
    samples: Tensor  # [B] bool: has valid tokens


class SpatialForcing(nn.Module):
    """Projector and loss; the parameters carry the published names `vlm_norm`, `fc1`, `fc2`.

    Args:
        width: D of the student's tokens.
        channels: C of the targets (2 * the teacher's embedding width).
        norm: in front of the projector. "layer" is what both published code trees use, "batch" what the paper says.
            With "batch" a sample's loss depends on its batch mates; with the others it never does.
    """

    def __init__(self, width: int, channels: int, norm: Norm = "layer"):
        super().__init__()
        makers: dict[str, Callable[[int], nn.Module]] = {
            "layer": nn.LayerNorm,
            "batch": nn.BatchNorm1d,
            "none": nn.Identity,
        }
        if norm not in makers:
            raise ValueError(f"norm is '{norm}'; expected one of {', '.join(makers)}")
        self.vlm_norm = makers[norm](width)
        self.fc1 = nn.Linear(width, channels)
        self.fc2 = nn.Linear(channels, channels)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def project(self, student: Tensor, mask: Tensor) -> Tensor:
        """Student tokens [..., D] -> [..., C]; `mask` [...] says which tokens a batch norm counts."""
        student = student.to(self.fc1.weight.dtype)
        if isinstance(self.vlm_norm, nn.BatchNorm1d):
            normed = torch.zeros_like(student)
            if int(mask.sum()) > 1:  # a variance needs two tokens
                normed = normed.masked_scatter(mask.unsqueeze(-1), self.vlm_norm(student[mask]))
            student = normed
        else:
            student = self.vlm_norm(student)
        return self.fc2(F.gelu(self.fc1(student)))

    def forward(self, student: Tensor, targets: Tensor, mask: Tensor | None = None) -> Alignment:
        """The loss of student tokens [B, N, D] or [B, V, N, D] against targets [B, N, C] or [B, V, N, C].

        `mask` is True where a token counts; it has the tokens' shape or its leading part ([B, V] masks whole views).
        What is masked may hold anything, NaN included. The cosine is computed in float32 under any autocast.
        """
        shape = student.shape[:-1]
        mask = torch.ones(shape, dtype=torch.bool, device=student.device) if mask is None else mask.bool()
        mask = mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.ndim)).expand(shape)
        # Zeros in the place of what is masked: NaN * 0 would be NaN, in the gradient too.
        student = torch.where(mask.unsqueeze(-1), student, 0)
        targets = torch.where(mask.unsqueeze(-1), targets.detach().float(), 0)
        projected = self.project(student, mask)
        with torch.autocast(student.device.type, enabled=False):
            distance = (1 - F.cosine_similarity(projected.float(), targets, dim=-1)) * mask
            tokens = mask.flatten(1).sum(1)
            per_sample = distance.flatten(1).sum(1) / tokens.clamp(min=1)
            samples = tokens > 0
            total = per_sample.sum() / samples.sum().clamp(min=1)
        return Alignment(total, per_sample, samples)
