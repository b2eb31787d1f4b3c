"""LeRobot v3.0: many episodes a file. meta/episodes says in which file, and when in it, an episode begins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalog.datasets.dataset import Episode
from catalog.datasets.lerobot import LeRobot
from catalog.datasets.video import Clip
from catalog.errors import UserError


class LeRobotV3(LeRobot):
    """catalog.datasets.dataset.Dataset over a folder in format v3.0."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        table = _read_all(path, sorted((path / "meta" / "episodes").glob("*/*.parquet")))
        numbers = _column(path, table, "episode_index").to_pylist()
        lengths = _column(path, table, "length").to_pylist()
        words = _column(path, table, "tasks").to_pylist()
        episodes = [Episode(i, n, tuple(t or ())) for i, n, t in zip(numbers, lengths, words, strict=True)]
        super().__init__(path, info, episodes, _tasks(path))
        self._row = {number: row for row, number in enumerate(numbers)}
        self._data_path: str = self._need(info, "data_path")
        self._video_path: str = info.get("video_path") or ""
        self._files = _numbers(path, table, ["data/chunk_index", "data/file_index"])
        self._clips = {
            camera: _numbers(
                path, table, [f"videos/{camera}/{key}" for key in ("chunk_index", "file_index", "from_timestamp")]
            )
            for camera in self.cameras
            if self._dtypes[camera] == "video"
        }

    def _data(self, episode_index: int) -> Path:
        chunk, file = self._files[self._row[episode_index]]
        return self.path / self._data_path.format(chunk_index=int(chunk), file_index=int(file))

    def _clip(self, episode_index: int, camera: str) -> Clip | None:
        chunk, file, start = self._clips[camera][self._row[episode_index]]
        if np.isnan(chunk):
            return None
        place = self._video_path.format(video_key=camera, chunk_index=int(chunk), file_index=int(file))
        return Clip(self.path / place, float(start), episode_index)


def _read_all(path: Path, files: Sequence[Path]) -> Any:
    """The rows of metadata files, without the columns of stored statistics, which are most of them."""
    if not files:
        raise UserError(
            f"{path}/meta: no list of episodes; expected meta/episodes/chunk-*/file-*.parquet of LeRobot v3.0; "
            "download or copy the dataset again"
        )
    tables = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                names = [name for name in parquet.schema_arrow.names if not name.startswith("stats/")]
                tables.append(parquet.read(columns=names, use_threads=False))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: not readable as parquet ({str(error).splitlines()[0]}); expected LeRobot metadata; "
                "download or copy the dataset again"
            ) from error
    return pa.concat_tables(tables, promote_options="permissive")


def _column(path: Path, table: Any, name: str) -> Any:
    if name not in table.column_names:
        raise UserError(
            f"{path}/meta/episodes: no column '{name}'; expected the metadata of LeRobot v3.0; "
            "download or copy the dataset again"
        )
    return table[name]


def _numbers(path: Path, table: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """[episodes, names], NaN where nothing is said."""
    return np.stack([_column(path, table, name).to_numpy().astype(np.float64) for name in names], axis=1)


def _tasks(path: Path) -> dict[int, str]:
    """task_index to words, which LeRobot 0.4 keeps in the unnamed index column that pandas writes."""
    table = _read_all(path, [path / "meta" / "tasks.parquet"])
    words = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not words:
        raise UserError(
            f"{path}/meta/tasks.parquet: columns {', '.join(table.column_names)}; expected task_index and the task's "
            "words; download or copy the dataset again"
        )
    texts = table["task" if "task" in words else words[0]].to_pylist()
    return dict(zip(table["task_index"].to_pylist(), texts, strict=True))
