"""What an episode's images are, as a sha256: the key under which features are stored and found.

A camera's digest covers what was encoded and when it is shown, not the files around it:

    for each packet (video) or image (parquet), in stored order:  length, 8 bytes little-endian; the bytes
        (a frame of which the camera has no image:                length 2^64 - 1; nothing)
    for each frame:  its timestamp in microseconds since the episode began, int64 little-endian
    the number of frames, 8 bytes little-endian, so that no other episode can give the same bytes

Splitting or merging files, renumbering episodes and editing actions or states keep it; encoding again changes it.
Cost: reads each video byte once, decodes nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from catalog.datasets.dataset import Dataset
from catalog.identity import digest

_ABSENT = b"\xff" * 8


def camera_digest(pieces: Iterable[bytes | None], timestamps: NDArray[np.float64]) -> str:
    """64 hex digits over encoded packets or images and `timestamps` [n], seconds since the episode began."""
    sha = hashlib.sha256()
    for piece in pieces:
        if piece is None:
            sha.update(_ABSENT)
        else:
            sha.update(len(piece).to_bytes(8, "little"))
            sha.update(piece)
    sha.update(np.rint(timestamps * 1e6).astype("<i8").tobytes())
    sha.update(len(timestamps).to_bytes(8, "little"))
    return sha.hexdigest()


def episode_digest(dataset: Dataset, episode_index: int, cameras: Sequence[str]) -> str:
    """64 hex digits over what `cameras` (full keys, in any order) recorded of an episode."""
    return digest({camera: dataset.camera_digest(episode_index, camera) for camera in cameras})


def episode_digests(dataset: Dataset, cameras: Sequence[str], episodes: Iterable[int] | None = None) -> dict[int, str]:
    """`episode_digest` of all or some episodes, by episode_index in ascending order.

    One camera after the other and episodes in order, so that every video file is read once, front to back.
    """
    chosen = sorted(dataset.episodes if episodes is None else set(episodes))
    by_camera = {camera: [dataset.camera_digest(index, camera) for index in chosen] for camera in cameras}
    return {
        index: digest({camera: digests[place] for camera, digests in by_camera.items()})
        for place, index in enumerate(chosen)
    }


def fingerprint(digests: Iterable[str]) -> str:
    """64 hex digits over episode digests in the dataset's order: of the dataset, whatever its files and numbers.

    Removing, adding, exchanging or encoding again any episode changes it.
    """
    return digest(list(digests))
