"""VGGT: visual geometry grounded transformer (arXiv 2503.11651), under the names of the published checkpoint.

`VGGT` is the network, plain and differentiable; `VGGTTeacher` is the network frozen, with its weights. A teacher
holds in memory only what was asked of it: the network is built on the meta device (names and shapes, no memory), a
part of it is loaded by the first call that needs it, so a driver that only plans costs nothing. A call runs the rounds
up to the last one that something needs and keeps only those.
"""

import contextlib
import operator
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catalog.errors import UserError, nearest
from pipeline.teachers import dpt
from pipeline.teachers.aggregator import SPECIAL, Aggregator
from pipeline.teachers.camera import CameraHead
from pipeline.teachers.checkpoint import Checkpoint
from pipeline.teachers.seeded import SeededWeights, tensors_digest
from pipeline.teachers.teacher import OUTPUTS, TeacherOutput, dtype_name
from pipeline.teachers.vggt_config import VGGTConfig

PRESETS = {
    "vggt": VGGTConfig(),
    # The same network for machines without a GPU: 5.9 M parameters with all heads (11.9 MB in half precision).
    "vggt-mini": VGGTConfig(
        embed_dim=128,
        num_heads=4,
        depth=6,
        patch_embed_depth=6,
        image_size=224,
        dpt_layers=(1, 2, 4, 5),
        dpt_features=48,
        dpt_channels=(24, 48, 96, 96),
        camera_depth=1,
    ),
}

LICENCES = {
    "vggt": "the weights file's own terms: facebook/VGGT-1B is CC-BY-NC-4.0 (no commercial use), "
    "facebook/VGGT-1B-Commercial is under the VGGT License (commercial use, none of it military)",
    "vggt-mini": "Apache-2.0 for weights made by spatialcache; any other weights file has its own terms",
}
LICENCE_UNTRAINED = "Apache-2.0 (random weights made by spatialcache from a seed)"

UNUSED = ("track_head.",)  # in the published checkpoint; no output here comes from it
HEADS = {
    "depth": "depth_head",
    "confidence": "depth_head",
    "points": "point_head",
    "points_confidence": "point_head",
    "pose": "camera_head",
}
COMPUTE = {torch.float32, torch.bfloat16, torch.float16}


class VGGT(nn.Module):
    def __init__(self, config: VGGTConfig):
        super().__init__()
        c = self.config = config
        self.aggregator = Aggregator(c.embed_dim, c.num_heads, c.depth, c.patch_embed_depth, c.image_size, c.patch)
        self.camera_head = CameraHead(2 * c.embed_dim, c.num_heads, c.camera_depth)
        self.point_head = dpt.DenseHead(2 * c.embed_dim, c.dpt_features, c.dpt_channels, 4, c.patch)
        self.depth_head = dpt.DenseHead(2 * c.embed_dim, c.dpt_features, c.dpt_channels, 2, c.patch)

    def forward(
        self, images_BV3HW: Tensor, layers: Collection[int], outputs: Collection[str], dtype: torch.dtype
    ) -> TeacherOutput:
        """Absolute layers. The trunk computes in `dtype` by autocast, the heads in float32, as published.

        The outputs are those of the `outputs` asked for and of whatever shares their head.
        """
        heads = {HEADS[output] for output in outputs if output in HEADS}
        patches = set(layers) if "tokens" in outputs else set()
        special = set(layers) if "special" in outputs else set()
        patches_read = patches | set(self.config.dpt_layers) if heads - {"camera_head"} else patches
        special_read = special | {self.config.depth - 1} if "camera_head" in heads else special

        with _precision(images_BV3HW.device, dtype):
            rounds = self.aggregator(images_BV3HW, patches_read, special_read)
        out = TeacherOutput(
            tokens={k: rounds.patches[k].float() for k in patches},
            special={k: rounds.special[k].float() for k in special},
        )
        with _precision(images_BV3HW.device, torch.float32):
            if "camera_head" in heads:
                out.pose = self.camera_head(rounds.special[self.config.depth - 1][:, :, 0].float())
            rows, columns = (side // self.config.patch for side in images_BV3HW.shape[-2:])
            if heads - {"camera_head"}:
                read = [rounds.patches[k] for k in self.config.dpt_layers]
            if "depth_head" in heads:
                out.depth, out.confidence = dpt.depth(self.depth_head(read, rows, columns))
            if "point_head" in heads:
                out.points, out.points_confidence = dpt.points(self.point_head(read, rows, columns))
        return out


def _precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Autocast to `dtype`; for float32 it is off, also inside a caller's own autocast."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


class VGGTTeacher:
    """A frozen VGGT (see `pipeline.teachers.teacher.Teacher`).

    name: of PRESETS. weights: a .safetensors or .pt file under the official names; None gives random weights from a
    seed. config: changes to the preset. dtype: of the trunk; default bfloat16 on CUDA, float32 elsewhere.
    Raises UserError on anything that does not fit, before memory is taken.
    """

    special = SPECIAL

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
    ):
        sizes = VGGTConfig.parse(PRESETS[name], config or {}, where=name)
        self.name = name
        self.config = sizes.to_json()
        self.patch = sizes.patch
        self.image_size = sizes.image_size
        self.layers = sizes.depth
        self.channels = 2 * sizes.embed_dim
        self.trained = weights is not None
        self.licence = LICENCES[name] if self.trained else LICENCE_UNTRAINED
        self.device = _device(device)
        self._dtype = _dtype(dtype, self.device)
        self.dtype = dtype_name(self._dtype)

        with torch.device("meta"):
            self.network = VGGT(sizes).eval().requires_grad_(False)
        self._source: Checkpoint | SeededWeights
        if weights is None:
            self._source = SeededWeights(self.network)
        else:
            self._source = Checkpoint(weights)
            self._source.check({key: tuple(t.shape) for key, t in self.network.state_dict().items()}, UNUSED)

    def load(self, part: str) -> None:
        """Give a part of the network ("aggregator", "camera_head", ...) its weights, unless it has them."""
        module = self.network.get_submodule(part)
        if not any(parameter.is_meta for parameter in module.parameters()):
            return
        with torch.inference_mode(False):
            names = {f"{part}.{key}": key for key in module.state_dict()}
            tensors = self._source.read(names, self.device)
            module.load_state_dict({key: tensors[full] for full, key in names.items()}, assign=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights under the official names, on the teacher's device. Loads every head."""
        for part, _ in self.network.named_children():
            self.load(part)
        return self.network.state_dict()

    @cached_property
    def weights_sha256(self) -> str:
        """Of the weights file; without one, over names, shapes and bytes of the seeded trunk."""
        if isinstance(self._source, Checkpoint):
            return self._source.sha256
        self.load("aggregator")
        return tensors_digest(self.network.aggregator.state_dict(prefix="aggregator."))

    def resolve_layer(self, layer: int) -> int:
        """The absolute number of a layer; negative ones count from the last, -1."""
        number = operator.index(layer)
        if not -self.layers <= number < self.layers:
            raise UserError(
                f"found layer {number}, expected 0..{self.layers - 1}, or -{self.layers}..-1 from the last: "
                f"this {self.name} has {self.layers} layers"
            )
        return number % self.layers

    def __call__(
        self, images_BVCHW: Tensor, layers: Sequence[int] = (-1,), outputs: Sequence[str] = ("tokens",)
    ) -> TeacherOutput:
        """Images [B, V, 3, H, W], RGB, floating point in 0..1; H and W multiples of the patch, in pixels.

        `outputs` are any of OUTPUTS. `layers` say whose tokens and special tokens are given, under the keys as they
        are written there; the other outputs do not depend on them. The order of views matters: view 0 is the
        reference. Raises UserError on an unknown output or layer and on images of another shape or type.
        """
        if unknown := [output for output in outputs if output not in OUTPUTS]:
            raise UserError(f"unknown output '{unknown[0]}', expected any of: {nearest(unknown[0], OUTPUTS)}")
        if not outputs or (not layers and {"tokens", "special"} & set(outputs)):
            raise UserError("nothing was asked for: expected at least one output, and for tokens at least one layer")
        absolute = {layer: self.resolve_layer(layer) for layer in layers}
        self._check_images(images_BVCHW)
        for part in ("aggregator", *sorted({HEADS[output] for output in outputs if output in HEADS})):
            self.load(part)
        # Not inference_mode: its tensors cannot be saved for backward, and a loss with the teacher in the loop does.
        with torch.no_grad():
            images = images_BVCHW.to(self.device, torch.float32)
            out = self.network(images, set(absolute.values()), outputs, self._dtype)
        return TeacherOutput(
            tokens={layer: out.tokens[k] for layer, k in absolute.items()} if "tokens" in outputs else {},
            special={layer: out.special[k] for layer, k in absolute.items()} if "special" in outputs else {},
            **{output: getattr(out, output) for output in HEADS if output in outputs},
        )

    def _check_images(self, images: Tensor) -> None:
        shape = list(images.shape)
        if images.ndim != 5 or shape[2] != 3 or 0 in shape:
            raise UserError(f"found images of shape {shape}, expected [timesteps, views, 3, height, width]")
        if not images.is_floating_point():
            raise UserError(f"found images of {images.dtype}, expected floating point in 0..1 (see framing)")
        if shape[3] % self.patch or shape[4] % self.patch:
            raise UserError(
                f"found images of {shape[3]}x{shape[4]} pixels, expected multiples of the patch, {self.patch} pixels"
            )


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device '{device}', expected cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError("the device cuda was asked for and this machine has none; ask for cpu")
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in COMPUTE:
        names = sorted(dtype_name(known) for known in COMPUTE)
        raise UserError(f"unknown dtype '{dtype}', expected one of: {nearest(str(dtype), names)}")
    return found
