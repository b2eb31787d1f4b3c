"""VGGT's patch embedding: a DINOv2 vision transformer with register tokens (arXiv 2304.07193, 2309.16588)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.teachers.transformer import Block

REGISTERS = 4
EPS = 1e-6  # this network's LayerNorms; the rest of VGGT has torch's default


class PatchProjection(nn.Module):
    """Patches of pixels to tokens: images [B, 3, H, W] -> [B, H/patch * W/patch, C], row by row."""

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=patch, stride=patch)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        map_BCHW: Tensor = self.proj(images_B3HW)
        return map_BCHW.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Normalised images [B, 3, H, W] -> normalised patch tokens [B, H/patch * W/patch, C]."""

    def __init__(self, channels: int, heads: int, depth: int, image_size: int, patch: int):
        super().__init__()
        self.patch = patch
        self.grid = image_size // patch
        self.patch_embed = PatchProjection(channels, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.register_tokens = nn.Parameter(torch.empty(1, REGISTERS, channels))
        self.mask_token = nn.Parameter(torch.empty(1, channels))  # in the checkpoint, never read: nothing is masked
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, channels))
        self.blocks = nn.ModuleList(Block(channels, heads, eps=EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        B, _, H, W = images_B3HW.shape
        positions_1NC = self.positions(H // self.patch, W // self.patch)
        x = torch.cat([self.cls_token.expand(B, -1, -1), self.patch_embed(images_B3HW)], dim=1) + positions_1NC
        # The registers come after the positions are added: they have none.
        x = torch.cat([x[:, :1], self.register_tokens.expand(B, -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        patches_BNC: Tensor = self.norm(x[:, 1 + REGISTERS :])
        return patches_BNC

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding [1, 1 + rows * columns, C], resized where the grid is not the stored one."""
        if rows == columns == self.grid:
            return self.pos_embed
        C = self.pos_embed.shape[2]
        grid_1CHW = self.pos_embed[:, 1:].float().reshape(1, self.grid, self.grid, C).permute(0, 3, 1, 2)
        grid_1CHW = F.interpolate(grid_1CHW, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1].float(), grid_1CHW.flatten(2).transpose(1, 2)], dim=1)
