"""A batch: what the student sees, what it should do, and what its tokens are aligned to."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples of V views. Rows name their frame, so that an error can."""

    episodes: Tensor  # [B] int64
    frames: Tensor  # [B] int64
    images: Tensor  # [B, V, 3, H, W] uint8, RGB, at the student's size
    views: Tensor  # [B, V] bool: the view is there
    text: Tensor  # [B, T] int64 token ids, padded on the right
    text_mask: Tensor  # [B, T] bool
    state: Tensor  # [B, S] float32, normalised
    actions: Tensor  # [B, chunk, A] float32, normalised; beyond the episode's end zeros
    action_mask: Tensor  # [B, chunk] bool: inside the episode
    features: Tensor | None = None  # [B, V, tokens, C] float32, from the cache
    feature_mask: Tensor | None = None  # [B, V] bool: the cache has the view
    sources: tuple[Tensor, ...] | None = None  # V times [B, H, W, 3] uint8: what the teacher is shown, online

    def _map(self, change: Any) -> "Batch":
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = tuple(map(change, value)) if isinstance(value, tuple) else value
            if isinstance(value, Tensor):
                values[field.name] = change(value)
        return Batch(**values)

    def to(self, device: torch.device) -> "Batch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def names(self, which: Tensor) -> str:
        """Some samples' frames, for an error message: `episode 3 frame 17, episode 8 frame 0`. `which` [B] bool."""
        pairs = zip(self.episodes[which].tolist(), self.frames[which].tolist(), strict=True)
        return ", ".join(f"episode {episode} frame {frame}" for episode, frame in pairs)


def pad_right(sequences: list[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Sequences of ids -> ([B, T] int64, [B, T] bool mask), T the longest one's length."""
    length = max(map(len, sequences))
    ids = torch.tensor([ids + [value] * (length - len(ids)) for ids in sequences])
    mask = torch.tensor([[i < len(ids) for i in range(length)] for ids in sequences])
    return ids, mask
