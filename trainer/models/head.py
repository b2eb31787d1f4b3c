"""The parts that OpenVLA-OFT (arXiv 2502.19645) puts around a language model, under its parameter names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProprioProjector(nn.Module):
    """State [B, S] -> one token [B, D]: Linear, GELU, Linear."""

    def __init__(self, state_size: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(state_size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(state)))


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm x))."""

    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """LayerNorm, Linear, ReLU, residual blocks, LayerNorm, Linear."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """Hidden states of the action slots [B, chunk * A, D] -> actions [B, chunk, A], one time step from its A slots."""

    def __init__(self, width: int, action_size: int):
        super().__init__()
        self.action_size = action_size
        self.model = ResidualMLP(action_size * width, width, action_size)

    def forward(self, slots: Tensor) -> Tensor:
        return self.model(slots.unflatten(1, (-1, self.action_size)).flatten(2))
