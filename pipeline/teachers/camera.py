"""VGGT's camera head: from the camera tokens of all views to their poses, refined in four passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.teachers.transformer import Block, Mlp

PASSES = 4
POSE = 9  # translation 3, quaternion 4, view angles 2
ANGLES = 7  # where the view angles begin


class CameraHead(nn.Module):
    """Camera tokens [B, V, C] -> pose [B, V, 9], relative to view 0."""

    def __init__(self, channels: int, heads: int, depth: int):
        super().__init__()
        self.token_norm = nn.LayerNorm(channels)
        self.empty_pose_tokens = nn.Parameter(torch.empty(1, 1, POSE))
        self.embed_pose = nn.Linear(POSE, channels)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 3 * channels))
        self.trunk = nn.Sequential(*(Block(channels, heads) for _ in range(depth)))
        self.trunk_norm = nn.LayerNorm(channels)
        self.pose_branch = Mlp(channels, channels // 2, POSE)

    def forward(self, tokens_BVC: Tensor) -> Tensor:
        B, V, C = tokens_BVC.shape
        tokens = self.token_norm(tokens_BVC)
        plain = F.layer_norm(tokens, (C,), eps=1e-6)
        pose = torch.zeros(B, V, POSE, device=tokens.device)
        current = self.empty_pose_tokens.expand(B, V, POSE)
        for _ in range(PASSES):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(current)).chunk(3, dim=-1)
            x = gate * (plain * (1 + scale) + shift) + tokens
            pose = pose + self.pose_branch(self.trunk_norm(self.trunk(x)))
            # Each pass refines the last one's answer and is not trained through it.
            current = pose.detach()
        return torch.cat([pose[..., :ANGLES], pose[..., ANGLES:].relu()], dim=-1)
