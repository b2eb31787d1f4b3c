"""What every LeRobot layout shares: features, columns, frames. Where things lie is said in lerobot_v3, lerobot_v21.

State is `observation.state`, action is `action`; every feature of dtype `video` or `image` is a camera, depth maps
excepted. Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.datasets.dataset import Camera, Columns, Episode
from catalog.datasets.digests import camera_digest
from catalog.datasets.parquet import Rows
from catalog.datasets.pixels import Converter
from catalog.datasets.recent import Recent
from catalog.datasets.video import Clip, Videos
from catalog.errors import UserError, nearest

STATE, ACTION = "observation.state", "action"


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json of the dataset in `path`. Raises UserError where it is no JSON object."""
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); expected LeRobot metadata; copy the dataset again") from error
    if not isinstance(info, dict):
        raise UserError(f"{file}: a JSON {type(info).__name__}; expected an object; copy the dataset again")
    return info


class LeRobot(ABC):
    """A LeRobot dataset on disk: catalog.datasets.dataset.Dataset without the places of its files."""

    def __init__(self, path: Path, info: Mapping[str, Any], episodes: Iterable[Episode], tasks: Mapping[int, str]):
        self.path = path
        self.format = f"LeRobot {info['codebase_version']}"
        fps = self._need(info, "fps")
        if not isinstance(fps, int | float) or fps <= 0:
            raise UserError(f"{path}/meta/info.json: fps is {fps}; expected frames per second; correct it")
        self.fps: float = float(fps)
        features = self._need(info, "features")
        self._dtypes: dict[str, str] = {key: feature.get("dtype", "") for key, feature in features.items()}
        self.cameras: Mapping[str, Camera] = {
            key: _camera(path, key, feature)
            for key, feature in features.items()
            if feature.get("dtype") in ("video", "image") and not _is_depth(feature)
        }
        self._sizes = {key: int(np.prod(features[key]["shape"])) for key in (STATE, ACTION) if key in features}
        self._tasks = dict(tasks)
        found = sorted(episodes, key=lambda episode: episode.index)
        self.episodes: Mapping[int, Episode] = {episode.index: episode for episode in found}
        self._check_promises(info, found)
        self._rows, self._videos = Rows(), Videos()
        self._clocks: Recent[int, NDArray[np.float64]] = Recent(8 << 20, len)
        self._digests: dict[tuple[int, str], str] = {}  # 64 digits each; asked for by whoever joins by pixels

    @abstractmethod
    def _data(self, episode_index: int) -> Path:
        """The parquet file that holds the episode's rows."""

    @abstractmethod
    def _clip(self, episode_index: int, camera: str) -> Clip | None:
        """Where the camera's video of the episode lies; None where the camera saw nothing of it."""

    def columns(self, episode_index: int) -> Columns:
        """The episode's numbers, checked. See Dataset. Raises UserError naming episode and frame."""
        timestamp = self._clock(episode_index)
        table = self._rows.read(self._data(episode_index), episode_index, ("task_index", *self._sizes))
        numbers = {key: self._matrix(table, episode_index, key, size) for key, size in self._sizes.items()}
        return Columns(
            frame_index=np.arange(len(timestamp), dtype=np.int64),
            timestamp=timestamp.copy(),
            state=numbers.get(STATE),
            action=numbers.get(ACTION),
            task=tuple(self._task(episode_index, number) for number in table["task_index"].to_pylist()),
        )

    def decode(
        self, episode_index: int, cameras: Sequence[str], frame_index: Sequence[int] | None = None
    ) -> Iterator[tuple[NDArray[np.uint8] | None, ...]]:
        """The episode's frames in order. See Dataset. Raises UserError naming file, episode and frame."""
        every = range(len(self._clock(episode_index)))
        places = self._inside(episode_index, every if frame_index is None else frame_index)
        return zip(*[self._see(episode_index, places, self._known(camera)) for camera in cameras], strict=True)

    def frames(self, episode_index: int, frame_index: Sequence[int], camera: str) -> NDArray[np.uint8]:
        """Some frames of an episode, RGB [n, H, W, 3], in the order asked for. See Dataset."""
        seen = self._known(camera)
        wanted = self._inside(episode_index, frame_index)
        places, order = np.unique(wanted, return_inverse=True)
        images = np.empty((len(places), seen.height, seen.width, 3), np.uint8)
        for i, image in enumerate(self._see(episode_index, places, seen)):
            if image is None:
                raise UserError(
                    f"{self.path}: camera '{camera}' has no image of episode {episode_index}, frame {places[i]}; "
                    "expected one of each frame asked for; leave the frame or the camera out"
                )
            images[i] = image
        return images if np.array_equal(wanted, places) else images[order]

    def camera_digest(self, episode_index: int, camera: str) -> str:
        """sha256 of what the camera recorded of the episode. See Dataset and catalog.datasets.digests."""
        self._known(camera)
        if (known := self._digests.get((episode_index, camera))) is not None:
            return known
        timestamps = self._clock(episode_index)
        pieces: Iterable[bytes | None]
        if self._dtypes[camera] == "image":
            pieces = self._encoded(episode_index, np.arange(len(timestamps)), camera)
        elif (clip := self._clip(episode_index, camera)) is not None:
            pieces = self._videos.packets(clip, timestamps)
        else:
            pieces = repeat(None, len(timestamps))
        return self._digests.setdefault((episode_index, camera), camera_digest(pieces, timestamps))

    def _see(self, episode_index: int, places: NDArray[np.int64], camera: Camera) -> Iterator[NDArray[np.uint8] | None]:
        """The camera's images of the frames in `places` (ascending), None where there is none."""
        images: Iterable[NDArray[np.uint8] | None]
        if self._dtypes[camera.key] == "image":
            images = self._stills(episode_index, places, camera.key)
        elif (clip := self._clip(episode_index, camera.key)) is not None:
            images = self._videos.frames(clip, self._clock(episode_index)[places], places.tolist())
        else:
            images = repeat(None, len(places))
        for frame, image in zip(places, images, strict=True):
            if image is not None and image.shape[:2] != (camera.height, camera.width):
                raise UserError(
                    f"{self.path}: episode {episode_index}, frame {frame}: camera '{camera.key}' gives "
                    f"{image.shape[1]}x{image.shape[0]} pixels; meta/info.json says {camera.width}x{camera.height}; "
                    "correct the feature's shape"
                )
            yield image

    def _stills(self, episode_index: int, places: NDArray[np.int64], camera: str) -> Iterator[NDArray[np.uint8] | None]:
        rgb = Converter()
        for frame, image in zip(places, self._encoded(episode_index, places, camera), strict=True):
            try:
                yield None if image is None else rgb.image(image)
            except ValueError as error:
                raise UserError(
                    f"{self._data(episode_index)}: episode {episode_index}, frame {frame}: the image of camera "
                    f"'{camera}': {error}; expected a whole PNG or JPEG; copy the file again, or leave the episode out"
                ) from error

    def _encoded(self, episode_index: int, places: NDArray[np.int64], camera: str) -> Iterator[bytes | None]:
        """The bytes of images kept in the parquet file itself."""
        column = self._rows.read(self._data(episode_index), episode_index, (camera,))[camera]
        for place in places.tolist():
            image = column[place].as_py() or {}
            if image.get("bytes") is None and image.get("path") is not None:
                raise UserError(
                    f"{self._data(episode_index)}: episode {episode_index}, frame {place}: the image of camera "
                    f"'{camera}' is a path, {image['path']}; expected its bytes; save the dataset with embedded images"
                )
            yield image.get("bytes")

    def _clock(self, episode_index: int) -> NDArray[np.float64]:
        """Timestamps [n] of the episode in seconds, once frame_index and they are found to be in order."""
        known = self._clocks.get(episode_index)
        if known is not None:
            return known
        if episode_index not in self.episodes:
            raise UserError(
                f"{self.path}: no episode {episode_index}; expected one of {_ranges(self.episodes)}; "
                "ask for episodes by their episode_index"
            )
        table = self._rows.read(self._data(episode_index), episode_index, ("frame_index", "timestamp"))
        length = self.episodes[episode_index].length
        if len(table) != length:
            raise UserError(
                f"{self._data(episode_index)}: {len(table)} frames of episode {episode_index}; the metadata promises "
                f"{length}; download or copy the dataset again"
            )
        wrong = np.flatnonzero(table["frame_index"].to_numpy() != np.arange(length))
        if len(wrong):
            raise UserError(
                f"{self._data(episode_index)}: episode {episode_index}, row {wrong[0]}: frame_index is "
                f"{table['frame_index'][int(wrong[0])]}; expected 0 to {length - 1} in order; write the episode again"
            )
        timestamps = _exact(table["timestamp"].to_numpy(), self.fps)
        wrong = np.flatnonzero(~np.isfinite(timestamps) | (np.diff(timestamps, prepend=-np.inf) <= 0))
        if len(wrong):
            raise UserError(
                f"{self._data(episode_index)}: episode {episode_index}, frame {wrong[0]}: timestamp is "
                f"{timestamps[wrong[0]]}; expected finite, growing seconds; write the episode again"
            )
        return self._clocks.put(episode_index, timestamps)

    def _inside(self, episode_index: int, frame_index: Sequence[int]) -> NDArray[np.int64]:
        """`frame_index` as an array, once the episode is found to have those frames."""
        length = len(self._clock(episode_index))
        wanted = np.asarray(frame_index, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= length)]
        if len(outside):
            raise UserError(
                f"{self.path}: episode {episode_index} has no frame {outside[0]}; expected 0 to {length - 1}; "
                "ask for frames by their frame_index"
            )
        return wanted

    def _matrix(self, table: Any, episode_index: int, key: str, size: int) -> NDArray[np.float32]:
        """A column of numbers as float32 [n, size]."""
        values = table[key].combine_chunks()
        while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
            values = values.flatten()
        with np.errstate(over="ignore"):  # becomes inf, found below
            numbers: NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
        if numbers.size != len(table) * size:
            raise UserError(
                f"{self._data(episode_index)}: episode {episode_index}: '{key}' holds {numbers.size} numbers in "
                f"{len(table)} frames; expected {size} a frame as meta/info.json says; write the episode again"
            )
        numbers = numbers.reshape(len(table), size)
        wrong = np.argwhere(~np.isfinite(numbers))
        if len(wrong):
            frame, place = wrong[0]
            raise UserError(
                f"{self._data(episode_index)}: episode {episode_index}, frame {frame}: {key}[{place}] is "
                f"{numbers[frame, place]}; expected finite numbers; correct them or leave the episode out"
            )
        return numbers

    def _task(self, episode_index: int, number: int) -> str:
        if number not in self._tasks:
            raise UserError(
                f"{self._data(episode_index)}: episode {episode_index}: task_index {number}; expected one of "
                f"{_ranges(self._tasks)}, the tasks in meta/; copy the dataset again"
            )
        return self._tasks[number]

    def _known(self, camera: str) -> Camera:
        if camera not in self.cameras:
            raise UserError(
                f"{self.path}: no camera '{camera}'; expected one of: {nearest(camera, self.cameras)}; "
                "give the full feature key"
            )
        return self.cameras[camera]

    def _need(self, info: Mapping[str, Any], key: str) -> Any:
        if key not in info:
            raise UserError(
                f"{self.path}/meta/info.json: no '{key}'; expected the metadata of a {self.format} dataset; "
                "copy the dataset again"
            )
        return info[key]

    def _check_promises(self, info: Mapping[str, Any], found: Sequence[Episode]) -> None:
        if len(self.episodes) < len(found):
            raise UserError(f"{self.path}/meta: an episode_index stands twice; expected unique ones; copy it again")
        for key, number in (("episodes", len(found)), ("frames", sum(episode.length for episode in found))):
            promised = info.get(f"total_{key}", number)
            if promised > number:
                raise UserError(
                    f"{self.path}/meta/info.json: promises {promised} {key}; the list of episodes holds {number}; "
                    "download or copy the dataset again"
                )


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return any(value for place in (feature, info) for key, value in place.items() if key.endswith("is_depth_map"))


def _camera(path: Path, key: str, feature: Mapping[str, Any]) -> Camera:
    """The image size from `shape`, whose axes `names` says: (h, w, c) or (c, h, w)."""
    shape, names = list(feature.get("shape") or []), feature.get("names")
    if len(shape) != 3:
        raise UserError(
            f"{path}/meta/info.json: camera '{key}' has shape {shape}; expected height, width and channels; "
            "correct the feature's shape"
        )
    if isinstance(names, list) and "height" in names and "width" in names:
        return Camera(key, int(shape[names.index("height")]), int(shape[names.index("width")]))
    channels_first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width = shape[1:] if channels_first else shape[:2]
    return Camera(key, int(height), int(width))


def _exact(stored: NDArray[Any], fps: float) -> NDArray[np.float64]:
    """Timestamps as float64. LeRobot writes frame / fps as float32; what rounding took is given back, so that
    one tolerance and one digest serve an episode of any length and a column of either type."""
    seconds = stored.astype(np.float64)
    regular = np.rint(seconds * fps) / fps
    return np.where(regular.astype(np.float32) == stored.astype(np.float32), regular, seconds)


def _ranges(numbers: Iterable[int]) -> str:
    """'0-11, 13' for 0 to 11 and 13."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
