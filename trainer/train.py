"""The training loop: action loss + coefficient * alignment loss, with AdamW, warm-up and cosine.

On a CPU a run is reproducible to the bit: killed at any step and resumed, it writes the losses that it would have
written. So the order of the data and the learning rate are functions of the step, checkpoints hold everything else,
and torch is told to compute deterministically.
"""

import math
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from catalog.errors import UserError
from trainer import checkpoint
from trainer.batch import Batch
from trainer.checkpoint import Training
from trainer.config import OptimiserConfig, RunConfig
from trainer.metrics import Metrics
from trainer.prepare import prepare
from trainer.run import open_run
from trainer.samples import Samples, batches
from trainer.student import Losses, Student


def rate(step: int, steps: int, config: OptimiserConfig) -> float:
    """The learning rate of step 1, 2, ..., steps: linear warm-up, then a cosine down to a tenth."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def make_optimiser(student: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over policy and projector; biases, norms and embeddings are not decayed."""
    embeddings = {id(module.weight) for module in student.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in student.parameters():
        (decayed if parameter.ndim > 1 and id(parameter) not in embeddings else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def train(config: RunConfig, resume: bool = False) -> dict[str, Any]:
    """Run to the last step; the result: folder, step, the last step's losses, the checkpoint.

    Raises UserError for whatever is wrong with config, data, cache or run folder, before the first step, and for a
    loss that is not finite.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {config.device}, but torch finds no GPU; set device=cpu")
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.seed)
    prepared = prepare(config, device)
    student = Student(prepared, config.alignment).to(device).train()
    if (source := prepared.cached or prepared.teacher) and not source.trained:
        sys.stderr.write("trainer: the features are those of an UNTRAINED teacher: random weights from a seed\n")
    training = Training(student.policy, student.forcing, make_optimiser(student, config.optimiser))
    run = Path(config.out)
    open_run(run, config, prepared.identity, prepared.statistics, resume)
    if resume:
        start = checkpoint.latest(run)
        if start is not None:
            checkpoint.load(start, training)
        sys.stderr.write(f"trainer: {run}: continuing after step {training.step} of {config.steps}\n")
    with Metrics(run, training.step) as metrics:
        values = _loop(config, prepared.samples, student, training, metrics, run)
    return {"out": str(run), "step": training.step, "checkpoint": str(checkpoint.place(run, training.step)), **values}


def _loop(
    config: RunConfig, samples: Samples, student: Student, training: Training, metrics: Metrics, run: Path
) -> dict[str, float]:
    device = torch.device(config.device)
    stream = batches(samples, training.step, config.steps, config.workers, pin=device.type == "cuda")
    values = metrics.last
    with tqdm(total=config.steps, initial=training.step, unit="step", desc="train", file=sys.stderr) as bar:
        mark = perf_counter()
        for batch in stream:
            loaded = perf_counter()
            losses, norm = take_step(student, training, batch.to(device), config)
            done = perf_counter()
            last = training.step == config.steps
            if last or training.step % config.log_every == 0:
                values = {
                    **losses.values(),
                    "grad_norm": norm,
                    "lr": training.optimiser.param_groups[0]["lr"],
                    "step_seconds": done - loaded,
                    "data_seconds": loaded - mark,
                    "samples_per_second": config.batch_size / (done - mark),
                }
                metrics.write(training.step, values)
                bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            bar.update()
            if last or training.step % config.checkpoint_every == 0:
                metrics.sync()
                checkpoint.save(run, training, config.keep)
            mark = perf_counter()
    return values


def take_step(student: Student, training: Training, batch: Batch, config: RunConfig) -> tuple[Losses, float]:
    """One optimiser step; the losses and the gradient norm before clipping.

    Raises UserError, before any weight is changed, if loss or gradient is not finite.
    """
    step = training.step + 1
    for group in training.optimiser.param_groups:
        group["lr"] = rate(step, config.steps, config.optimiser)
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        losses = student(batch)
    training.optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    norm = float(nn.utils.clip_grad_norm_(student.parameters(), config.optimiser.clip))
    loss = float(losses.total.detach())
    if not (math.isfinite(norm) and math.isfinite(loss)):
        broken = ~torch.isfinite(losses.per_sample)
        where = batch.names(broken if broken.any() else torch.ones_like(broken))
        raise UserError(
            f"step {step}: the loss is {loss}, its gradient's norm {norm}, on {where}; look at these "
            "frames' actions and features; the weights are those of the step before"
        )
    training.optimiser.step()
    training.step = step
    return losses, norm
