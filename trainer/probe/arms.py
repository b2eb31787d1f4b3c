"""What is compared: each run, a random policy of its config (the floor), the teacher (the ceiling), and no image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catalog.errors import UserError
from trainer.probe.frames import Frames
from trainer.probe.measure import counts
from trainer.probe.policy import Frozen, tokens, untrained
from trainer.probe.teacher import Features

NO_IMAGE = "no image"
RANDOM = "random"


@dataclass(frozen=True)
class Arm:
    """Tokens to be probed. `read` computes them, [M, n, C] float16 by layer, when their turn has come."""

    name: str
    kind: str  # run, random, teacher
    width: int  # C
    layers: list[int]
    read: Callable[[], dict[int, Tensor]]
    floor: str | None = None  # of a run: the arm that is the same policy, untrained
    checkpoint: str | None = None


def check_alike(runs: Sequence[Frozen]) -> None:
    """Raise UserError for runs that cannot stand in one table: other cameras, or another token grid."""
    first = runs[0]
    for other in runs[1:]:
        if set(other.cameras) != set(first.cameras):
            raise UserError(
                f"{other.name} sees {', '.join(other.cameras)}, {first.name} sees {', '.join(first.cameras)}; all arms "
                "are probed on the same maps: probe these runs one at a time"
            )
        if other.policy.grid != first.policy.grid:
            raise UserError(
                f"{other.name} has {other.policy.grid[0]}x{other.policy.grid[1]} tokens a view, {first.name} "
                f"{first.policy.grid[0]}x{first.policy.grid[1]}; all arms have probes of one shape: probe these runs "
                "one at a time"
            )
    if len({run.name for run in runs}) != len(runs):
        raise UserError(f"two runs are named alike ({', '.join(run.name for run in runs)}); rename a folder")


def make_arms(
    runs: Sequence[Frozen],
    layers: Sequence[Sequence[int]],
    features: Features | None,
    frames: Frames,
    seed: int,
    device: str,
) -> list[Arm]:
    """All arms with tokens. Runs of one model config have one floor."""
    floors: dict[object, Arm] = {}
    several = len({run.config.model for run in runs}) > 1
    arms = []
    for run, chosen in zip(runs, layers, strict=True):
        model = run.config.model
        if model not in floors:
            name = f"{RANDOM} ({run.name})" if several else RANDOM
            floors[model] = _policy_arm(name, RANDOM, run, chosen, frames, device, seed)
        floor = floors[model].name
        arms.append(_policy_arm(run.name, "run", run, chosen, frames, device, None, floor))
    arms = [*floors.values(), *arms]
    if features is not None:
        grid, deep = runs[0].policy.grid, list(features.cached)
        source = features  # bound here: mypy cannot know that the closure is called later

        def read() -> dict[int, Tensor]:
            return {layer: source.tokens(layer, frames, grid) for layer in deep}

        arms.append(Arm(features.name, "teacher", features.channels, deep, read))
    return arms


def _policy_arm(
    name: str,
    kind: str,
    run: Frozen,
    layers: Sequence[int],
    frames: Frames,
    device: str,
    seed: int | None,
    floor: str | None = None,
) -> Arm:
    def read() -> dict[int, Tensor]:
        return tokens(run if seed is None else untrained(run, name, seed), frames, layers, device)

    path = None if seed is not None else run.checkpoint
    return Arm(name, kind, run.policy.width, list(layers), read, floor, path)


def no_image(depth: Tensor, views: int) -> Tensor:
    """What is known without looking: the mean log depth of each camera's pixels, [V, H, W] in metres.

    `depth` [M, H, W] is that of training. Cameras that stand still make this a strong answer: what a probe finds
    beyond it, it found in the tokens. A pixel that never counts is the camera's mean, or, where it has none, 1 m.
    """
    maps = depth.float().unflatten(0, (-1, views))
    valid = counts(maps)
    logs = maps.where(valid, 1.0).log().double()
    number = valid.sum(0)
    mean = logs.sum(0) / number.clamp(min=1)
    whole = logs.sum((0, 2, 3)) / valid.sum((0, 2, 3)).clamp(min=1)
    out: Tensor = torch.where(number > 0, mean, whole[:, None, None]).exp().float()
    return out
