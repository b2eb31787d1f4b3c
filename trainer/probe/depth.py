"""True depth beside a dataset: depth/<camera>/episode-<episode_index>.npz, as `trainer demos --depth` writes it."""

from collections.abc import Sequence
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from catalog.datasets.dataset import Dataset
from catalog.errors import UserError


def read_depth(dataset: Dataset, camera: str, episode: int, frames: Sequence[int]) -> NDArray[np.float16]:
    """Depth [n, H, W] in metres along the camera's z axis (inf: nothing there) of some frames of an episode.

    `camera` is a full key. Raises UserError where there is none, or none of these frames.
    """
    name = camera.rsplit(".", 1)[-1]
    path = dataset.path / "depth" / name / f"episode-{episode:06d}.npz"
    if not path.is_file():
        raise UserError(
            f"{dataset.path}: no depth of camera {name}, episode {episode} (expected depth/{name}/{path.name}); "
            f"make a dataset that has it: `trainer demos --depth --cameras {name} --tasks ... --out DIR`"
        )
    try:
        with np.load(path) as file:
            depth: NDArray[np.float16] = file["depth"]
            numbers = file["frame_index"] if "frame_index" in file else np.arange(len(depth))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: not readable ({error}); make the demonstrations again") from None
    length = dataset.episodes[episode].length
    if depth.ndim != 3 or len(numbers) != len(depth) or len(depth) != length:
        raise UserError(
            f"{path}: depth of shape {list(depth.shape)}, expected [{length}, H, W] (the episode has {length} frames); "
            "the dataset was edited without its depth: make the demonstrations again"
        )
    places = {int(number): place for place, number in enumerate(numbers)}
    if missing := [frame for frame in frames if frame not in places]:
        raise UserError(f"{path}: no depth of frame {missing[0]}; make the demonstrations again")
    return depth[[places[frame] for frame in frames]]
