"""Scenes: arrays that fit together, the same for the same number, and of no task that is held out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="needs the extra sim")

from catalog.errors import UserError
from tests.test_sim_eval import trainer
from tests.test_sim_render import agreement
from trainer.sim import scenes
from trainer.sim.render import Pose, View
from trainer.sim.scenes import BOUT, HELD_OUT, STANDARD, Series, make_bout, make_scenes
from trainer.sim.tasks import TASKS
from trainer.sim.world import SCENES, STATES_A_SEED, World


def series(out: Path, **other: Any) -> Series:
    return Series(**{"out": out, "count": 16, "views": (1, 3), "size": 64, "seed": 7, **other})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "some"
    make_scenes(series(out))
    return out


def views_of(file: Path) -> list[View]:
    with np.load(file) as scene:
        parts = zip(
            scene["images"], scene["depth"].astype(np.float32), scene["intrinsics"], scene["extrinsics"], strict=True
        )
        return [View(image, depth, Pose(inner, outer)) for image, depth, inner, outer in parts]


def test_arrays_have_the_promised_form(made: Path) -> None:
    counts = set()
    for number in range(16):
        with np.load(series(made).file(number)) as scene:
            count = len(scene["cameras"])
            assert scene["images"].shape == (count, 64, 64, 3) and scene["images"].dtype == np.uint8
            assert scene["depth"].shape == (count, 64, 64) and scene["depth"].dtype == np.float16
            assert scene["intrinsics"].shape == (count, 3, 3) and scene["intrinsics"].dtype == np.float32
            assert scene["extrinsics"].shape == (count, 4, 4) and scene["extrinsics"].dtype == np.float32
            assert str(scene["task"]) in TASKS and str(scene["task"]) not in HELD_OUT
            assert set(scene["cameras"]) == {"random"}
            finite = scene["depth"][np.isfinite(scene["depth"])]
            assert finite.min() > 0.05 and finite.max() < 15 and np.isfinite(scene["depth"]).mean() > 0.5
            assert scene["images"].std() > 5
            counts.add(count)
    assert counts == {1, 2, 3}


def test_the_views_of_a_scene_agree(tmp_path: Path) -> None:
    made = series(tmp_path, views=(2, 2), size=160, count=8, seed=2)
    make_scenes(made)
    shares = [agreement(*views_of(made.file(number))) for number in range(8)]
    assert np.median(shares) > 0.9 and min(shares) > 0.7


def test_a_scene_is_a_function_of_seed_and_number(made: Path, tmp_path: Path) -> None:
    """Made in another order, in the world that others were made in, and after it was deleted: the same bytes."""
    again = series(tmp_path)
    expected = {number: series(made).file(number).read_bytes() for number in range(16)}
    make_bout((again, 1))
    scenes._world.cache_clear()
    other = series(tmp_path / "other", seed=8, standard=(again.task(0),))
    make_bout((other, 0))
    make_bout((again, 0))
    again.file(3).unlink()
    assert make_bout((again, 0)) == 1
    assert {number: again.file(number).read_bytes() for number in range(16)} == expected
    assert other.file(0).read_bytes() != expected[0]


def test_one_world_paints_every_bout_anew(tmp_path: Path) -> None:
    """Bouts of one task, one after the other in the same world, and each in a world of its own."""
    many = series(tmp_path / "one", count=4000)
    task = many.task(0)
    bouts = [bout for bout in range(500) if many.task(bout) == task][:3]
    for bout in bouts:
        make_bout((many, bout))
    alone = series(tmp_path / "two", count=4000)
    scenes._world.cache_clear()
    make_bout((alone, bouts[2]))
    for number in alone.numbers(bouts[2]):
        assert alone.file(number).read_bytes() == many.file(number).read_bytes()


def test_only_what_is_missing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--views", "1", "--size", "32", "--out", tmp_path / "some", "--json"]
    assert trainer("scenes", "--count", BOUT, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["made"] == BOUT
    assert trainer("scenes", "--count", BOUT + 3, *arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out": str(tmp_path / "some"), "scenes": BOUT + 3, "made": 3}
    assert f"{BOUT + 3}/{BOUT + 3}" in captured.err  # the progress bar counts scenes
    assert trainer("scenes", "--count", BOUT, *arguments, "--seed", 1) == 1
    assert "holds other scenes (seed 0, now 1)" in capsys.readouterr().err


def test_standard_cameras_for_tests(tmp_path: Path) -> None:
    made = series(tmp_path, count=3, standard=("hammer",))
    make_scenes(made)
    with np.load(made.file(0)) as scene:
        assert tuple(scene["cameras"]) == STANDARD and len(scene["images"]) == 6 and str(scene["task"]) == "hammer"
        first = scene["extrinsics"][0]
    with np.load(made.file(2)) as scene:
        assert np.array_equal(scene["extrinsics"][0], first)


def test_scenes_start_where_no_demonstration_and_no_evaluation_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    reset = World.reset
    monkeypatch.setattr(World, "reset", lambda self, number: (numbers.append(number), reset(self, number)))
    make_bout((series(tmp_path, count=1, seed=0, size=16, standard=("reach",)), 0))
    assert len(numbers) == 1 and SCENES <= numbers[0] < SCENES + STATES_A_SEED


def test_held_out_tasks_never_appear() -> None:
    drawn = {series(Path(), count=10**6).task(bout) for bout in range(2000)}
    assert drawn == set(TASKS) - set(HELD_OUT) and len(HELD_OUT) == 9


def test_another_seed_gives_other_tasks() -> None:
    one, other = ([series(Path(), seed=seed).task(bout) for bout in range(20)] for seed in (7, 8))
    assert one != other


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer("scenes", "--count", 1, "--views", "a..b", "--out", tmp_path / "x") == 2
    assert "--views is a..b" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--views 3\.\.1"):
        make_scenes(series(tmp_path / "x", views=(3, 1)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no scenes"):
        make_scenes(series(tmp_path))


def test_random_scenes_of_the_tasks_asked_for(tmp_path: Path) -> None:
    made = series(tmp_path, count=3, tasks=("hammer", "push"))
    assert all(made.task(bout) in ("hammer", "push") for bout in range(20))
    assert len({made.task(bout) for bout in range(20)}) == 2
    assert make_scenes(made)["made"] == 3
    with np.load(made.file(2)) as scene:
        assert str(scene["task"]) in ("hammer", "push")
        assert set(scene["cameras"].tolist()) == {"random"}
    with pytest.raises(UserError, match="tasks"):
        make_scenes(series(tmp_path, count=3))
