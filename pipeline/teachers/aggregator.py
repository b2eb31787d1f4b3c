"""VGGT's trunk: rounds of attention within each view and over all views (arXiv 2503.11651, section 3.2)."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.teachers.transformer import Block, rotary_table
from pipeline.teachers.vit import REGISTERS, VisionTransformer

SPECIAL = 1 + REGISTERS  # the camera token and its registers stand in front of a view's patch tokens
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Rounds:
    """The outputs of some rounds by absolute number; C is twice the trunk's width (frame block, global block)."""

    patches: dict[int, Tensor] = field(default_factory=dict)  # [B, V, N, C]
    special: dict[int, Tensor] = field(default_factory=dict)  # [B, V, 5, C]


class Aggregator(nn.Module):
    def __init__(self, channels: int, heads: int, depth: int, vit_depth: int, image_size: int, patch: int):
        super().__init__()
        self.patch = patch
        self.head_dim = channels // heads
        self.patch_embed = VisionTransformer(channels, heads, vit_depth, image_size, patch)
        # Two versions of each: the first for view 0, which is the reference frame, the second for every other view.
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, channels))
        self.register_token = nn.Parameter(torch.empty(1, 2, REGISTERS, channels))
        self.frame_blocks = nn.ModuleList(Block(channels, heads, qk_norm=True) for _ in range(depth))
        self.global_blocks = nn.ModuleList(Block(channels, heads, qk_norm=True) for _ in range(depth))

    def forward(self, images_BV3HW: Tensor, patches: Collection[int], special: Collection[int]) -> Rounds:
        """Run up to the last round that is in `patches` or `special`, and keep only what is in them.

        Images are RGB in 0..1 with sides that are multiples of the patch. At least one round must be asked for.
        """
        B, V, _, H, W = images_BV3HW.shape
        mean, std = (torch.tensor(m, device=images_BV3HW.device).view(3, 1, 1) for m in (IMAGENET_MEAN, IMAGENET_STD))
        patches_FNC = self.patch_embed(((images_BV3HW - mean) / std).flatten(0, 1))
        x = torch.cat([self._special_tokens(B, V), patches_FNC], dim=1)
        _, T, C = x.shape

        frame_table = self._rotary(H // self.patch, W // self.patch, x.device)
        global_table = (frame_table[0].repeat(V, 1), frame_table[1].repeat(V, 1))
        rounds = Rounds()
        for k in range(max([*patches, *special]) + 1):
            x_frame = self.frame_blocks[k](x.view(B * V, T, C), frame_table)
            x = self.global_blocks[k](x_frame.view(B, V * T, C), global_table)
            both = (x_frame.view(B, V, T, C), x.view(B, V, T, C))
            # Cut before joining, so that what is not kept is never copied and can be freed.
            if k in patches:
                rounds.patches[k] = torch.cat([half[:, :, SPECIAL:] for half in both], dim=-1)
            if k in special:
                rounds.special[k] = torch.cat([half[:, :, :SPECIAL] for half in both], dim=-1)
        return rounds

    def _special_tokens(self, B: int, V: int) -> Tensor:
        """Camera and register tokens of all views, [B * V, 5, C]."""
        both_2SC = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        version_V = [min(view, 1) for view in range(V)]
        return both_2SC[version_V].repeat(B, 1, 1)

    def _rotary(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches count from (1, 1); camera and register tokens sit at (0, 0)."""
        row = torch.arange(1, rows + 1, device=device).repeat_interleave(columns)
        column = torch.arange(1, columns + 1, device=device).repeat(rows)
        special = torch.zeros(SPECIAL, 2, dtype=row.dtype, device=device)
        return rotary_table(torch.cat([special, torch.stack([row, column], dim=1)]), self.head_dim)
