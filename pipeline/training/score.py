"""How well depth is known: AbsRel and the share of pixels within a quarter, after median scaling, a view at a time.

scaled = depth * median(true) / median(depth)      over the view's valid pixels
absrel = mean |scaled - true| / true
delta  = share of pixels with max(scaled / true, true / scaled) < 1.25
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    absrel: float
    delta: float
    views: int


def score(pairs: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Mean over views of pairs (depth found, true depth), each [H, W]; true is inf or <= 0 where it does not count."""
    errors: list[float] = []
    shares: list[float] = []
    for found, true in pairs:
        valid = torch.isfinite(true) & (true > 0)
        if not valid.any():
            continue
        found, true = found[valid].double(), true[valid].double()
        ratio = found * (true.median() / found.median()) / true
        errors.append(float((ratio - 1).abs().mean()))
        shares.append(float((torch.maximum(ratio, 1 / ratio.clamp(min=1e-9)) < 1.25).double().mean()))
    if not errors:
        raise ValueError("no view has a valid pixel")
    return Score(sum(errors) / len(errors), sum(shares) / len(shares), len(errors))
