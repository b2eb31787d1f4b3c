"""Random weights from a seed: an untrained teacher for tests, for benchmarks and as the start of training.

Every tensor has a generator of its own, seeded by its name, so that the trunk is the same whether or not a head was
made before it, and the global generator is never touched. A few seconds for the 0.9 B parameters of the official trunk.
"""

import hashlib
import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0

# Published training starts LayerScale at 0.01 (DINOv2: 1e-5) and lets it grow. Left there, an untrained block is the
# identity: every layer would give the same features, and nothing of one view would reach another. At 0.2 each block
# visibly acts while a stream of 48 blocks stays within its first order of magnitude.
GAMMA = 0.2
POSITION = 0.5  # standard deviation of the position embedding; beside patches of order 1 it can be seen


class SeededWeights:
    """Weights of a network whose parameters are on the meta device, by name."""

    def __init__(self, network: nn.Module):
        self._network = network

    def read(self, names: Collection[str], device: torch.device) -> dict[str, Tensor]:
        """The named parameters, float32 on `device`, made on the CPU.

        Linear and convolution weights keep the variance of their input.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            made = pool.map(self._tensor, names)
            return {name: tensor.to(device) for name, tensor in zip(names, made, strict=True)}

    def _tensor(self, name: str) -> Tensor:
        owner_name, _, leaf = name.rpartition(".")
        owner = self._network.get_submodule(owner_name)
        shape = getattr(owner, leaf).shape
        if leaf == "bias":
            return torch.zeros(shape)
        if leaf == "gamma":
            return torch.full(shape, GAMMA)
        if isinstance(owner, nn.LayerNorm):
            return torch.ones(shape)
        seed = int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest()[:8], "big", signed=True)
        generator = torch.Generator().manual_seed(seed)
        # Uniform and in plain steps, because every processor rounds those alike: the same weights on every machine.
        width = math.sqrt(12) * _deviation(owner, leaf, shape)
        return torch.empty(shape).uniform_(generator=generator).sub_(0.5).mul_(width)


def _deviation(owner: nn.Module, leaf: str, shape: torch.Size) -> float:
    if isinstance(owner, nn.ConvTranspose2d):
        return 1 / math.sqrt(shape[0])  # its stride is its kernel: each output pixel sees one input pixel
    if isinstance(owner, (nn.Linear, nn.Conv2d)):
        return 1 / math.sqrt(shape[1:].numel())
    return POSITION if leaf == "pos_embed" else 1.0  # learned tokens stand beside normalised patch tokens


def tensors_digest(tensors: dict[str, Any]) -> str:
    """sha256 over names, shapes and bytes (float32, little endian) of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {list(array.shape)}\n".encode())
        digest.update(memoryview(array.reshape(-1)).cast("B"))
    return digest.hexdigest()
