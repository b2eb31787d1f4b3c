"""Checkpoints: whole or not at all, and a killed run resumes to the losses that it would have had."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from catalog.cache.commit import TEMPORARY
from tests.conftest import REPOSITORY
from trainer import checkpoint, metrics
from trainer.checkpoint import FOLDER, Training
from trainer.run import CONFIG, IDENTITY, STATISTICS

STEPS, EVERY = 60, 7
LOSSES = ("step", "loss", "action_loss", "align_loss", "grad_norm", "lr")


def make(seed: int) -> Training:
    torch.manual_seed(seed)
    policy, projector = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.BatchNorm1d(2)
    optimiser = torch.optim.AdamW([*policy.parameters(), *projector.parameters()], lr=0.1)
    return Training(policy, projector, optimiser)


def learn(training: Training) -> None:
    assert training.projector is not None
    loss = training.projector(training.policy(torch.randn(5, 3))).square().sum() * random.random() * np.random.rand()
    training.optimiser.zero_grad()
    loss.backward()
    training.optimiser.step()
    training.step += 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in (CONFIG, IDENTITY, STATISTICS):
        (tmp_path / name).write_text(name)
    return tmp_path


def states(training: Training) -> dict[str, torch.Tensor]:
    assert training.projector is not None
    moments = training.optimiser.state_dict()["state"]
    out = {f"{number}.{name}": value for number, each in moments.items() for name, value in each.items()}
    return out | training.policy.state_dict() | {f"p.{k}": v for k, v in training.projector.state_dict().items()}


def test_training_goes_on_to_the_bit(run: Path) -> None:
    training = make(0)
    for _ in range(3):
        learn(training)
    path = checkpoint.save(run, training, keep=2)
    assert {file.name for file in path.iterdir()} == {
        *("model.safetensors", "projector.safetensors", "optimiser.pt", "random.pt", "state.json"),
        *(CONFIG, IDENTITY, STATISTICS),
    }
    for _ in range(3):
        learn(training)
    again = make(99)
    checkpoint.load(path, again)
    assert again.step == 3
    for _ in range(3):
        learn(again)
    for name, value in states(training).items():
        assert torch.equal(value, states(again)[name]), name


def test_the_last_whole_one_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.latest(run) is None
    training = make(0)
    paths = []
    for _ in range(4):
        learn(training)
        paths.append(checkpoint.save(run, training, keep=3))
    assert [path.exists() for path in paths] == [False, True, True, True]
    assert checkpoint.latest(run) == paths[3]
    with open(paths[3] / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    (paths[2] / "optimiser.pt").unlink()
    assert checkpoint.latest(run) == paths[1]
    told = capsys.readouterr().err
    assert "model.safetensors is not as it was written" in told and "not whole" in told
    checkpoint.load(paths[1], training)
    learn(training)
    assert checkpoint.save(run, training, keep=3) == paths[2]  # in the place of the damaged one
    assert checkpoint.latest(run) == paths[2]


def test_a_half_written_one_is_no_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make(0)
    learn(training)
    first = checkpoint.save(run, training, keep=2)
    learn(training)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(run, training, keep=2)
    assert len(list((run / FOLDER).glob(f"{TEMPORARY}*"))) == 1
    assert checkpoint.latest(run) == first
    second = checkpoint.save(run, training, keep=2)
    assert sorted((run / FOLDER).iterdir()) == [first, second]


def test_metrics_are_cut_back(tmp_path: Path) -> None:
    with metrics.Metrics(tmp_path, 0) as out:
        for step in range(1, 6):
            out.write(step, {"loss": step / 3})
    with open(tmp_path / metrics.METRICS, "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5]
    with metrics.Metrics(tmp_path, 3) as out:
        assert out.last == {"loss": 1.0}
        out.write(4, {"loss": 9.0})
    whole = [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 9.0)]
    assert metrics.read(tmp_path) == [{"step": step, "loss": loss} for step, loss in whole]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    events = board.Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert [event.value for event in events] == pytest.approx([loss for _, loss in whole])


def arguments(out: Path, workers: int, metaworld: Path, cache: Path) -> list[str]:
    settings = {
        **{"out": out, "workers": workers, "steps": STEPS, "checkpoint_every": EVERY},
        **{"data.dataset": metaworld, "data.cache": cache, "alignment.mode": "cached"},
    }
    line = [sys.executable, "-m", "trainer.cli", "run", "debug", "--resume"]
    return [*line, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def start(line: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    with open(log, "ab") as file:
        return subprocess.Popen(line, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, metaworld: Path, tiny_cache: Path) -> list[list[float]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(arguments(folder / "run", 0, metaworld, tiny_cache), folder / "log")
    assert process.wait() == 0, (folder / "log").read_text()
    return losses(folder / "run")


def losses(run: Path) -> list[list[float]]:
    return [[line[name] for name in LOSSES] for line in metrics.read(run)]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_uninterrupted(
    uninterrupted: list[list[float]], tmp_path: Path, metaworld: Path, tiny_cache: Path, workers: int
) -> None:
    assert len(uninterrupted) == STEPS
    run, log = tmp_path / "run", tmp_path / "log"
    line = arguments(run, workers, metaworld, tiny_cache)
    kill_at = random.Random().randrange(1, STEPS - 20)
    process = start(line, log)
    while len(metrics.read(run)) < kill_at:
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"it was done before it was killed at step {kill_at}"
    left = losses(run)
    assert kill_at <= len(left) < STEPS
    whole = checkpoint.latest(run)
    step = int(whole.name.removeprefix("step-")) if whole else 0
    assert len(left) - EVERY <= step <= len(left)

    process = start(line, log)
    assert process.wait() == 0, log.read_text()
    assert f"continuing after step {step} of" in log.read_text()
    assert losses(run) == uninterrupted, f"killed at step {kill_at}"
