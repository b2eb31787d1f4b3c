"""Sizes of a VGGT, checked once where they enter."""

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from catalog.errors import UserError, nearest

# Where the published network reads its four dense layers (4, 11, 17, 23 of 24); other depths keep the proportions.
OFFICIAL_DPT_LAYERS = (4, 11, 17, 23)


@dataclass(frozen=True)
class VGGTConfig:
    """The defaults are the published VGGT-1B (arXiv 2503.11651)."""

    embed_dim: int = 1024  # width of both trunks; the tokens that come out are twice as wide
    num_heads: int = 16  # of every attention, the camera head's too
    depth: int = 24  # rounds of one frame block and one global block
    patch_embed_depth: int = 24  # blocks of the DINOv2 patch embedding
    image_size: int = 518  # pixels; sets the grid of the stored position embedding
    patch: int = 14  # pixels
    dpt_layers: tuple[int, ...] = OFFICIAL_DPT_LAYERS  # the rounds that the dense heads read, finest map first
    dpt_features: int = 256  # channels in which the dense heads fuse
    dpt_channels: tuple[int, ...] = (256, 512, 1024, 1024)  # of the four maps before fusion
    camera_depth: int = 4  # blocks of the camera head

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; VGGTConfig.parse reads it back."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def parse(cls, base: "VGGTConfig", changes: Mapping[str, Any], where: str) -> "VGGTConfig":
        """`base` with `changes`; without `dpt_layers` another depth reads its layers at the published proportions.

        Raises UserError on an unknown key, a value of another type, or sizes that do not fit together.
        """
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in changes.items():
            if key not in known:
                raise UserError(f"{where}: unknown config key '{key}', expected one of: {nearest(key, known)}")
            try:
                many = isinstance(known[key], tuple)
                values[key] = tuple(_integer(item) for item in value) if many else _integer(value)
            except TypeError:
                wanted = "a list of whole numbers" if many else "a whole number"
                raise UserError(f"{where}: config key '{key}' is {value!r}, expected {wanted}") from None
        if "depth" in values and "dpt_layers" not in values:
            last = values["depth"] - 1
            values["dpt_layers"] = tuple(round(k / OFFICIAL_DPT_LAYERS[-1] * last) for k in OFFICIAL_DPT_LAYERS)
        config = dataclasses.replace(base, **values)
        if problem := config._problem():
            raise UserError(f"{where}: config {problem}")
        return config

    def _problem(self) -> str | None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "dpt_layers" and min(value if isinstance(value, tuple) else (value,), default=0) < 1:
                return f"{field.name} is {value}, expected at least 1"
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            return (
                f"embed_dim is {self.embed_dim} and num_heads {self.num_heads}, expected heads whose width is a "
                "multiple of 4 (the rotary embedding turns pairs of channels by row and by column)"
            )
        if self.image_size % self.patch:
            return f"image_size is {self.image_size}, expected a multiple of the patch, {self.patch} pixels"
        if len(self.dpt_layers) != 4 or not all(0 <= k < self.depth for k in self.dpt_layers):
            return f"dpt_layers is {list(self.dpt_layers)}, expected four of 0..{self.depth - 1}"
        if len(self.dpt_channels) != 4 or any(c % 4 for c in self.dpt_channels):
            return f"dpt_channels is {list(self.dpt_channels)}, expected four multiples of 4 (the position grid)"
        if self.dpt_features % 8:
            return f"dpt_features is {self.dpt_features}, expected a multiple of 8 (the position grid)"
        return None


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)
