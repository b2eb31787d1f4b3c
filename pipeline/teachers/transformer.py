"""The transformer block that all parts of VGGT are made of, and the rotary embedding of its two trunks.

The attribute names are those of the published checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 100.0


def rotary_table(positions_N2: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [N, head_dim], of tokens at (row, column).

    The first half of a head's channels turns with the row, the second with the column.
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, device=positions_N2.device, dtype=torch.float32)
    angle_N2Q = positions_N2.to(torch.float32)[:, :, None] * ROTARY_BASE ** -(steps / quarter)
    # Channel i of a half is paired with channel i + quarter, so each angle stands twice in its half.
    angle_ND = torch.cat([angle_N2Q, angle_N2Q], dim=2).flatten(1)
    return angle_ND.cos(), angle_ND.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channel pairs of x [..., N, head_dim] by the angles of the table."""
    cos, sin = table
    row, row_pair, column, column_pair = x.chunk(4, dim=-1)
    return x * cos + torch.cat([-row_pair, row, -column_pair, column], dim=-1) * sin


class Attention(nn.Module):
    """Self-attention over [B, N, C]. With `qk_norm`, queries and keys have a LayerNorm per head."""

    def __init__(self, channels: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.q_norm = nn.LayerNorm(channels // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(channels // heads) if qk_norm else nn.Identity()

    def forward(self, x_BNC: Tensor, table: tuple[Tensor, Tensor] | None = None) -> Tensor:
        B, N, C = x_BNC.shape
        q, k, v = self.qkv(x_BNC).view(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        x_BHND = F.scaled_dot_product_attention(q, k, v)
        out_BNC: Tensor = self.proj(x_BHND.transpose(1, 2).reshape(B, N, C))
        return out_BNC


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, channels: int, hidden: int, out: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on what a residual branch adds."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x += ls1(attn(norm1 x)); x += ls2(mlp(norm2 x)), over [B, N, C]."""

    def __init__(self, channels: int, heads: int, qk_norm: bool = False, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = Attention(channels, heads, qk_norm)
        self.ls1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = Mlp(channels, 4 * channels, channels)
        self.ls2 = LayerScale(channels)

    def forward(self, x_BNC: Tensor, table: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x_BNC = x_BNC + self.ls1(self.attn(self.norm1(x_BNC), table))
        out_BNC: Tensor = x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))
        return out_BNC
