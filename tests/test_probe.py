"""The depth probe: its numbers on maps made by hand, what it can and cannot read, and the whole command."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from catalog.command import run as run_command
from catalog.datasets import open_dataset
from catalog.errors import UserError
from tests.conftest import Command
from trainer.config import RunConfig, build, to_values, with_settings
from trainer.hook import HiddenState
from trainer.prepare import prepare
from trainer.presets import PRESETS
from trainer.probe.arms import no_image
from trainer.probe.cli import add_commands
from trainer.probe.depth import read_depth
from trainer.probe.fit import Inputs, Probe, Settings, fit, offsets
from trainer.probe.frames import Frames, read_frames, split_episodes
from trainer.probe.heads import Kind, spread
from trainer.probe.measure import Bootstrap, by_episode, metrics, sums
from trainer.probe.policy import load, tokens, untrained
from trainer.probe.probe import hide
from trainer.train import train

GRID = (4, 4)


def probe(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="trainer")
    add_commands(parser.add_subparsers())
    return run_command(parser, ["probe", *map(str, arguments)])


# The numbers.


def test_metrics_of_constructed_maps() -> None:
    true = torch.tensor([[[1.0, 2.0], [4.0, torch.inf]], [[10.0, 10.5], [torch.nan, 0.0]]])
    predicted = torch.tensor([[[1.1, 1.0], [5.2, 3.0]], [[8.0, 1.0], [1.0, 1.0]]])
    each = sums(predicted, true)
    # Of the first map three pixels count, of the second one: 10.5 m is beyond the limit.
    assert each[:, 0].tolist() == [3, 1]
    first = metrics(each[0])
    assert first["abs_rel"] == pytest.approx((0.1 + 0.5 + 0.3) / 3)
    assert first["rmse"] == pytest.approx(np.sqrt((0.01 + 1 + 1.44) / 3))
    assert first["delta"] == pytest.approx(1 / 3)
    assert metrics(each[1])["delta"] == 0  # 10 / 8 is 1.25, not below it
    both = metrics(each.sum(0))
    assert both["abs_rel"] == pytest.approx((0.9 + 0.2) / 4) and both["rmse"] == pytest.approx(np.sqrt(6.45 / 4))
    assert np.isnan(metrics(sums(predicted[:1], torch.full((1, 2, 2), torch.inf))[0])["abs_rel"])


def of_errors(errors: np.ndarray, pixels: float = 100.0) -> np.ndarray:
    """Sums of episodes whose AbsRel is `errors`."""
    return np.stack([np.full(len(errors), pixels), pixels * errors, pixels * errors**2, np.zeros(len(errors))], axis=-1)


def test_the_bootstrap_draws_episodes() -> None:
    errors = np.random.default_rng(0).normal(0.3, 0.05, 60)
    bootstrap = Bootstrap.of(60, seed=0)
    found = bootstrap.summary(of_errors(errors))["abs_rel"]
    half = 1.96 * errors.std() / np.sqrt(60)
    assert found["value"] == pytest.approx(errors.mean())
    assert found["low"] == pytest.approx(errors.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(errors.mean() + half, abs=0.1 * half)
    # A hundred more copies of every frame say nothing new, and frames that differ within like episodes neither.
    assert bootstrap.summary(of_errors(errors, 10_000))["abs_rel"]["low"] == pytest.approx(found["low"])
    frames = of_errors(np.tile([0.1, 0.9], 60))
    alike = by_episode(frames, np.repeat(np.arange(5, 65), 2), {number: number - 5 for number in range(5, 65)})
    same = bootstrap.summary(alike)["abs_rel"]
    assert same["low"] == pytest.approx(0.5) and same["high"] == pytest.approx(0.5)
    # Paired: an arm that is worse by the same in every episode is worse by exactly that.
    worse = bootstrap.difference(of_errors(errors + 0.02), of_errors(errors))["abs_rel"]
    assert [worse[name] for name in ("value", "low", "high")] == pytest.approx([0.02] * 3)
    alone = Bootstrap.of(1, seed=0).summary(of_errors(errors[:1]))["abs_rel"]
    assert alone["value"] is not None and alone["low"] is None


# What a probe can read.


def scene(maps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Depth [M, 16, 16] that is flat within each of 4x4 tokens, between 0.5 and 5 m; and its log [M, 16]."""
    log = torch.rand(maps, 16, generator=torch.Generator().manual_seed(seed)) * np.log(10) + np.log(0.5)
    depth = log.exp().unflatten(1, GRID).repeat_interleave(4, 1).repeat_interleave(4, 2)
    depth[:, 0, 0] = torch.inf
    return depth.half(), log


def encode(log: Tensor, channels: int, noise: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    direction, start = torch.randn(2, channels, generator=generator)
    out = 30 * torch.randn(*log.shape, channels, generator=generator) if noise else log[..., None] * direction + start
    return out.half()


@pytest.mark.parametrize(
    ("kind", "channels", "noise"), [("linear", 12, False), ("linear", 40, False), ("linear", 12, True)]
)
def test_it_finds_what_is_there_and_nothing_else(kind: Kind, channels: int, noise: bool) -> None:
    depth, log = scene(160, seed=0)
    values = encode(log, channels, noise)
    offset = offsets(depth[:128], 1).repeat(160)
    found = fit(kind, [values[:128]], depth[:128], offset[:128], Settings(GRID, 12, steps=250, seed=0))
    predicted = torch.cat(list(found.predict([values[128:]], offset[128:])))
    error = metrics(sums(predicted, depth[128:]).sum(0))["abs_rel"]
    level = metrics(sums(no_image(depth[:128], 1).expand(32, -1, -1), depth[128:]).sum(0))["abs_rel"]
    assert level > 0.5
    # Not zero: values are resized to pixels, which blurs the edges of tokens by what a token's block is wide.
    assert error < 0.1 if not noise else error > 0.9 * level


def test_dpt_reads_what_lies_in_any_of_its_layers() -> None:
    depth, log = scene(96, seed=0)
    right, wrong = encode(log, 12, noise=False), encode(log, 12, noise=True)
    offset = offsets(depth[:80], 1).repeat(96)
    layers = [wrong, wrong, right, wrong]
    settings = Settings(GRID, 12, steps=120, seed=0)
    found = fit("dpt", [each[:80] for each in layers], depth[:80], offset[:80], settings)
    predicted = torch.cat(list(found.predict([each[80:] for each in layers], offset[80:])))
    assert metrics(sums(predicted, depth[80:]).sum(0))["abs_rel"] < 0.3
    assert spread([0, 1, 2, 3, 4]) == [0, 1, 3, 4] and spread([23]) == [23] * 4 and spread([1, 2]) == [1, 1, 2, 2]


def test_capacity_is_equal_and_a_fit_repeats() -> None:
    depth, log = scene(32, seed=0)
    made: list[Probe] = []
    for channels in (12, 40, 40):
        values = encode(log, channels, noise=True)
        made.append(fit("linear", [values], depth, torch.zeros(32), Settings(GRID, 12, steps=1, seed=3)))
    assert len({each.parameters_learned for each in made}) == 1
    assert all(torch.equal(*pair) for pair in zip(made[1].parameters(), made[2].parameters(), strict=True))
    wide = encode(log, 40, noise=True)
    read = Inputs(wide, 12, seed=3)(wide)
    assert read.shape == (32, 16, 12) and float(read.square().mean()) == pytest.approx(1, abs=0.1)
    constant = torch.ones(2, 16, 12).half()
    assert torch.isfinite(Inputs(constant, 12, seed=0)(constant)).all()


def test_no_image_is_the_mean_of_each_pixel_and_camera() -> None:
    maps = torch.tensor(
        [[[1.0, torch.inf]], [[2.0, 3.0]], [[4.0, torch.inf]], [[8.0, 3.0]]]
    ).half()  # 2 frames, 2 views
    found = no_image(maps, 2)
    assert found.flatten().tolist() == pytest.approx([2, 2, 4, 3], rel=1e-3)
    assert offsets(maps, 2).tolist() == pytest.approx([np.log(2), np.log(4 * 3) / 2], rel=1e-3)


def test_what_the_teacher_did_not_see_counts_for_nobody() -> None:
    depth = torch.ones(4, 4, 4).half()
    hide(depth, torch.tensor([[True, True, True, True], [True, False, True, True]]), (2, 2))
    assert torch.isfinite(depth[0]).all() and torch.isfinite(depth[2]).all()
    assert torch.isinf(depth[1, :2, 2:]).all() and torch.isinf(depth[3]).sum() == 4


# The whole of it, on demonstrations of the simulator.


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six demonstrations of two tasks with depth, 64 pixels. Read only: copy it before you change it."""
    pytest.importorskip("metaworld", reason="needs the extra sim")
    from trainer.sim.demos import demonstrations

    out = tmp_path_factory.mktemp("probe") / "demos"
    demonstrations(out, ("reach", "push"), 3, ("corner2", "gripperPOV"), 64, True)
    return out


def config(demos: Path, out: Path, *more: str) -> RunConfig:
    views = "data.views=gripperPOV,corner2"  # not the dataset's order
    settings = [f"data.dataset={demos}", "data.episodes=0:4", views, f"out={out}", "alignment.mode=none"]
    return build(with_settings(to_values(PRESETS["debug"]), [*settings, *more]))


@pytest.fixture(scope="module")
def policy(demos: Path) -> Path:
    """A run of the debug preset."""
    out = demos.parent / "policy"
    train(config(demos, out))
    return out


@pytest.fixture(scope="module")
def cache(demos: Path, command: Command, tiny_config: Path) -> Path:
    """Features of every eighth frame from a tiny teacher, 64 channels; the policy's are 32."""
    out = demos.parent / "tiny.zarr"
    line = f"extract --dataset {demos} --teacher vggt --teacher-config {tiny_config} --views corner2,gripperPOV"
    line += f" --grid native --stride 8 --device cpu --executor inline --out {out}"
    command("pipeline", *line.split())
    return out


def some_frames(demos: Path, *cameras: str) -> Frames:
    dataset = open_dataset(demos)
    keys = [f"observation.images.{camera}" for camera in cameras or ("corner2", "gripperPOV")]
    return read_frames(dataset, keys, [0, 4], [5], 8)


def test_the_command(demos: Path, policy: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    line = ["--dataset", demos, "--cache", cache, "--stride", 8, "--steps", 12, "--test-episodes", "1,5", "--out", out]
    assert probe(policy, *line) == 0
    said = capsys.readouterr()
    assert "probes of policy" in said.err and "UNTRAINED" in said.err and "1 of the 2 test episodes" in said.err
    result = json.loads((out / "probe.json").read_text())
    names = [arm["name"] for arm in result["arms"]]
    assert names == ["random", "policy", "teacher (untrained)"] and result["width"] == 32
    assert result["train_episodes"] == [0, 2, 3, 4] and result["test_episodes"] == [1, 5]
    rows = [(each["arm"], each["probe"], each["layers"], each["width"]) for each in result["results"]]
    student = [("linear", [0], 32), ("linear", [1], 32), ("linear", [2], 32), ("dpt", [0, 1, 1, 2], 32)]
    teacher = [("linear", [3], 32), ("dpt", [3] * 4, 32), ("linear", [3], 64), ("dpt", [3] * 4, 64)]
    expected = [("no image", None, [], None)]
    expected += [(name, *each) for name, arm in zip(names, (student, student, teacher), strict=True) for each in arm]
    assert rows == expected
    assert len({each["pixels"] for each in result["results"]}) == 1  # the same pixels for every arm
    for each in result["results"]:
        for where in (each["all"], each["cameras"]["corner2"], each["cameras"]["gripperPOV"]):
            assert where["abs_rel"]["low"] <= where["abs_rel"]["value"] <= where["abs_rel"]["high"]
        assert set(each["episodes"]) == {"1", "5"}
    assert {each["minus"] for each in result["differences"]} == {"random"} and len(result["differences"]) == 4
    assert said.out.count("\n") == len(rows) + 1 and said.out.startswith("arm")
    text = (out / "probe.md").read_text()
    assert "## gripperPOV" in text and "## Differences" in text and f"| {names[2]} | dpt | 3, 3, 3, 3 | 64 |" in text
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("layers.png", "depths.png"))


def test_tokens_are_those_of_training(demos: Path, policy: Path) -> None:
    """The same hidden states as the trainer's own batches give, in the order of the probe's cameras."""
    frames = some_frames(demos)
    frozen = load(policy, frames.dataset)
    frozen.policy.proprio_projector.fc2.weight.mul_(300)  # else a policy so young hardly looks at the state
    found = tokens(frozen, frames, [1, 2], "cpu")
    prepared = prepare(config(demos, demos), torch.device("cpu"))
    prepared.policy.load_state_dict(frozen.policy.state_dict())
    numbers = prepared.samples.numbers
    places = np.flatnonzero((numbers.episode == 0) & (numbers.frame % 8 == 0))
    capture = HiddenState(prepared.policy.layers, prepared.policy.final_norm, 2)
    with torch.inference_mode(), capture:  # in this order: the hook asks on entry whether gradients are wanted
        prepared.policy(prepared.samples.batch(places))
        expected = prepared.policy.image_tokens(capture.value, 2)[:, [1, 0]].flatten(0, 1)
    assert found[2].shape == (len(frames.depth), 16, 32) and found[2].dtype == torch.float16
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found[2][: len(expected)].float(), expected, atol=1e-2, rtol=1e-2)
    fresh = untrained(frozen, "random", seed=0)
    assert untrained(frozen, "random", seed=0).policy.state_dict().keys() == frozen.policy.state_dict().keys()
    other = tokens(fresh, frames, [2], "cpu")[2]
    assert not torch.allclose(other.float(), found[2].float(), atol=0.1)
    assert torch.equal(other, tokens(untrained(frozen, "random", seed=0), frames, [2], "cpu")[2])
    for name, weights in fresh.policy.state_dict().items():  # nothing of the trained policy is left in it
        if weights.ndim > 1:
            assert not torch.equal(weights, frozen.policy.state_dict()[name]), name


def test_depth_is_joined_by_episode_and_frame(demos: Path, tmp_path: Path) -> None:
    frames = some_frames(demos)
    for number, (episode, frame) in enumerate(zip(frames.episode, frames.frame, strict=True)):
        for view, camera in enumerate(("corner2", "gripperPOV")):
            with np.load(demos / "depth" / camera / f"episode-{episode:06d}.npz") as file:
                assert np.array_equal(frames.depth[2 * number + view].numpy(), file["depth"][frame])
    copied = tmp_path / "copied"
    shutil.copytree(demos, copied)
    path = copied / "depth" / "corner2" / "episode-000000.npz"
    with np.load(path) as file:
        depth = file["depth"]
    np.savez(path, depth=depth[::-1], frame_index=np.arange(len(depth))[::-1])
    dataset = open_dataset(copied)
    assert np.array_equal(read_depth(dataset, "observation.images.corner2", 0, [7, 3]), depth[[7, 3]])
    np.savez(path, depth=depth[:-1])
    with pytest.raises(UserError, match="edited without its depth"):
        read_depth(dataset, "observation.images.corner2", 0, [0])


def test_episodes_are_split_across_tasks(demos: Path) -> None:
    dataset = open_dataset(demos)
    assert split_episodes(dataset, None, None) == ([0, 1, 2, 4, 5], [3])
    assert split_episodes(dataset, "0:2", None) == ([0, 1], [2, 3, 4, 5])
    assert split_episodes(dataset, "0:2", "5") == ([0, 1], [5])


def test_mistakes_are_one_line(
    demos: Path, policy: Path, metaworld: Path, tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one_camera = tmp_path / "one-camera"
    shutil.copytree(demos, one_camera)
    info = json.loads((one_camera / "meta" / "info.json").read_text())
    del info["features"]["observation.images.gripperPOV"]
    (one_camera / "meta" / "info.json").write_text(json.dumps(info))
    good = ["--dataset", demos, "--stride", 8, "--out", tmp_path / "out"]
    mistakes: list[tuple[list[object], int, list[str]]] = [
        ([policy, *good, "--dataset", metaworld], 1, ["no depth of camera", "trainer demos --depth"]),
        ([policy, *good, "--dataset", one_camera], 1, ["gripperPOV", "expected one of: corner2"]),
        (
            [policy, *good, "--train-episodes", "0:4", "--test-episodes", "3:6"],
            1,
            ["episodes 3 are in --train-episodes and in --test-episodes", "name each in one"],
        ),
        ([policy, *good, "--layers", "0,9"], 1, ["layer 9 does not exist", "has 2 layers"]),
        ([policy, *good, "--layers", "last"], 2, ["--layers is 'last'", "0,2,4"]),
        ([policy, *good, "--stride", 0], 2, ["--stride is 0"]),
        ([policy, *good, "--cache", tiny_cache], 1, ["have no features of their pixels", "extract again"]),
        ([policy, policy, *good], 1, ["named alike"]),
        ([tmp_path, *good], 1, ["no config.yaml", "expected the folder of a run"]),
    ]
    for arguments, code, words in mistakes:
        assert probe(*arguments) == code
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line]
        assert len(lines) == 1 and said.out == "", lines
        assert all(word in lines[0] for word in words), lines
    assert not (tmp_path / "out").exists()
