"""Checkpoints: whole or not at all. A folder is written under a temporary name, synced, and renamed into place.

checkpoints/step-00000040/
  model.safetensors        the student
  projector.safetensors    the alignment's projector, where there is one
  optimiser.pt             AdamW's moments, the projector's too; read with weights_only
  random.pt                the states of every random generator; read with weights_only
  config.yaml, identity.json, statistics.json      as in the run's folder: a checkpoint can be used without it
  state.json               written last: step, size and sha256 of each file
"""

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from catalog.cache.commit import TEMPORARY, publish
from catalog.identity import file_digest
from trainer.run import CONFIG, IDENTITY, STATISTICS

FOLDER = "checkpoints"
STATE = "state.json"


@dataclass
class Training:
    """Everything that a step changes."""

    policy: nn.Module
    projector: nn.Module | None
    optimiser: torch.optim.Optimizer
    step: int = 0  # steps done; the place in the data follows from it (`trainer.samples`)


def place(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / FOLDER / f"step-{step:08d}"


def save(run: Path, training: Training, keep: int) -> Path:
    """Write a checkpoint of the run in folder `run`, durably, and delete all but the last `keep`."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
    part = folder / f"{TEMPORARY}{uuid4().hex}"
    part.mkdir()
    save_file(_contiguous(training.policy), part / "model.safetensors")
    if training.projector is not None:
        save_file(_contiguous(training.projector), part / "projector.safetensors")
    torch.save(training.optimiser.state_dict(), part / "optimiser.pt")
    torch.save(_random_state(), part / "random.pt")
    for name in (CONFIG, IDENTITY, STATISTICS):
        shutil.copy(run / name, part / name)
    files = {path.name: {"size": path.stat().st_size, "sha256": file_digest(path)} for path in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({"step": training.step, "files": files}, indent=1))
    for path in part.iterdir():
        shutil.copymode(part / STATE, path)  # safetensors lets its owner alone read a file
        _sync(path)
    final = place(run, training.step)
    if final.exists():  # resuming made sure that it is damaged, else it would have been the start
        shutil.rmtree(final)
    publish(part, final)
    for old in _by_step(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def latest(run: Path) -> Path | None:
    """The last checkpoint of a run whose files are all as they were written; what is damaged is named on stderr."""
    for path in reversed(_by_step(run / FOLDER)):
        problem = _damage(path)
        if problem is None:
            return path
        sys.stderr.write(f"trainer: {path}: {problem}; taking the checkpoint before it\n")
    return None


def load(path: Path, training: Training) -> None:
    """Put a checkpoint's state into `training`, the random generators included."""
    device = next(training.policy.parameters()).device
    training.policy.load_state_dict(load_file(path / "model.safetensors", device=str(device)))
    if training.projector is not None:
        training.projector.load_state_dict(load_file(path / "projector.safetensors", device=str(device)))
    training.optimiser.load_state_dict(torch.load(path / "optimiser.pt", map_location=device, weights_only=True))
    training.step = json.loads((path / STATE).read_text())["step"]
    _restore_random(torch.load(path / "random.pt", map_location="cpu", weights_only=True))


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _damage(path: Path) -> str | None:
    try:
        state = json.loads((path / STATE).read_text())
        for name, file in state["files"].items():
            if (path / name).stat().st_size != file["size"] or file_digest(path / name) != file["sha256"]:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError) as error:
        return f"not whole ({error})"
    return None


def _contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(key) for key in keys], *rest],
        "python": [version, list(numbers), gauss],
    }


def _restore_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
