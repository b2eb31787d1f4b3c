"""The student: a policy and, where it is aligned, what reads its hidden state and compares it with the teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.align import SpatialForcing, Targets
from trainer.batch import Batch
from trainer.config import AlignmentConfig
from trainer.geometry import places
from trainer.hook import HiddenState
from trainer.prepare import Prepared


@dataclass(frozen=True)
class Losses:
    """Of one batch; `align` is None where nothing is aligned. `total` alone carries a gradient."""

    total: Tensor
    action: Tensor
    align: Tensor | None
    per_sample: Tensor  # [B]

    def values(self) -> dict[str, float]:
        """For the metrics. The cosine is the mean over samples, of their valid tokens."""
        values = {"loss": float(self.total.detach()), "action_loss": float(self.action)}
        if self.align is not None:
            align = float(self.align)
            values |= {"align_loss": align, "cosine": 1 - align}
        return values


class Student(nn.Module):
    """Without alignment there is neither hook nor projector, and no teacher unless it is asked for its features."""

    seen: Tensor | None  # [V, n] bool: the teacher saw what the student's token shows; None: all of them

    def __init__(self, prepared: Prepared, config: AlignmentConfig):
        super().__init__()
        self.policy = prepared.policy
        self.teacher = prepared.teacher
        self.coefficient = config.coefficient
        self.forcing: SpatialForcing | None = None
        source = prepared.cached or prepared.teacher
        if source is not None:
            self.hidden = HiddenState(self.policy.layers, self.policy.final_norm, config.layer)
            found = places(
                source.framings,
                self.policy.source_to_student,
                self.policy.image_size,
                self.policy.grid,
                source.native_grid,
                source.grid,
            )
            where, seen = (None, None) if found is None else map(torch.from_numpy, found)
            self.register_buffer("seen", seen, persistent=False)
            self.targets = Targets(
                source.channels, source.native_grid, source.grid, self.policy.grid, config.positions, where
            )
            self.forcing = SpatialForcing(self.policy.width, source.channels, config.norm)

    def forward(self, batch: Batch) -> Losses:
        if self.forcing is None:
            action = self.policy.action_loss(self.policy(batch), batch)
            return Losses(action.mean(), action.mean().detach(), None, action.detach())
        with self.hidden:
            actions = self.policy(batch)
        tokens = self.policy.image_tokens(self.hidden.value, batch.views.shape[1])
        if self.teacher is not None:
            assert batch.sources is not None
            features, mask = self.teacher.features(batch.sources), batch.views
        else:
            assert batch.features is not None and batch.feature_mask is not None
            features, mask = batch.features, batch.views & batch.feature_mask
        if self.seen is not None:
            mask = mask.unsqueeze(-1) & self.seen
        align = self.forcing(tokens, self.targets(features), mask)
        action = self.policy.action_loss(actions, batch)
        total = action.mean() + self.coefficient * align.total
        per_sample = action + self.coefficient * align.per_sample
        return Losses(total, action.mean().detach(), align.total.detach(), per_sample.detach())
