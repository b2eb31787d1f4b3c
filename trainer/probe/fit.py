"""Train a probe on the tokens of some maps, and ask it for others. The network that made the tokens is not here.

Capacity is the same for every arm: tokens are standardised channel by channel (with the training tokens' mean and
deviation), then projected to one common width by a fixed orthonormal matrix from a seed, where they are wider than it.
So every arm's probe has the same parameters, starts from the same values, and sees the same frames in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.probe.heads import DPT, Grid, Kind, Linear, make, to_pixels
from trainer.probe.measure import LIMIT, counts

BATCH = 16  # maps a step
RATES: dict[Kind, float] = {"linear": 3e-2, "dpt": 2e-3}  # the highest learning rate; a cosine leads to zero
WEIGHT_DECAY = 1e-2
NEAREST = 0.01  # metres: a prediction is between this and LIMIT
AT_ONCE = 64  # maps whose tokens are float32 at one time


@dataclass(frozen=True)
class Settings:
    """The same for every arm."""

    grid: Grid  # of the tokens
    width: int  # that tokens are projected to
    steps: int
    seed: int
    device: str = "cpu"


class Inputs(nn.Module):
    """Tokens of a layer as stored -> what a probe reads: standardised, and at most `width` wide. Nothing is learned."""

    mean: Tensor
    deviation: Tensor
    projection: Tensor | None

    def __init__(self, tokens: Tensor, width: int, seed: int):
        """`tokens` [M, n, C]: those of training."""
        super().__init__()
        channels = tokens.shape[-1]
        count, total, square = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
        for part in tokens.split(AT_ONCE):
            values = part.double().flatten(0, 1)
            count, total, square = count + len(values), total + values.sum(0), square + values.square().sum(0)
        self.register_buffer("mean", (total / count).float())
        self.register_buffer("deviation", (square / count - (total / count) ** 2).clamp(min=0).sqrt().float())
        # A channel that never changes says nothing; without a floor its rounding would be blown up.
        self.deviation.clamp_(min=1e-3 * max(float(self.deviation.max()), 1e-12))
        projection = None
        if channels > width:
            generator = torch.Generator().manual_seed(seed)
            projection = torch.linalg.qr(torch.randn(channels, width, generator=generator)).Q
        self.register_buffer("projection", projection)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, n, C] -> float32 [B, n, min(C, width)]."""
        out = (tokens.float() - self.mean) / self.deviation
        return out if self.projection is None else out @ self.projection


class Probe(nn.Module):
    """A trained probe."""

    def __init__(self, head: Linear | DPT, inputs: Sequence[Inputs], size: tuple[int, int]):
        super().__init__()
        self.head, self.size = head, size
        self.inputs = nn.ModuleList(inputs)

    @property
    def parameters_learned(self) -> int:
        return sum(each.numel() for each in self.head.parameters())

    def forward(self, layers: Sequence[Tensor], offset: Tensor) -> Tensor:
        """Tokens of the layers, each [B, n, C], and what is added, [B] -> log depth [B, H, W]."""
        read = [each(tokens) for each, tokens in zip(self.inputs, layers, strict=True)]
        return to_pixels(self.head(read), self.size) + offset[:, None, None]

    def predict(self, layers: Sequence[Tensor], offset: Tensor, device: str = "cpu") -> Iterator[Tensor]:
        """Depth in metres of all maps, in order, AT_ONCE at a time: [<= AT_ONCE, H, W]."""
        for part, add in zip(
            zip(*(tokens.split(AT_ONCE) for tokens in layers), strict=True), offset.split(AT_ONCE), strict=True
        ):
            with torch.inference_mode():
                yield self([tokens.to(device) for tokens in part], add.to(device)).exp().clamp(NEAREST, LIMIT).cpu()


def offsets(depth: Tensor, views: int) -> Tensor:
    """The mean log depth of each camera, [V], over maps [M, H, W] of which map m is of camera m % V; 0 without any.

    A probe is given it, and learns what differs from it: a hand camera sees centimetres, a room camera metres, and a
    probe of few parameters would else spend them on telling the cameras apart.
    """
    valid = counts(depth)
    logs = depth.float().where(valid, 1.0).log().double().flatten(1).sum(1).unflatten(0, (-1, views)).sum(0)
    mean: Tensor = logs / valid.flatten(1).sum(1).unflatten(0, (-1, views)).sum(0).clamp(min=1)
    return mean.float()


def fit(kind: Kind, layers: Sequence[Tensor], depth: Tensor, offset: Tensor, settings: Settings) -> Probe:
    """Train a probe with AdamW on the mean absolute error of log depth over the pixels that count.

    Args:
        layers: tokens [M, n, C] of one layer (linear) or four (dpt), float16.
        depth: true depth [M, H, W] in metres; what is beyond LIMIT, or not finite, does not count.
        offset: of each map [M], as `offsets` has it by camera.
    """
    inputs = [Inputs(tokens, settings.width, settings.seed) for tokens in layers]
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # the same first weights for every arm
        width = min(settings.width, layers[0].shape[-1])
        probe = Probe(make(kind, width, settings.grid), inputs, (depth.shape[1], depth.shape[2]))
    probe.to(settings.device)
    optimiser = torch.optim.AdamW(probe.head.parameters(), lr=RATES[kind], weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(settings.steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(depth), generator=generator)])
        batch, order = order[:BATCH], order[BATCH:]
        true = depth[batch].to(settings.device).float()
        valid = counts(true)
        predicted = probe([tokens[batch].to(settings.device) for tokens in layers], offset[batch].to(settings.device))
        error = (predicted - true.where(valid, 1.0).log()).abs()
        loss = (error * valid).sum() / valid.sum().clamp(min=1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe.eval()
