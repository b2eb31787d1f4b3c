"""Damaged datasets: each mistake is one line that names what was found, what was expected and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.datasets import open_dataset, resolve_views
from catalog.datasets.digests import episode_digests
from catalog.datasets.statistics import column_statistics
from catalog.errors import UserError

SAMPLES = Path(__file__).parent / "data" / "lerobot_samples"
METAWORLD = Path(__file__).parents[1] / "examples" / "metaworld"
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
DATA = Path("data", "chunk-000", "file-000.parquet")
EPISODES = Path("meta", "episodes", "chunk-000", "file-000.parquet")
VIDEO = Path("videos", WRIST, "chunk-000", "file-001.mp4")


def said(action: Callable[[], object]) -> str:
    """The one line that a user gets to read."""
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and line.count(";") >= 2, line
    return line


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A copy to damage: one data file and one video file an episode."""
    return Path(shutil.copytree(SAMPLES / "lerobot_v3_sample_split", tmp_path / "split"))


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    """A copy to damage: all episodes in one data file and one video file a camera."""
    return Path(shutil.copytree(SAMPLES / "lerobot_v3_sample", tmp_path / "joint"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A copy to damage: images in the parquet files."""
    return Path(shutil.copytree(SAMPLES / "lerobot_v3_sample_images", tmp_path / "images"))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy to damage, in format v2.1."""
    return Path(shutil.copytree(SAMPLES / "lerobot_v21_sample", tmp_path / "older"))


def edit_info(dataset: Path, **changes: object) -> None:
    file = dataset / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_column(file: Path, name: str, change: Callable[[list], object]) -> None:
    """Let `change` edit the list of values in place."""
    table = pq.read_table(file)
    values = table[name].to_pylist()
    change(values)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(values, table.schema.field(name).type)), file)


def cut(file: Path, kept: float) -> None:
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])


def decode(dataset: Path, episode_index: int, camera: str) -> list:
    return list(open_dataset(dataset).decode(episode_index, [camera]))


def test_no_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/nothing: nothing; expected the folder of a dataset" in said(
        lambda: open_dataset(tmp_path / "nothing")
    )
    (tmp_path / "file").write_text("")
    assert "a file; expected the folder" in said(lambda: open_dataset(tmp_path / "file"))


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    assert "the folder is empty" in said(lambda: open_dataset(tmp_path))
    for number in range(6):
        (tmp_path / f"{number}.hdf5").write_text("")
    line = said(lambda: open_dataset(str(tmp_path)))
    assert "it holds 0.hdf5, 1.hdf5, 2.hdf5, 3.hdf5, 4.hdf5 and 1 more" in line
    assert "expected meta/info.json (LeRobot v3.0, v2.1, v2.0)" in line


def test_info_that_is_no_json(split: Path) -> None:
    cut(split / "meta" / "info.json", 0.5)
    assert "info.json: not JSON" in said(lambda: open_dataset(split))
    (split / "meta" / "info.json").write_text("[]")
    assert "a JSON list; expected an object" in said(lambda: open_dataset(split))


def test_an_unknown_version(split: Path) -> None:
    edit_info(split, codebase_version="v4.1")
    assert "format version v4.1; expected LeRobot v3.0, v2.1, v2.0" in said(lambda: open_dataset(split))
    (split / "meta" / "info.json").write_text("{}")
    assert "format version None" in said(lambda: open_dataset(split))


@pytest.mark.parametrize("key", ["fps", "features", "data_path"])
def test_info_without_a_key(split: Path, key: str) -> None:
    info = json.loads((split / "meta" / "info.json").read_text())
    del info[key]
    (split / "meta" / "info.json").write_text(json.dumps(info))
    assert f"info.json: no '{key}'" in said(lambda: open_dataset(split))


@pytest.mark.parametrize("fps", [0, "ten", None])
def test_a_rate_that_is_none(split: Path, fps: object) -> None:
    edit_info(split, fps=fps)
    assert f"fps is {fps}; expected frames per second" in said(lambda: open_dataset(split))


def test_a_camera_that_does_not_exist() -> None:
    dataset = open_dataset(SAMPLES / "lerobot_v3_sample")
    with pytest.raises(UserError, match="no camera named 'wirst'; expected one of: wrist"):
        resolve_views(dataset, ["wirst"])
    with pytest.raises(UserError, match="named twice"):
        resolve_views(dataset, ["wrist", WRIST])
    for action in (
        lambda: dataset.decode(0, ["wrist"]),
        lambda: dataset.frames(0, [0], "wrist"),
        lambda: dataset.camera_digest(0, "wrist"),
    ):
        assert f"no camera 'wrist'; expected one of: {FRONT}, {WRIST};" in said(action)


def test_an_episode_or_frame_that_does_not_exist() -> None:
    dataset = open_dataset(SAMPLES / "lerobot_v3_sample")
    assert "no episode 3; expected one of 0-2" in said(lambda: dataset.columns(3))
    assert "episode 1 has no frame 31; expected 0 to 30" in said(lambda: dataset.frames(1, [2, 31], FRONT))
    assert "episode 1 has no frame 31; expected 0 to 30" in said(lambda: dataset.decode(1, [FRONT], [2, 31]))
    assert "episode 1 has no frame -1" in said(lambda: dataset.frames(1, [-1], FRONT))


def test_a_feature_whose_shape_is_no_image(split: Path) -> None:
    features = json.loads((split / "meta" / "info.json").read_text())["features"]
    features[FRONT]["shape"] = [96]
    edit_info(split, features=features)
    assert f"camera '{FRONT}' has shape [96]" in said(lambda: open_dataset(split))


def test_images_of_another_size_than_promised(split: Path) -> None:
    features = json.loads((split / "meta" / "info.json").read_text())["features"]
    features[FRONT]["shape"] = [48, 64, 3]
    edit_info(split, features=features)
    assert "episode 1, frame 0: camera" in said(lambda: decode(split, 1, FRONT))
    assert "gives 128x96 pixels; meta/info.json says 64x48" in said(lambda: decode(split, 1, FRONT))


def test_a_truncated_video(joint: Path) -> None:
    """A file whose index stands first is readable up to the cut."""
    file = joint / "videos" / WRIST / "chunk-000" / "file-000.mp4"
    cut(file, 0.6)
    assert len(decode(joint, 0, WRIST)) == 24
    line = said(lambda: decode(joint, 1, WRIST))
    assert line.startswith(f"{file}: episode 1: frame ")
    frame = int(line.split("frame ")[1].split(":")[0])
    assert 5 < frame < 31
    dataset = open_dataset(joint)
    assert len(dataset.frames(1, range(frame), WRIST)) == frame
    assert f"episode 1: frame {frame}" in said(lambda: dataset.frames(1, [frame], WRIST))
    assert f"{file}: episode 1: frame {frame}" in said(lambda: dataset.camera_digest(1, WRIST))
    assert f"{file}: episode 2: frame 0" in said(lambda: decode(joint, 2, WRIST))
    assert len(dataset.camera_digest(0, WRIST)) == 64


def test_a_cut_leaves_every_whole_picture(tmp_path: Path) -> None:
    """H.264 decoders hold pictures back, also the last whole one before the cut."""
    truncated = Path(shutil.copytree(METAWORLD, tmp_path / "truncated"))
    dataset = open_dataset(truncated)
    corner, _ = dataset.cameras
    file = truncated / "videos" / corner / "chunk-000" / "file-000.mp4"
    with av.open(str(file)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    begins = np.cumsum([0, *(episode.length for episode in dataset.episodes.values())])
    file.write_bytes(file.read_bytes()[: ends[begins[9] + 20] - 5])
    assert "episode 9: frame 20: no frame" in said(lambda: decode(truncated, 9, corner))
    assert "episode 9: frame 20: no frame" in said(lambda: open_dataset(truncated).camera_digest(9, corner))
    assert len(open_dataset(truncated).frames(9, range(20), corner)) == 20


@pytest.mark.parametrize("kept", [0.6, 0.01])
def test_a_truncated_video_whose_index_stood_last(split: Path, kept: float) -> None:
    cut(split / VIDEO, kept)
    expected = f"{split / VIDEO}: episode 1: it cannot be decoded"
    assert expected in said(lambda: decode(split, 1, WRIST))
    assert expected in said(lambda: open_dataset(split).frames(1, [0], WRIST))
    assert expected in said(lambda: open_dataset(split).camera_digest(1, WRIST))
    assert len(decode(split, 0, WRIST)) == 24 and len(decode(split, 2, WRIST)) == 17


def test_a_video_that_is_no_video(split: Path) -> None:
    (split / VIDEO).write_text("<html>rate limit exceeded</html>")
    assert f"{split / VIDEO}: episode 1: it cannot be decoded" in said(lambda: decode(split, 1, WRIST))


def test_a_video_with_a_damaged_picture(joint: Path) -> None:
    file = joint / "videos" / FRONT / "chunk-000" / "file-000.mp4"
    damaged = bytearray(file.read_bytes())
    damaged[-600:-100] = bytes(500)
    file.write_bytes(damaged)
    assert f"{file}: episode 2: frame " in said(lambda: decode(joint, 2, FRONT))


def test_damage_that_a_decoder_hides(tmp_path: Path) -> None:
    """H.264 decoders paint over a broken picture and go on; the picture behind depends on it."""
    damaged = Path(shutil.copytree(METAWORLD, tmp_path / "damaged"))
    dataset = open_dataset(damaged)
    corner, _ = dataset.cameras
    file = damaged / "videos" / corner / "chunk-000" / "file-000.mp4"
    content = bytearray(file.read_bytes())
    content[700_000:700_030] = bytes(30)
    file.write_bytes(content)
    lines: dict[int, str] = {}
    for index in dataset.episodes:
        try:
            decode(damaged, index, corner)
        except UserError as error:
            lines[index] = str(error)
    ((index, line),) = lines.items()
    assert line.startswith(f"{file}: episode {index}: frame ") and "is damaged" in line
    frame = int(line.split("frame ")[1].split(":")[0])
    assert "is damaged" in said(lambda: open_dataset(damaged).frames(index, [frame + 1], corner))


def test_a_missing_video(split: Path, older: Path) -> None:
    (split / VIDEO).unlink()
    assert f"{split / VIDEO}: the video of episode 1 is not there" in said(lambda: decode(split, 1, WRIST))
    assert f"{split / VIDEO}: the video of episode 1 is not there" in said(
        lambda: episode_digests(open_dataset(split), [WRIST])
    )
    file = older / "videos" / "chunk-000" / FRONT / "episode_000002.mp4"
    file.unlink()
    assert f"{file}: the video of episode 2 is not there" in said(lambda: decode(older, 2, FRONT))


def test_a_missing_parquet_file(split: Path, older: Path) -> None:
    file = split / "data" / "chunk-000" / "file-002.parquet"
    file.unlink()
    assert f"{file}: the data of episode 2 is not there" in said(lambda: open_dataset(split).columns(2))
    file = older / "data" / "chunk-000" / "episode_000001.parquet"
    file.unlink()
    assert f"{file}: the data of episode 1 is not there" in said(lambda: open_dataset(older).columns(1))


def test_a_truncated_parquet_file(split: Path) -> None:
    cut(split / DATA, 0.7)
    assert f"{split / DATA}: episode 0: not readable as parquet" in said(lambda: open_dataset(split).columns(0))
    cut(split / EPISODES, 0.7)
    assert f"{split / EPISODES}: not readable as parquet" in said(lambda: open_dataset(split))


def test_a_parquet_file_damaged_inside(split: Path) -> None:
    content = bytearray((split / DATA).read_bytes())
    content[4:1500] = bytes(1496)
    (split / DATA).write_bytes(content)
    assert f"{split / DATA}: episode 0: not readable as parquet" in said(lambda: open_dataset(split).columns(0))


@pytest.mark.parametrize("name", ["observation.state", "frame_index", "episode_index"])
def test_a_missing_column(split: Path, name: str) -> None:
    pq.write_table(pq.read_table(split / DATA).drop_columns(name), split / DATA)
    assert f"{split / DATA}: episode 0: no column '{name}'" in said(lambda: open_dataset(split).columns(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("name", ["observation.state", "action"])
def test_numbers_that_are_not_finite(split: Path, name: str, value: float | None) -> None:
    def change(rows: list) -> None:
        rows[13][2] = value

    edit_column(split / DATA, name, change)
    dataset = open_dataset(split)
    line = said(lambda: dataset.columns(0))
    assert line.startswith(f"{split / DATA}: episode 0, frame 13: {name}[2] is {'inf' if value == np.inf else 'nan'}")
    assert "episode 0, frame 13" in said(lambda: column_statistics(dataset))
    # The images of the episode are whole, and so is every other episode.
    assert len(decode(split, 0, FRONT)) == 24
    assert dataset.columns(1).state is not None


def test_numbers_of_another_size_than_promised(split: Path) -> None:
    features = json.loads((split / "meta" / "info.json").read_text())["features"]
    features["action"]["shape"] = [6]
    edit_info(split, features=features)
    assert "'action' holds 168 numbers in 24 frames; expected 6 a frame" in said(lambda: open_dataset(split).columns(0))


@pytest.mark.parametrize("frames", [[*range(1, 25)], [*range(23), 0], [*range(23, -1, -1)]])
def test_frames_out_of_order(split: Path, frames: list[int]) -> None:
    def change(column: list) -> None:
        column[:] = frames

    edit_column(split / DATA, "frame_index", change)
    row = next(i for i in range(24) if frames[i] != i)
    expected = f"episode 0, row {row}: frame_index is {frames[row]}; expected 0 to 23 in order"
    for action in (
        lambda: open_dataset(split).columns(0),
        lambda: decode(split, 0, FRONT),
        lambda: open_dataset(split).frames(0, [0], FRONT),
        lambda: open_dataset(split).camera_digest(0, FRONT),
    ):
        assert expected in said(action)


def test_time_that_stands_still(split: Path) -> None:
    def change(column: list) -> None:
        column[7] = column[6]

    edit_column(split / DATA, "timestamp", change)
    assert "episode 0, frame 7: timestamp is 0.6" in said(lambda: open_dataset(split).columns(0))


def test_a_time_without_a_frame(split: Path) -> None:
    def change(column: list) -> None:
        column[7] += 0.03

    edit_column(split / DATA, "timestamp", change)
    expected = "episode 0: frame 7: no frame at 0.7300 s of the file"
    assert expected in said(lambda: decode(split, 0, FRONT))
    assert expected in said(lambda: open_dataset(split).frames(0, [7], FRONT))
    assert expected in said(lambda: open_dataset(split).camera_digest(0, FRONT))


def test_metadata_that_promises_more_episodes(split: Path, older: Path) -> None:
    edit_info(split, total_episodes=5)
    assert "promises 5 episodes; the list of episodes holds 3" in said(lambda: open_dataset(split))
    edit_info(older, total_frames=73)
    assert "promises 73 frames; the list of episodes holds 72" in said(lambda: open_dataset(older))


def test_an_episode_that_the_data_does_not_have(split: Path) -> None:
    pq.write_table(pq.read_table(split / DATA).slice(0, 0), split / DATA)
    assert f"{split / DATA}: 0 frames of episode 0; the metadata promises 24" in said(
        lambda: open_dataset(split).columns(0)
    )


def test_an_episode_shorter_than_promised(split: Path) -> None:
    pq.write_table(pq.read_table(split / DATA).slice(0, 20), split / DATA)
    for action in (lambda: open_dataset(split).columns(0), lambda: decode(split, 0, FRONT)):
        assert f"{split / DATA}: 20 frames of episode 0; the metadata promises 24" in said(action)


def test_more_frames_than_the_video_has(older: Path) -> None:
    """The data goes on after the video ends; in a shared file the next episode would follow."""
    videos = older / "videos" / "chunk-000" / FRONT
    shutil.copy(videos / "episode_000002.mp4", videos / "episode_000001.mp4")
    assert "episode 1: frame 17: no frame at 1.7000 s of the file, which ends after 1.6000 s" in said(
        lambda: decode(older, 1, FRONT)
    )
    assert "episode 1: frame 17: no frame" in said(lambda: open_dataset(older).camera_digest(1, FRONT))


def test_an_episode_number_that_stands_twice(older: Path) -> None:
    file = older / "meta" / "episodes.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    assert "an episode_index stands twice" in said(lambda: open_dataset(older))


def test_a_task_without_words(split: Path) -> None:
    def change(column: list) -> None:
        column[:] = [9] * len(column)

    edit_column(split / DATA, "task_index", change)
    assert "episode 0: task_index 9; expected one of 0-1" in said(lambda: open_dataset(split).columns(0))


def test_metadata_files_that_are_missing(split: Path, older: Path) -> None:
    (older / "meta" / "tasks.jsonl").unlink()
    assert "tasks.jsonl: not there" in said(lambda: open_dataset(older))
    (split / "meta" / "tasks.parquet").unlink()
    assert "tasks.parquet: not readable" in said(lambda: open_dataset(split))
    (split / EPISODES).unlink()
    assert "no list of episodes" in said(lambda: open_dataset(split))


def test_metadata_lines_that_are_damaged(older: Path) -> None:
    file = older / "meta" / "episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:20]]))
    assert "episodes.jsonl, line 2: not JSON" in said(lambda: open_dataset(older))
    file.write_text('{"episode_index": 0, "tasks": []}\n')
    assert "episodes.jsonl, line 1: no 'length'" in said(lambda: open_dataset(older))


def test_metadata_without_the_place_of_a_video(split: Path) -> None:
    name = f"videos/{WRIST}/from_timestamp"
    pq.write_table(pq.read_table(split / EPISODES).drop_columns(name), split / EPISODES)
    assert f"no column '{name}'" in said(lambda: open_dataset(split))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"GIF89a", "it starts with b'GIF8'; expected a whole PNG or JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged png"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "damaged mjpeg"),
    ],
    ids=["neither", "png", "jpeg"],
)
def test_a_damaged_image(images: Path, image: bytes, expected: str) -> None:
    def change(column: list) -> None:
        column[5]["bytes"] = image

    edit_column(images / DATA, FRONT, change)
    for action in (lambda: decode(images, 0, FRONT), lambda: open_dataset(images).frames(0, [5], FRONT)):
        line = said(action)
        assert f"{images / DATA}: episode 0, frame 5: the image of camera '{FRONT}': " in line
        assert expected in line


def test_a_truncated_image(images: Path) -> None:
    def change(column: list) -> None:
        column[5]["bytes"] = column[5]["bytes"][:-40]

    edit_column(images / DATA, FRONT, change)
    assert "frame 5" in said(lambda: decode(images, 0, FRONT))


def test_images_that_are_not_embedded(images: Path) -> None:
    def change(column: list) -> None:
        column[5] = {"bytes": None, "path": "frame-000005.png"}

    edit_column(images / DATA, FRONT, change)
    assert "frame 5: the image of camera" in said(lambda: decode(images, 0, FRONT))
    assert "is a path, frame-000005.png; expected its bytes" in said(lambda: decode(images, 0, FRONT))
