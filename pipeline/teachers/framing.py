"""Framing: how a source image becomes the teacher's input, as named steps and as an affine of coordinates.

Coordinates are continuous pixels with (0, 0) at the outer corner of the first pixel: the pixel in row r and column c
covers [c, c + 1) x [r, r + 1) and its centre is (x, y) = (c + 0.5, r + 0.5). In these coordinates resizing is a plain
scaling (that is what align_corners=False means), cropping and padding are shifts, and token (i, j) of a patch p is
centred at ((j + 0.5) * p, (i + 0.5) * p).

Presets, for a teacher of `image_size` pixels (arXiv 2503.11651 and 2510.12276, as published):
    crop    bicubic to image_size wide, the height to the nearest multiple of the patch; centre-cropped if taller
    pad     bicubic, the long side to image_size, the other to the nearest multiple; white around it, to a square
Bicubic is torch's, without antialiasing and not clamped: beside strong edges values leave 0..1 by a little, as they
do in the published code.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from catalog.errors import UserError, nearest

Size = tuple[int, int]  # height, width
Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Resize:
    height: int
    width: int
    kernel: str = "bicubic"
    antialias: bool = False
    align_corners: bool = False

    def size(self, source: Size) -> Size:
        return self.height, self.width

    def scale_and_shift(self, source: Size) -> tuple[float, float, float, float]:
        return self.width / source[1], 0.0, self.height / source[0], 0.0

    def apply(self, images_NCHW: Tensor) -> Tensor:
        return F.interpolate(images_NCHW, size=(self.height, self.width), mode="bicubic", align_corners=False)

    def problem(self, source: Size) -> str | None:
        if (self.kernel, self.antialias, self.align_corners) != ("bicubic", False, False):
            return "expected kernel bicubic, neither antialias nor align_corners"
        return None if min(self.height, self.width) > 0 else "expected a height and width of at least 1"


@dataclass(frozen=True)
class Crop:
    top: int
    left: int
    height: int
    width: int

    def size(self, source: Size) -> Size:
        return self.height, self.width

    def scale_and_shift(self, source: Size) -> tuple[float, float, float, float]:
        return 1.0, -float(self.left), 1.0, -float(self.top)

    def apply(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def problem(self, source: Size) -> str | None:
        inside = self.top + self.height <= source[0] and self.left + self.width <= source[1]
        if inside and min(self.top, self.left) >= 0 and min(self.height, self.width) > 0:
            return None
        return f"expected a window inside the {source[0]}x{source[1]} pixels before it"


@dataclass(frozen=True)
class Pad:
    top: int
    bottom: int
    left: int
    right: int
    value: float = 1.0

    def size(self, source: Size) -> Size:
        return source[0] + self.top + self.bottom, source[1] + self.left + self.right

    def scale_and_shift(self, source: Size) -> tuple[float, float, float, float]:
        return 1.0, float(self.left), 1.0, float(self.top)

    def apply(self, images_NCHW: Tensor) -> Tensor:
        return F.pad(images_NCHW, (self.left, self.right, self.top, self.bottom), value=self.value)

    def problem(self, source: Size) -> str | None:
        return None if min(self.top, self.bottom, self.left, self.right) >= 0 else "expected no negative padding"


Step = Resize | Crop | Pad
STEPS: dict[str, type[Step]] = {"resize": Resize, "crop": Crop, "pad": Pad}


@dataclass(frozen=True)
class Framing:
    """From source images of one size to the teacher's input. `framing` makes it, `from_description` reads it back."""

    preset: str
    source: Size
    chain: tuple[Step, ...]

    @property
    def size(self) -> Size:
        """Height and width of the teacher's input, pixels."""
        return self._sizes()[-1]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps as plain JSON, each with its name under `step`."""
        names = {kind: name for name, kind in STEPS.items()}
        return [{"step": names[type(step)], **asdict(step)} for step in self.chain]

    @property
    def source_to_teacher(self) -> Affine:
        """((a, b, c), (d, e, f)): x' = a x + b y + c, y' = d x + e y + f, in the coordinates of this module."""
        a, c, e, f = 1.0, 0.0, 1.0, 0.0
        for step, size in zip(self.chain, self._sizes(), strict=False):
            scale_x, shift_x, scale_y, shift_y = step.scale_and_shift(size)
            a, c, e, f = a * scale_x, c * scale_x + shift_x, e * scale_y, f * scale_y + shift_y
        return (a, 0.0, c), (0.0, e, f)

    def describe(self) -> dict[str, Any]:
        """Everything, as plain JSON for a recipe."""
        return {
            "preset": self.preset,
            "source": list(self.source),
            "size": list(self.size),
            "steps": self.steps,
            "source_to_teacher": [list(row) for row in self.source_to_teacher],
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Framing":
        """The inverse of `describe`. The steps decide; UserError unless everything else agrees with them."""
        expected = {"preset", "source", "size", "steps", "source_to_teacher"}
        if not isinstance(description, dict) or set(description) != expected:
            raise UserError(f"framing: found {description!r:.200}, expected the keys {', '.join(sorted(expected))}")
        try:
            height, width = (int(side) for side in description["source"])
            found = cls(str(description["preset"]), (height, width), tuple(_step(s) for s in description["steps"]))
        except (TypeError, ValueError):
            raise UserError(f"framing: found {description!r:.200}, expected a size as [height, width]") from None
        for step, size in zip(found.chain, found._sizes(), strict=False):
            if problem := step.problem(size):
                raise UserError(f"framing: the step {step}: {problem}")
        for key, value in found.describe().items():
            if value != description[key]:
                raise UserError(f"framing: {key} is {description[key]!r}, but the steps give {value!r}")
        return found

    def apply(self, images: Tensor | NDArray[np.uint8]) -> Tensor:
        """uint8 [..., H, W, 3] of the source size -> float32 [..., 3, H', W'], 0..1 but for bicubic overshoot.

        On the device of `images`. Raises UserError on another type or size.
        """
        if isinstance(images, np.ndarray):
            # Decoders hand out read-only or flipped arrays; torch takes neither.
            images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if images.dtype != torch.uint8 or tuple(images.shape[-3:]) != (*self.source, 3):
            raise UserError(
                f"found images of {list(images.shape)}, {images.dtype}, expected uint8 of [..., height, width, 3] with "
                f"{self.source[0]}x{self.source[1]} pixels, for which this framing was made"
            )
        x_NCHW = images.reshape(-1, *self.source, 3).permute(0, 3, 1, 2).to(torch.float32) / 255
        for step in self.chain:
            x_NCHW = step.apply(x_NCHW)
        return x_NCHW.reshape(*images.shape[:-3], 3, *self.size)

    def mask(self, rows: int, columns: int) -> NDArray[np.bool_]:
        """[rows, columns]: which cells of a token grid over the teacher's input show the image on most of their area.

        A cell that is padding to exactly one half counts as padding.
        """
        (a, _, c), (_, e, f) = self.source_to_teacher
        height, width = self.size
        covered_R = _covered(f, e * self.source[0] + f, height, rows)
        covered_C = _covered(c, a * self.source[1] + c, width, columns)
        # The image is a rectangle, so a cell's share is a product. The margin keeps exact halves out of rounding's way.
        return np.outer(covered_R, covered_C) > 0.5 + 1e-6

    def _sizes(self) -> list[Size]:
        """The size before each step, and after the last."""
        sizes = [self.source]
        for step in self.chain:
            sizes.append(step.size(sizes[-1]))
        return sizes


def framing(name: str, source_height: int, source_width: int, image_size: int, patch: int) -> Framing:
    """The framing preset `name` for source images of one size and a teacher of image_size pixels.

    Raises UserError on an unknown preset, on an empty image, and if image_size is not a multiple of the patch.
    """
    if name not in PRESETS:
        raise UserError(f"unknown framing '{name}', expected one of: {nearest(name, PRESETS)}")
    if source_height < 1 or source_width < 1:
        raise UserError(f"found images of {source_height}x{source_width} pixels, expected at least one pixel")
    if patch < 1 or image_size < patch or image_size % patch:
        raise UserError(f"found an image size of {image_size} pixels, expected a multiple of the patch, {patch}")
    return Framing(name, (source_height, source_width), PRESETS[name](source_height, source_width, image_size, patch))


def _crop(height: int, width: int, image_size: int, patch: int) -> tuple[Step, ...]:
    resized = Resize(_multiple(height * image_size / width, patch), image_size)
    if resized.height <= image_size:
        return (resized,)
    return resized, Crop((resized.height - image_size) // 2, 0, image_size, image_size)


def _pad(height: int, width: int, image_size: int, patch: int) -> tuple[Step, ...]:
    if width >= height:
        resized = Resize(_multiple(height * image_size / width, patch), image_size)
    else:
        resized = Resize(image_size, _multiple(width * image_size / height, patch))
    down, across = image_size - resized.height, image_size - resized.width
    if not down and not across:
        return (resized,)
    return resized, Pad(down // 2, down - down // 2, across // 2, across - across // 2)


PRESETS: dict[str, Callable[[int, int, int, int], tuple[Step, ...]]] = {"crop": _crop, "pad": _pad}


def _multiple(length: float, patch: int) -> int:
    """The nearest multiple of the patch, as published (halves to even), but never nothing."""
    return max(1, round(length / patch)) * patch


def _covered(start: float, end: float, length: int, cells: int) -> NDArray[np.float64]:
    """The share of each of `cells` equal cells of 0..length that start..end covers."""
    edges = np.linspace(0, length, cells + 1)
    overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    share: NDArray[np.float64] = np.clip(overlap, 0, None) / (length / cells)
    return share


def _step(value: Any) -> Step:
    if not isinstance(value, dict) or value.get("step") not in STEPS:
        raise UserError(f"framing: found the step {value!r:.200}, expected one of: {', '.join(STEPS)}")
    kind = STEPS[value["step"]]
    if set(value) != {"step"} | {field.name for field in fields(kind)}:
        known = ", ".join(field.name for field in fields(kind))
        raise UserError(f"framing: found the step {value!r:.200}, expected the keys step, {known}")
    for field in fields(kind):
        item = value[field.name]
        if type(item) not in ((int, float) if field.type is float else (field.type,)):
            raise UserError(f"framing: found {field.name} {item!r} in the step {value!r:.200}, expected {field.type}")
    return kind(**{key: item for key, item in value.items() if key != "step"})
