"""Demonstrations: a whole LeRobot dataset whatever happens while it is written."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("metaworld", reason="needs the extra sim")

from catalog.datasets import open_dataset
from catalog.datasets.statistics import column_statistics
from catalog.errors import UserError
from tests.test_sim_eval import trainer
from trainer.sim import demos
from trainer.sim.assemble import ATTEMPTS
from trainer.sim.clip import encode
from trainer.sim.crew import do_all
from trainer.sim.policy import Expert, Sight
from trainer.sim.statistics import number_statistics, picture_statistics, together
from trainer.sim.world import World

CAMERAS = ("corner2", "gripperPOV")


def make(out: Path, tasks: tuple[str, ...] = ("reach", "push"), episodes: int = 2, **other: Any) -> dict[str, Any]:
    return demos.demonstrations(
        out, tasks, episodes, CAMERAS, other.pop("size", 64), other.pop("depth", False), **other
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demos") / "data"
    arguments = ["--tasks", "push,reach", "--episodes", 3, "--size", 128, "--depth", "--out", out]
    assert trainer("demos", *arguments) == 0
    return out


def test_it_is_the_same_dataset_as_the_example(made: Path, metaworld: Path) -> None:
    """Same layout, same first episodes; the pictures differ by compression alone."""
    mine, example = open_dataset(made), open_dataset(metaworld)
    assert mine.format == example.format and mine.fps == example.fps
    assert dict(mine.cameras) == dict(example.cameras) and len(mine.episodes) == 6
    infos = [json.loads((path / "meta" / "info.json").read_text()) for path in (made, metaworld)]
    assert infos[0]["features"] == infos[1]["features"] and set(infos[0]) == set(infos[1])
    for number in range(3):
        one, other = mine.columns(number), example.columns(16 + number)
        assert np.array_equal(one.state, other.state) and np.array_equal(one.action, other.action)  # type: ignore[arg-type]
        assert np.array_equal(one.timestamp, other.timestamp)
    for camera in mine.cameras:
        picture, expected = mine.frames(1, [5], camera)[0], example.frames(17, [5], camera)[0]
        assert np.abs(picture.astype(int) - expected).mean() < 7


def test_what_lerobot_reads_beyond_our_reader(made: Path, metaworld: Path) -> None:
    """The same columns of the same types as LeRobot writes, and frames counted over the whole dataset."""
    data, episodes = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
    assert pq.read_schema(made / data).equals(pq.read_schema(metaworld / data))
    assert set(pq.read_schema(made / episodes).names) == set(pq.read_schema(metaworld / episodes).names)
    rows = pq.read_table(made / data)
    assert rows["index"].to_pylist() == list(range(len(rows)))
    for row in pq.read_table(made / episodes).to_pylist():
        mine = rows.slice(row["dataset_from_index"], row["dataset_to_index"] - row["dataset_from_index"])
        assert set(mine["episode_index"].to_pylist()) == {row["episode_index"]} and len(mine) == row["length"]


def test_every_frame_is_read_with_its_depth(made: Path) -> None:
    dataset, world = open_dataset(made), World("push")
    for number, episode in dataset.episodes.items():
        frames = list(dataset.decode(number, list(dataset.cameras)))
        assert len(frames) == episode.length and all(image is not None for frame in frames for image in frame)
        for camera in CAMERAS:
            with np.load(made / "depth" / camera / f"episode-{number:06d}.npz") as found:
                assert found["depth"].shape == (episode.length, 128, 128) and found["depth"].dtype == np.float16
                assert found["intrinsics"].shape == (episode.length, 3, 3)
                assert found["extrinsics"].shape == (episode.length, 4, 4)
    world.reset(2)
    for action in dataset.columns(2).action[:30]:  # type: ignore[index]
        world.step(action)
    view = world.look("gripperPOV", depth=True)
    with np.load(made / "depth" / "gripperPOV" / "episode-000002.npz") as found:
        assert view.depth is not None and np.array_equal(found["depth"][30], view.depth.astype(np.float16))
        assert np.allclose(found["extrinsics"][30], view.pose.extrinsics, atol=1e-6)


def test_instructions_vary(made: Path) -> None:
    tasks = [episode.tasks for episode in open_dataset(made).episodes.values()]
    assert len(set(tasks)) == 6 and tasks[0] == ("push the puck to the goal",)


def test_the_stored_statistics_are_those_of_the_data(made: Path) -> None:
    stored = json.loads((made / "meta" / "stats.json").read_text())
    dataset = open_dataset(made)
    for key, name in (("observation.state", "state"), ("action", "action")):
        found = column_statistics(dataset)[name]
        for statistic in ("mean", "std", "q01", "q99"):
            assert stored[key][statistic] == pytest.approx(getattr(found, statistic), abs=1e-6)
    pictures = np.concatenate([np.stack([p for (p,) in dataset.decode(n, [next(iter(dataset.cameras))])])
                               for n in dataset.episodes])  # fmt: skip
    mean = np.ravel(stored[next(iter(dataset.cameras))]["mean"])
    assert mean == pytest.approx(pictures.mean((0, 1, 2)) / 255, abs=0.01)


@pytest.mark.parametrize("size", [64, 80, 96])
def test_the_same_pictures_give_the_same_bytes(size: int) -> None:
    """Whatever lies in the memory that the encoder is given."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    videos = set()
    for _ in range(6):
        litter = [rng.integers(0, 256, rng.integers(1000, 200_000), dtype=np.uint8) for _ in range(100)]
        del litter
        videos.add(encode(np.roll(picture, shift, 1) for shift in range(60)))
    assert len(videos) == 1


def test_picture_statistics_add_up() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 8, 9, 3), dtype=np.uint8)
    whole, parts = (
        picture_statistics(images),
        together([picture_statistics(images[:2]), picture_statistics(images[2:])]),
    )
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(whole[name], parts[name])
    plain = number_statistics(images[..., 1].reshape(-1, 1) / 255)
    for name in ("min", "max", "mean", "std", "q01", "q50", "q99"):
        assert whole[name][1][0][0] == pytest.approx(plain[name][0], abs=0.5 / 255)


def test_a_failed_episode_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    act = Expert.act
    monkeypatch.setattr("trainer.sim.episode.STEPS", 80)

    def clumsy(self: Expert, sight: Sight) -> Any:
        return act(self, sight) * (0 if sight.instruction == "move the hand to the goal" else 1)

    monkeypatch.setattr(Expert, "act", clumsy)
    arguments = ["--tasks", "reach", "--episodes", 3, "--size", 32, "--out", tmp_path / "data"]
    assert trainer("demos", *arguments) == 0
    assert "2 episodes" in (out := capsys.readouterr().out) and "1 failed and are left out: reach 1" in out
    dataset = open_dataset(tmp_path / "data")
    assert [e.tasks[0] for e in dataset.episodes.values()] == ["reach the goal", "bring the gripper to the mark"]
    assert list(dataset.episodes) == [0, 1] and len(dataset.columns(1).timestamp) == dataset.episodes[1].length


def digest(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make(whole)
    done: list[Any] = []

    def killed(work: Any, items: Any, *rest: Any, **other: Any) -> Any:
        for result in do_all(work, items, *rest, **other):
            done.append(result)
            if len(done) == 3:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(demos, "do_all", killed)
        with pytest.raises(KeyboardInterrupt):
            make(broken)
    assert not (broken / "meta").exists()
    monkeypatch.setattr(demos, "demonstrate", counted := Counted(demos.demonstrate))
    assert make(broken)["episodes"] == 4 and counted.calls == 1
    ours, theirs = digest(broken), digest(whole)
    for files in (ours, theirs):
        settings = json.loads(files.pop("demonstrations.json"))
        assert settings["result"]["episodes"] == 4
    assert ours == theirs
    assert make(broken)["episodes"] == 4 and counted.calls == 1  # complete: nothing to do
    with pytest.raises(UserError, match=r"holds other demonstrations \(episodes 2, now 3\)"):
        make(broken, episodes=3)


class Counted:
    def __init__(self, work: Any):
        self.work, self.calls = work, 0

    def __call__(self, item: Any) -> Any:
        self.calls += 1
        return self.work(item)


def test_a_full_disk_leaves_a_dataset_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    encode, calls = demos.encode, []

    def full(images: Any) -> bytes:
        calls.append(len(images))
        if len(calls) > 5:  # the third episode's second video
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(images)

    with monkeypatch.context() as patch:
        patch.setattr(demos, "encode", full)
        with pytest.raises(
            UserError, match="the disk is full after 2 of 4 episodes; the dataset holds these and opens"
        ):
            make(out)
    dataset = open_dataset(out)
    assert len(dataset.episodes) == 2
    for number in dataset.episodes:
        assert len(list(dataset.decode(number, list(dataset.cameras)))) == dataset.episodes[number].length
    assert not list(out.rglob(".part-*")) and not (out / ATTEMPTS / demos.RESERVE).exists()
    assert make(out)["episodes"] == 4 and len(open_dataset(out).episodes) == 4
    assert not (out / ATTEMPTS).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cameras", "corner9"], "no camera 'corner9'"),
        (["--size", "63"], "expected an even number"),
        (["--episodes", "0"], "--episodes is 0"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trainer("demos", "--tasks", "reach", "--out", tmp_path / "data", *arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no demonstrations"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
