"""The frames that probes are trained and tested on, with their true depth: one selection for every arm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalog.datasets.dataset import Dataset
from catalog.datasets.selection import select_episodes
from catalog.errors import UserError
from trainer.probe.depth import read_depth

EVERY = 4  # without a choice, every fourth episode is a test: demonstrations come task by task


@dataclass(frozen=True)
class Frames:
    """F frames of V cameras, those of the training episodes first. A map is one camera of one frame: M = F * V."""

    dataset: Dataset
    cameras: tuple[str, ...]  # full keys
    train: tuple[int, ...]  # episodes
    test: tuple[int, ...]
    episode: NDArray[np.int64]  # [F]
    frame: NDArray[np.int64]  # [F]
    depth: Tensor  # [M, H, W] float16, metres; map m is camera m % V of frame m // V

    @property
    def split(self) -> int:
        """The first map of a test episode."""
        return int(np.isin(self.episode, self.train).sum()) * len(self.cameras)

    def of_episodes(self) -> Iterator[tuple[int, list[int]]]:
        """(episode, its frame numbers), in order."""
        for episode in (*self.train, *self.test):
            yield episode, self.frame[self.episode == episode].tolist()


def split_episodes(dataset: Dataset, train: str | None, test: str | None) -> tuple[list[int], list[int]]:
    """Training and test episodes. Without a choice, every fourth is a test; what one choice leaves is the other.

    Raises UserError where they overlap or one is empty.
    """
    everything = list(dataset.episodes)
    chosen = [select_episodes(dataset, each) if each is not None else None for each in (train, test)]
    if chosen[0] is None and chosen[1] is None:
        chosen[1] = everything[EVERY - 1 :: EVERY] or everything[-1:]
    trained = chosen[0] if chosen[0] is not None else [each for each in everything if each not in set(chosen[1] or [])]
    tested = chosen[1] if chosen[1] is not None else [each for each in everything if each not in set(trained)]
    if both := sorted(set(trained) & set(tested)):
        raise UserError(
            f"episodes {', '.join(map(str, both[:8]))} are in --train-episodes and in --test-episodes; a probe is "
            "tested on episodes that it was not trained on: name each in one of them"
        )
    if not trained or not tested:
        raise UserError(
            f"{dataset.path}: {len(trained)} episodes to train on and {len(tested)} to test on; expected some of each "
            f"(it has {len(everything)}); choose with --train-episodes and --test-episodes"
        )
    return trained, tested


def read_frames(
    dataset: Dataset, cameras: Sequence[str], train: Sequence[int], test: Sequence[int], stride: int
) -> Frames:
    """Every `stride`-th frame of the episodes, with depth.

    Raises UserError for a dataset without depth, and where the cameras' depth maps differ in size.
    """
    episodes, numbers, maps = [], [], []
    size: tuple[int, ...] | None = None
    for episode in (*train, *test):
        wanted = list(range(0, dataset.episodes[episode].length, stride))
        views = [read_depth(dataset, camera, episode, wanted) for camera in cameras]
        for camera, view in zip(cameras, views, strict=True):
            size = size or view.shape[1:]
            if view.shape[1:] != size:
                raise UserError(
                    f"{dataset.path}: depth of {camera} in episode {episode} is {view.shape[1]}x{view.shape[2]}, "
                    f"others {size[0]}x{size[1]}; a probe needs one size: make the demonstrations again"
                )
        maps.append(torch.from_numpy(np.stack(views, axis=1)).flatten(0, 1))
        episodes += [episode] * len(wanted)
        numbers += wanted
    return Frames(
        dataset,
        tuple(cameras),
        tuple(train),
        tuple(test),
        np.asarray(episodes, np.int64),
        np.asarray(numbers, np.int64),
        torch.cat(maps),
    )
