"""LeRobot v2.1 (and v2.0): one parquet file an episode, one video an episode and camera, JSON lines for metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.datasets.dataset import Episode
from catalog.datasets.lerobot import LeRobot
from catalog.datasets.video import Clip
from catalog.errors import UserError


class LeRobotV21(LeRobot):
    """catalog.datasets.dataset.Dataset over a folder in format v2.1 or v2.0."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        episodes = [
            Episode(line["episode_index"], line["length"], tuple(line["tasks"]))
            for line in _lines(path / "meta" / "episodes.jsonl", ("episode_index", "length", "tasks"))
        ]
        tasks = {
            line["task_index"]: line["task"] for line in _lines(path / "meta" / "tasks.jsonl", ("task_index", "task"))
        }
        super().__init__(path, info, episodes, tasks)
        self._data_path: str = self._need(info, "data_path")
        self._video_path: str = info.get("video_path") or ""
        self._chunk = int(self._need(info, "chunks_size"))

    def _data(self, episode_index: int) -> Path:
        chunk = episode_index // self._chunk
        return self.path / self._data_path.format(episode_chunk=chunk, episode_index=episode_index)

    def _clip(self, episode_index: int, camera: str) -> Clip | None:
        chunk = episode_index // self._chunk
        place = self._video_path.format(episode_chunk=chunk, episode_index=episode_index, video_key=camera)
        return Clip(self.path / place, 0.0, episode_index)


def _lines(file: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects in a JSON-lines file, each with at least `keys`."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{file}: not there; expected the metadata of LeRobot v2.1; copy the dataset again") from error
    objects = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            objects.append(json.loads(line))
            absent = [key for key in keys if key not in objects[-1]]
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: not JSON ({error}); expected an object a line; copy the dataset again"
            ) from error
        if absent:
            raise UserError(
                f"{file}, line {number}: no '{absent[0]}'; expected {', '.join(keys)}; copy the dataset again"
            )
    return objects
