"""What every teacher offers: a frozen network from the images of one timestep to its geometry features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

OUTPUTS = ("tokens", "special", "depth", "confidence", "points", "points_confidence", "pose")


@dataclass
class TeacherOutput:
    """What one call gave, float32 on the teacher's device; what was not asked for is empty or None.

    B timesteps, V views, N patch tokens (row by row), C channels, S special tokens, H x W image pixels.
    """

    tokens: dict[int, Tensor] = field(default_factory=dict)  # [B, V, N, C] by layer, keyed as it was asked for
    special: dict[int, Tensor] = field(default_factory=dict)  # [B, V, S, C] by layer, keyed as it was asked for
    depth: Tensor | None = None  # [B, V, H, W], in the scene's own scale, always > 0
    confidence: Tensor | None = None  # [B, V, H, W], of the depth, >= 1
    points: Tensor | None = None  # [B, V, H, W, 3], in the camera frame of view 0
    points_confidence: Tensor | None = None  # [B, V, H, W], >= 1
    # [B, V, 9], camera from world (the camera of view 0): translation 3, quaternion 4 (x, y, z, w), angles of view 2
    # (up-down, left-right, radians)
    pose: Tensor | None = None


class Teacher(Protocol):
    """A frozen network. `weights_sha256`, `config` and `dtype` belong into a recipe: they decide every value."""

    name: str
    config: dict[str, Any]  # the whole resolved config, plain JSON
    patch: int  # pixels along the side of a patch
    image_size: int  # pixels along the side of the square that it was made for
    layers: int  # how many layers have tokens
    channels: int  # of a token
    special: int  # tokens of a view in front of its patch tokens
    trained: bool  # False: random weights from a seed
    licence: str
    dtype: str  # what the trunk computes in: float32, bfloat16 or float16

    @property
    def weights_sha256(self) -> str: ...

    def resolve_layer(self, layer: int) -> int: ...

    def __call__(
        self, images_BVCHW: Tensor, layers: Sequence[int] = (-1,), outputs: Sequence[str] = ("tokens",)
    ) -> TeacherOutput: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> 'bfloat16'."""
    return str(dtype).removeprefix("torch.")
