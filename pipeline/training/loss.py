"""What VGGT is trained with (arXiv 2503.11651, section 3.4): depth and points weighted by confidence, and poses.

    dense = mean over valid pixels of   c |y - y'|  +  c |grad y - grad y'|  -  ALPHA log c
    total = depth + points + CAMERA * pose

The confidence c pays for certainty where the error is small and may not simply shrink.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.teachers.teacher import TeacherOutput
from pipeline.training.truth import Truth

ALPHA = 0.2
CAMERA = 5.0


@dataclass(frozen=True)
class Losses:
    total: Tensor
    depth: Tensor
    points: Tensor
    pose: Tensor


def losses(out: TeacherOutput, true: Truth) -> Losses:
    """The losses of a forward with depth, points, their confidences and pose, each a mean over its valid terms."""
    assert out.depth is not None and out.confidence is not None and out.pose is not None
    assert out.points is not None and out.points_confidence is not None
    depth = dense(out.depth[..., None], true.depth[..., None], out.confidence, true.valid)
    points = dense(out.points, true.points, out.points_confidence, true.valid)
    pose = F.smooth_l1_loss(out.pose, true.pose, beta=0.1)
    return Losses(depth + points + CAMERA * pose, depth, points, pose)


def dense(found: Tensor, true: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
    """Of maps [B, V, H, W, C]; the gradient is that of neighbours which are both valid."""
    difference = found - true
    total = _mean(confidence * difference.norm(dim=-1) - ALPHA * confidence.log(), valid)
    for axis in (2, 3):
        length = difference.shape[axis] - 1
        a, b = difference.narrow(axis, 0, length), difference.narrow(axis, 1, length)
        both = valid.narrow(axis, 0, length) & valid.narrow(axis, 1, length)
        total = total + _mean(confidence.narrow(axis, 0, length) * (b - a).norm(dim=-1), both)
    return total


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)
