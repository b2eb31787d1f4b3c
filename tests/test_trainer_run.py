"""Whole runs of the tiny preset: what they learn from, what they refuse, what they say."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from catalog.errors import UserError
from tests.conftest import GOLDEN, REPOSITORY
from trainer import metrics
from trainer.config import RunConfig, build, to_values, with_settings
from trainer.prepare import prepare
from trainer.presets import PRESETS
from trainer.student import Student
from trainer.train import make_optimiser, rate, take_step, train

VIEWS = "data.views=corner2,gripperPOV"


@pytest.fixture
def settings(tmp_path: Path, metaworld: Path, tiny_cache: Path, tiny_config: Path) -> list[str]:
    """The debug preset on the tiny cache, in a folder of its own."""
    return [
        f"out={tmp_path / 'run'}",
        f"data.dataset={metaworld}",
        f"data.cache={tiny_cache}",
        "alignment.mode=cached",
        VIEWS,
        "alignment.teacher=vggt",
        f"alignment.weights={GOLDEN / 'public_weights.safetensors'}",
        f"alignment.teacher_config={tiny_config}",
    ]


def config(settings: list[str], *more: str) -> RunConfig:
    return build(with_settings(to_values(PRESETS["debug"]), [*settings, *more]))


def test_cached_and_online_give_the_same_losses(settings: list[str], tmp_path: Path) -> None:
    losses = {}
    for mode in ("cached", "online"):
        train(config(settings, "steps=20", f"alignment.mode={mode}", f"out={tmp_path / mode}"))
        lines = metrics.read(tmp_path / mode)
        assert [line["step"] for line in lines] == list(range(1, 21))
        losses[mode] = [(line["loss"], line["action_loss"], line["align_loss"]) for line in lines]
    np.testing.assert_allclose(losses["cached"], losses["online"], atol=1e-3, rtol=0)
    aligned = [align for _, _, align in losses["cached"]]
    assert aligned[-1] < aligned[0] - 0.1  # and something was learned


def test_total_is_action_plus_coefficient_times_alignment(settings: list[str], tmp_path: Path) -> None:
    result = train(config(settings, "alignment.coefficient=0.25", "log_every=3"))
    lines = metrics.read(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 8]
    for line in lines:
        assert line["loss"] == pytest.approx(line["action_loss"] + 0.25 * line["align_loss"], abs=1e-6)
        assert line["cosine"] == pytest.approx(1 - line["align_loss"])
        assert {"grad_norm", "lr", "step_seconds", "data_seconds", "samples_per_second"} <= set(line)
    assert result["step"] == 8 and result["loss"] == lines[-1]["loss"]
    assert (Path(result["checkpoint"]) / "projector.safetensors").is_file()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_without_alignment_there_is_no_projector(settings: list[str], tmp_path: Path) -> None:
    none = config(settings, "alignment.mode=none")
    student = Student(prepare(none, torch.device("cpu")), none.alignment)
    assert student.forcing is None and student.teacher is None
    assert not any(module._forward_pre_hooks for module in student.modules())
    assert all(name.startswith("policy.") for name, _ in student.named_parameters())
    result = train(none)
    assert "align_loss" not in metrics.read(tmp_path / "run")[0]
    assert not (Path(result["checkpoint"]) / "projector.safetensors").exists()


def test_the_teacher_is_not_in_memory_unless_online(settings: list[str], tmp_path: Path) -> None:
    arguments = ["run", "debug", "--json", "--set", "steps=2"]
    for setting in settings:
        arguments += ["--set", setting]
    code = (
        "import sys; from trainer.cli import main\n"
        "for mode in ('none', 'cached'):\n"
        f"    more = ['--set', 'alignment.mode=' + mode, '--set', 'out={tmp_path}/' + mode]\n"
        "    assert main([*sys.argv[1:], *more]) == 0\n"
        "assert not {name.split('.')[0] for name in sys.modules} & {'pipeline', 'ray'}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    # stdout holds the results and nothing else
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [2, 2]


def test_the_students_weights_do_not_depend_on_the_alignment(settings: list[str]) -> None:
    students = []
    for mode in ("none", "cached"):
        torch.manual_seed(0)
        one = config(settings, f"alignment.mode={mode}")
        students.append(Student(prepare(one, torch.device("cpu")), one.alignment))
    pairs = zip(students[0].policy.parameters(), students[1].policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_action_that_is_nan_is_named(settings: list[str], metaworld: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(metaworld, damaged)
    path = next(damaged.glob("data/**/*.parquet"))
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    names = zip(table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
    row = list(names).index((1, 5))
    actions[row][2] = float("nan")
    field = table.schema.field("action")
    pq.write_table(table.set_column(table.schema.get_field_index("action"), field, pa.array(actions, field.type)), path)
    with pytest.raises(UserError, match=r"episode 1, frame 5: action\[2\] is nan"):
        train(config(settings, f"data.dataset={damaged}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["actions", "features"])
def test_a_loss_that_is_not_finite_names_its_frames_and_changes_nothing(settings: list[str], field: str) -> None:
    from trainer.checkpoint import Training

    one = config(settings, "batch_size=4")
    prepared = prepare(one, torch.device("cpu"))
    student = Student(prepared, one.alignment).train()
    training = Training(student.policy, student.forcing, make_optimiser(student, one.optimiser))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    batch = prepared.samples[0]
    broken = getattr(batch, field).clone()
    broken[2] = float("inf")
    episode, frame = int(batch.episodes[2]), int(batch.frames[2])
    with pytest.raises(UserError, match=f"step 1: the loss is (nan|inf), .* on episode {episode} frame {frame};"):
        take_step(student, training, replace(batch, **{field: broken}), one)
    assert training.step == 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def refused(settings: list[str], match: str, *more: str, resume: bool = False) -> None:
    with pytest.raises(UserError, match=match):
        train(config(settings, *more), resume)


def test_caches_that_do_not_belong_are_refused_before_the_first_step(
    settings: list[str], tmp_path: Path, tiny_cache: Path, samples: Path
) -> None:
    unsealed = tmp_path / "unsealed.zarr"
    shutil.copytree(tiny_cache, unsealed)
    (unsealed / "manifest.parquet").unlink()
    refused(settings, "not sealed", f"data.cache={unsealed}")
    refused(settings, "not a feature cache", f"data.cache={tmp_path}")
    refused(settings, "3 of 5 episodes .* match, 2 ", "data.episodes=0:5")
    refused(settings, "no tap 'tokens/2'", "alignment.teacher_layer=2")
    foreign = [f"data.dataset={samples / 'lerobot_v3_sample'}", "data.views=front"]
    refused(settings, "no features of view observation.images.front", *foreign)
    assert not (tmp_path / "run").exists()


def test_other_pixels_under_the_same_names_are_refused(settings: list[str], metaworld: Path, tmp_path: Path) -> None:
    """The two cameras exchanged: every name fits, no pixel does."""
    foreign = tmp_path / "foreign"
    shutil.copytree(metaworld, foreign)
    one, two = (foreign / "videos" / f"observation.images.{name}" for name in ("corner2", "gripperPOV"))
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    refused(settings, "0 of 2 episodes .* match", f"data.dataset={foreign}")


def test_what_does_not_fit_the_model_is_refused(settings: list[str], tmp_path: Path) -> None:
    refused(settings, "layer 3 does not exist: the model has 2 layers", "alignment.layer=3")
    refused(settings, "no camera named 'corner'", "data.views=corner")
    refused(settings, "unknown teacher 'vgt'", "alignment.mode=online", "alignment.teacher=vgt")
    refused(settings, "expected ROWSxCOLUMNS", "alignment.mode=online", "alignment.grid=16")
    assert not (tmp_path / "run").exists()


def test_a_run_is_continued_by_the_same_run_alone(settings: list[str], tmp_path: Path, samples: Path) -> None:
    train(config(settings))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    refused(settings, "holds a run already; continue it with --resume")
    difference = r"config is not the same \(optimiser.lr: found 0.001, asked for 0.002\)"
    refused(settings, difference, "optimiser.lr=0.002", resume=True)
    refused(settings, "steps: found 8, asked for 9", "steps=9", resume=True)
    copy = tmp_path / "edited"
    shutil.copytree(config(settings).data.dataset, copy)
    path = next(copy.glob("data/**/*.parquet"))
    table = pq.read_table(path)
    states = np.asarray(table["observation.state"].to_pylist()) + 1
    field = table.schema.field("observation.state")
    index = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(index, field, pa.array(states.tolist(), field.type)), path)
    refused(settings, r"data is not the same \(numbers: found", f"data.dataset={copy}", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    # What changes no loss may change; a run that is done stays as it is.
    result = train(config(settings, "workers=1", "log_every=5"), resume=True)
    assert result["step"] == 8 and (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    refused(settings, "exists and is not a run", f"out={other}")


def test_another_cache_is_refused(
    settings: list[str], tmp_path: Path, extract_arguments: list[str], command: Any
) -> None:
    train(config(settings))
    pooled = [{"native": "2x2"}.get(argument, argument) for argument in extract_arguments]
    command("pipeline", *pooled, "--out", tmp_path / "pooled.zarr")
    refused(settings, r"features.cache_id: found", f"data.cache={tmp_path / 'pooled.zarr'}", resume=True)


def test_learning_rate() -> None:
    optimiser = PRESETS["demo"].optimiser
    rates = [rate(step, 60, optimiser) for step in range(1, 61)]
    assert rates[:5] == pytest.approx([optimiser.lr * k / 5 for k in range(1, 6)])
    assert rates[-1] == pytest.approx(optimiser.lr / 10)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rate(1, 10, replace(optimiser, warmup=0)) <= optimiser.lr


def test_biases_norms_and_embeddings_are_not_decayed(settings: list[str]) -> None:
    one = config(settings)
    student = Student(prepare(one, torch.device("cpu")), one.alignment)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, plain = ([names[id(p)] for p in g["params"]] for g in make_optimiser(student, one.optimiser).param_groups)
    assert sorted(decayed + plain) == sorted(names.values())
    assert "forcing.fc1.weight" in decayed and "forcing.fc1.bias" in plain
    assert "policy.vlm.language_model.embed_tokens.weight" in plain
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
