"""What a dataset is to everything else: episodes of frames seen by named cameras.

One Protocol, one file a format. Frames are named by (episode_index, frame_index), never by their position
in the dataset, because deleting an episode moves every position behind it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UserError, nearest


@dataclass(frozen=True)
class Camera:
    """One camera of a dataset: its full feature key and the size of its images in pixels."""

    key: str
    height: int
    width: int


@dataclass(frozen=True)
class Episode:
    """One episode: its number in the dataset, its length in frames and its instructions in words."""

    index: int
    length: int
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The numbers of one episode, row i being its i-th frame."""

    frame_index: NDArray[np.int64]  # [n]
    timestamp: NDArray[np.float64]  # [n] seconds since the episode began
    state: NDArray[np.float32] | None  # [n, state size]
    action: NDArray[np.float32] | None  # [n, action size]
    task: tuple[str, ...]  # n instructions


class Dataset(Protocol):
    """A dataset on disk. Opening reads metadata only; instances are picklable and survive fork."""

    path: Path
    format: str  # "LeRobot v3.0"
    fps: float
    cameras: Mapping[str, Camera]  # by full key, in the dataset's order
    episodes: Mapping[int, Episode]  # by episode_index, ascending

    def columns(self, episode_index: int) -> Columns:
        """The episode's numbers, checked: frame_index runs from 0 in order, state and action are finite."""
        ...

    def decode(
        self, episode_index: int, cameras: Sequence[str], frame_index: Sequence[int] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8] | None, ...]]:
        """The episode's frames in order (those of `frame_index`, ascending, or all), each decoded once: per frame
        one RGB image [H, W, 3] a camera, None where that camera has no image of it. `cameras` are full keys."""
        ...

    def frames(self, episode_index: int, frame_index: Sequence[int], camera: str) -> NDArray[np.uint8]:
        """Random access: the RGB images [n, H, W, 3] of some frames of one episode, in the order asked for."""
        ...

    def camera_digest(self, episode_index: int, camera: str) -> str:
        """sha256 over the encoded packets (or image bytes) in order and the timestamps in integer
        microseconds since the episode began. Splitting or merging files keeps it, re-encoding changes it."""
        ...


def resolve_views(dataset: Dataset, views: Sequence[str]) -> tuple[str, ...]:
    """Full camera keys for names given as full keys or as their unique last part (after the last dot).

    Raises UserError for a name that no camera, or more than one, answers to, or that stands twice.
    """
    keys = []
    for view in views:
        found = [key for key in dataset.cameras if key == view] or [
            key for key in dataset.cameras if key.rsplit(".", 1)[-1] == view
        ]
        if len(found) != 1:
            short = {key.rsplit(".", 1)[-1]: key for key in dataset.cameras}
            what = "no camera" if not found else f"{len(found)} cameras"
            raise UserError(
                f"{dataset.path}: {what} named '{view}'; expected one of: {nearest(view, short)}; "
                "give the full feature key where the last part is not unique"
            )
        keys.append(found[0])
    if len(set(keys)) != len(keys):
        raise UserError(f"a view is named twice in {', '.join(views)}; name each camera once")
    return tuple(keys)
