"""Train a VGGT from nothing on rendered scenes: AdamW, warm-up and cosine, resumable.

The first part of the steps sees half the side of the images, which costs about a quarter and teaches most; the rest
sees them whole. Every step draws its scenes, views and colours from (seed, step) alone, so a run that was stopped and
resumed is the run that was not (to the bit on a CPU).
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalog.cache.commit import commit, publish, temporary
from catalog.errors import UserError
from pipeline.teachers.checkpoint import write_checkpoint
from pipeline.teachers.teacher import Teacher
from pipeline.training.loss import losses
from pipeline.training.scenes import Scenes
from pipeline.training.score import Score, score

OUTPUTS = ("depth", "confidence", "points", "points_confidence", "pose")
STATE, METRICS, WEIGHTS = "state.pt", "metrics.jsonl", "weights.safetensors"


@dataclass(frozen=True)
class Course:
    """How long and how fast; everything that decides the result besides scenes and network."""

    steps: int
    batch: int = 8  # scenes a step
    lr: float = 6e-4
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    small: float = 0.6  # the share of the steps at half the image side
    seed: int = 0
    freeze_trunk: bool = False  # train the heads alone: the baseline of an untrained trunk

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...: linear warm-up, then a cosine to a hundredth."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.505 + 0.495 * math.cos(math.pi * progress))


def learn(
    network: torch.nn.Module,
    scenes: Scenes,
    course: Course,
    out: Path,
    device: str = "cpu",
    save_every: int = 500,
    stop_after: float = math.inf,
    progress: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> int:
    """Train `network` (a `VGGT` with weights in memory) in place; the number of steps done.

    `out` holds state.pt (to resume), metrics.jsonl and, at the end, weights.safetensors in half precision. Stops
    early, resumable, after `stop_after` seconds. Raises UserError where `out` holds another course.
    """
    out.mkdir(parents=True, exist_ok=True)
    network.to(device).train().requires_grad_(True)
    if course.freeze_trunk:
        network.get_submodule("aggregator").requires_grad_(False)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": course.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    first = _resume(network, optimiser, course, out)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    start = time.monotonic()
    step = first
    with open(out / METRICS, "a") as metrics:
        for step in range(first, course.steps):
            generator = np.random.default_rng((course.seed, step))
            views = int(generator.integers(1, scenes.views.max() + 1))
            able = np.flatnonzero(scenes.views >= views)
            batch = scenes.batch(
                generator.choice(able, course.batch).tolist(), views, device, step < course.small * course.steps,
                seed=int(generator.integers(2**31)),
            )  # fmt: skip
            for group in optimiser.param_groups:
                group["lr"] = course.rate(step)
            parts = losses(network(batch.images, layers=(), outputs=OUTPUTS, dtype=dtype), batch.true)
            optimiser.zero_grad(set_to_none=True)
            parts.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, course.clip)
            if not torch.isfinite(norm):
                raise UserError(
                    f"{out}: step {step}: the gradient is not finite; lower the rate, or resume with another seed"
                )
            optimiser.step()
            values = {name: float(value.detach()) for name, value in vars(parts).items()} | {"views": views}
            metrics.write(json.dumps({"step": step} | values) + "\n")
            progress(step, values)
            timed_out = time.monotonic() - start > stop_after
            if (step + 1) % save_every == 0 or step + 1 == course.steps or timed_out:
                metrics.flush()
                _save(network, optimiser, course, out, step + 1)
            if timed_out:
                break
    network.eval().requires_grad_(False)
    done = min(step + 1, course.steps)
    if done == course.steps:
        write_checkpoint(network.state_dict(), out / WEIGHTS, dtype=torch.float16)
    return done


def _save(network: torch.nn.Module, optimiser: torch.optim.Optimizer, course: Course, out: Path, step: int) -> None:
    part = temporary(out / STATE)
    state = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "course": asdict(course),
        "step": step,
    }
    try:
        with open(part, "wb") as file:  # torch takes no path that begins with a dot
            torch.save(state, file)
        publish(part, out / STATE)
    finally:
        part.unlink(missing_ok=True)


def _resume(network: torch.nn.Module, optimiser: torch.optim.Optimizer, course: Course, out: Path) -> int:
    if not (out / STATE).exists():
        commit(out / METRICS, b"")
        return 0
    state: dict[str, Any] = torch.load(out / STATE, map_location="cpu", weights_only=True)
    if state["course"] != asdict(course):
        raise UserError(f"{out}: found the course {state['course']}, asked for {asdict(course)}; choose another --out")
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    lines = (out / METRICS).read_text().splitlines()[: state["step"]]
    commit(out / METRICS, "".join(line + "\n" for line in lines).encode())
    return int(state["step"])


def score_teacher(teacher: Teacher, scenes: Scenes, views: int) -> Score:
    """Depth of `teacher` on scenes, `views` of each seen together."""
    able = np.flatnonzero(scenes.views >= views)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for number in able:
            batch = scenes.batch([int(number)], views)
            found = teacher(batch.images, outputs=("depth",)).depth
            assert found is not None
            yield from zip(found[0].cpu(), batch.metres[0], strict=True)

    return score(pairs())


def score_mean(train: Scenes, scenes: Scenes, views: int) -> Score:
    """The baseline that never looks: the mean depth of every pixel over the training scenes."""
    total = np.zeros(train.scenes[0]["depth"].shape[1:])
    count = np.zeros_like(total)
    for scene in train.scenes:
        valid = np.isfinite(scene["depth"])
        total += np.where(valid, scene["depth"], 0).astype(np.float64).sum(0)
        count += valid.sum(0)
    mean = torch.from_numpy(total / np.maximum(count, 1))
    chosen = (scenes.scenes[number] for number in np.flatnonzero(scenes.views >= views))
    return score((mean, torch.from_numpy(depth).float()) for scene in chosen for depth in scene["depth"][:views])
