"""Finished attempts to one LeRobot v3.0 dataset, laid out as examples/metaworld. meta/info.json comes last.

Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. All episodes' numbers in one parquet file, a row group
each; a video file for each episode and camera, so that nothing is encoded or copied twice: the files are hard links to
those of the attempts. Beside it, where depth was asked for, depth/README.md says what lies there.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.cache.commit import commit, publish, temporary
from trainer.sim.clip import FPS
from trainer.sim.statistics import number_statistics, together

ATTEMPTS, NUMBERS, EPISODE = ".attempts", "numbers.npz", "episode.json"
INFO = Path("meta", "info.json")
CHUNK = 1000  # files a folder
STATE, ACTION = "observation.state", "action"
NAMES = {STATE: ["x", "y", "z", "gripper"], ACTION: ["dx", "dy", "dz", "gripper"]}
INDICES = ("frame_index", "episode_index", "index", "task_index")
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DEPTH_NOTE = """Depth and camera matrices of every frame: depth/<camera>/episode-<episode_index>.npz, with frame_index
as the first axis of each array:

    depth       [n, H, W] float16, metres along the camera's z axis (not along the ray); inf: nothing there
    intrinsics  [n, 3, 3] float32, pixels; the pixel in row r, column c has its centre at (c + 0.5, r + 0.5)
    extrinsics  [n, 4, 4] float32, world to camera, metres; camera axes as in OpenCV: x right, y down, z forward
"""


@dataclass(frozen=True)
class Layout:
    """What is put together, and where."""

    out: Path
    cameras: tuple[str, ...]
    size: int  # pixels a side
    depth: bool


def key_of(camera: str) -> str:
    return f"observation.images.{camera}"


def is_dataset(out: Path) -> bool:
    return (out / INFO).is_file()


def assemble(layout: Layout, attempts: Sequence[Path]) -> dict[str, Any]:
    """Make the dataset of the folders of successful attempts, in order, in place of one made earlier of fewer."""
    out = layout.out
    (out / INFO).unlink(missing_ok=True)  # from here on, and until the end, there is no dataset
    for name in ("meta", "data", "videos", "depth"):
        shutil.rmtree(out / name, ignore_errors=True)
    tables, rows, words = [], [], dict[str, int]()
    pictures: dict[str, list[Any]] = {key_of(camera): [] for camera in layout.cameras}
    start = 0
    for index, folder in enumerate(attempts):
        about = json.loads((folder / EPISODE).read_text())
        task = words.setdefault(about["words"], len(words))
        with np.load(folder / NUMBERS) as numbers:
            columns = _columns(numbers["state"], numbers["action"], index, start, task)
        length = len(columns["index"])
        place = {"chunk_index": index // CHUNK, "file_index": index % CHUNK}
        row: dict[str, Any] = {
            "episode_index": index, "tasks": [about["words"]], "length": length,
            "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": start, "dataset_to_index": start + length,
        }  # fmt: skip
        summaries = {name: number_statistics(column) for name, column in columns.items()}
        for camera in layout.cameras:
            key = key_of(camera)
            _link(folder / f"{camera}.mp4", out / VIDEO.format(video_key=key, **place))
            times = {"from_timestamp": 0.0, "to_timestamp": length / FPS}
            row |= {f"videos/{key}/{name}": value for name, value in {**place, **times}.items()}
            summaries[key] = about["pictures"][camera]
            pictures[key].append(summaries[key])
            if layout.depth:
                _link(folder / f"{camera}.npz", out / "depth" / camera / f"episode-{index:06d}.npz")
        row |= {f"stats/{name}/{statistic}": v for name, each in summaries.items() for statistic, v in each.items()}
        rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        tables.append(columns)
        start += length
    if layout.depth:
        commit(out / "depth" / "README.md", DEPTH_NOTE.encode())
    _write(out / DATA.format(chunk_index=0, file_index=0), [_table(columns) for columns in tables])
    _write(out / "meta" / "episodes" / "chunk-000" / "file-000.parquet", [pa.Table.from_pylist(rows)])
    _write(out / "meta" / "tasks.parquet", [_tasks(words)])
    whole = {name: number_statistics(np.concatenate([each[name] for each in tables])) for name in tables[0]}
    whole |= {key: together(each) for key, each in pictures.items()}
    commit(out / "meta" / "stats.json", json.dumps(whole, indent=4).encode())
    commit(out / INFO, json.dumps(_info(layout, len(rows), start, len(words)), indent=4).encode())
    return {"dataset": str(out), "episodes": len(rows), "frames": start, "tasks": len(words)}


def _columns(state: Any, action: Any, index: int, start: int, task: int) -> dict[str, Any]:
    frames = np.arange(len(state))
    return {
        STATE: state,
        ACTION: action,
        "timestamp": (frames / FPS).astype(np.float32)[:, None],
        "frame_index": frames[:, None],
        "episode_index": np.full((len(frames), 1), index),
        "index": start + frames[:, None],
        "task_index": np.full((len(frames), 1), task),
    }


def _table(columns: dict[str, Any]) -> pa.Table:
    """An episode's rows: vectors as fixed-size lists of float32, the rest as plain columns."""
    arrays = {}
    for name, values in columns.items():
        if name in NAMES:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])
        else:
            arrays[name] = pa.array(values[:, 0])
    return pa.table(arrays)


def _tasks(words: dict[str, int]) -> pa.Table:
    """The wordings in the unnamed index column of a pandas table: that is where LeRobot looks for them."""
    index = "__index_level_0__"
    column = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    about = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {**column, "metadata": None},
            {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(list(words.values()), pa.int64()), index: pa.array(list(words))})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _write(path: Path, tables: Sequence[pa.Table]) -> None:
    """One parquet file, a row group for each table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        with pq.ParquetWriter(part, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except PermissionError:  # file systems without hard links
        shutil.copyfile(source, target)


def _info(layout: Layout, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    video = {
        "video.height": layout.size, "video.width": layout.size, "video.codec": "h264", "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False, "video.fps": FPS, "video.channels": 3, "has_audio": False,
    }  # fmt: skip
    picture = {"dtype": "video", "shape": [layout.size, layout.size, 3], "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {key_of(camera): {**picture, "info": video} for camera in layout.cameras}
    features |= {name: {"dtype": "float32", "shape": [len(names)], "names": names} for name, names in NAMES.items()}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES}
    return {
        "codebase_version": "v3.0",
        "robot_type": "sawyer",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": features,
    }
