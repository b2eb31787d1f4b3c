"""Batches by number: batch k holds the samples k*B to (k+1)*B of the endless ordered stream (`trainer.order`).

One sample is one frame of one training episode, named by (episode, frame): its images at the student's size, its
instruction and state, and the chunk of actions from it on, masked where the episode ends before the chunk does.
A batch is a function of its number alone, so any number of loader workers gives the same batches, and a resumed run
asks for the next one. A cache is read once a batch, by the worker that makes it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from catalog.datasets.dataset import Dataset
from trainer.batch import Batch, pad_right
from trainer.normalise import Bounds
from trainer.order import Order
from trainer.targets import CachedFeatures
from trainer.tokenise import PADDING, Tokeniser


@dataclass(frozen=True)
class Numbers:
    """States, actions and instructions of all frames of the training episodes, one after the other."""

    episode: NDArray[np.int64]  # [n]
    frame: NDArray[np.int64]  # [n]
    end: NDArray[np.int64]  # [n] the place after the last frame of the same episode
    state: NDArray[np.float32]  # [n, S], in the dataset's units
    action: NDArray[np.float32]  # [n, A], in the dataset's units
    task: list[str]  # n instructions

    def digest(self) -> str:
        """sha256 of all of it: two datasets with one digest teach the same actions."""
        sha256 = hashlib.sha256()
        for array in (self.episode, self.frame, self.state, self.action):
            sha256.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        sha256.update("\0".join(self.task).encode())
        return sha256.hexdigest()


def read_numbers(dataset: Dataset, episodes: Sequence[int]) -> Numbers:
    """The numbers of some episodes. Raises UserError as `Dataset.columns` does: a NaN is named by its frame."""
    columns = {episode: dataset.columns(episode) for episode in episodes}
    lengths = [len(each.frame_index) for each in columns.values()]
    ends = list(accumulate(lengths))
    return Numbers(
        episode=np.repeat(np.asarray(list(columns), np.int64), lengths),
        frame=np.concatenate([each.frame_index for each in columns.values()]),
        end=np.repeat(np.asarray(ends, np.int64), lengths),
        state=np.concatenate([each.state for each in columns.values() if each.state is not None]),
        action=np.concatenate([each.action for each in columns.values() if each.action is not None]),
        task=[task for each in columns.values() for task in each.task],
    )


def stretch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole images uint8 [n, H, W, 3] -> uint8 [n, 3, *size], bicubic with antialiasing.

    In uint8 torch computes what Pillow does, to one grey level: the resize that PaliGemma was trained with.
    """
    channels_first = images.permute(0, 3, 1, 2)
    if channels_first.shape[-2:] != size:
        channels_first = F.interpolate(channels_first, size=size, mode="bicubic", antialias=True, align_corners=False)
    return channels_first.contiguous()


class Samples(TorchDataset[Batch]):
    """Batch number -> Batch. Picklable and safe to fork: it holds arrays, the dataset and the cache."""

    def __init__(
        self,
        dataset: Dataset,
        views: Sequence[str],
        numbers: Numbers,
        state_bounds: Bounds,
        action_bounds: Bounds,
        tokeniser: Tokeniser,
        image_size: tuple[int, int],
        chunk: int,
        batch_size: int,
        seed: int,
        cached: CachedFeatures | None = None,
        keep_sources: bool = False,
    ):
        self.dataset, self.views, self.numbers = dataset, tuple(views), numbers
        self.state = state_bounds.normalise(numbers.state)
        self.action = action_bounds.normalise(numbers.action)
        self.ids = {task: tokeniser(task) for task in dict.fromkeys(numbers.task)}
        self.image_size, self.chunk, self.batch_size = image_size, chunk, batch_size
        self.order = Order(seed, len(numbers.frame))
        self.cached = cached
        self.keep_sources = keep_sources

    def __getitem__(self, number: int) -> Batch:
        return self.batch(self.order(number * self.batch_size, self.batch_size))

    def batch(self, places: NDArray[np.int64]) -> Batch:
        """The batch of the samples at some places of `numbers`."""
        numbers = self.numbers
        episodes, frames = numbers.episode[places], numbers.frame[places]
        # A view at a time: cameras may differ in size.
        sources = tuple(self._images(view, episodes, frames) for view in self.views)
        images = [torch.stack([stretch(image[None], self.image_size)[0] for image in view]) for view in sources]
        text, text_mask = pad_right([self.ids[numbers.task[place]] for place in places], PADDING)
        ahead = places[:, None] + np.arange(self.chunk)
        inside = ahead < numbers.end[places, None]
        actions = np.where(inside[..., None], self.action[np.minimum(ahead, len(self.action) - 1)], 0)
        features, feature_mask = self.cached.read(places) if self.cached else (None, None)
        return Batch(
            episodes=torch.from_numpy(episodes),
            frames=torch.from_numpy(frames),
            images=torch.stack(images, dim=1),
            views=torch.ones(len(places), len(self.views), dtype=torch.bool),
            text=text,
            text_mask=text_mask,
            state=torch.from_numpy(self.state[places]),
            actions=torch.from_numpy(actions.astype(np.float32)),
            action_mask=torch.from_numpy(inside),
            features=features,
            feature_mask=feature_mask,
            sources=tuple(torch.stack(view) for view in sources) if self.keep_sources else None,
        )

    def _images(self, view: str, episodes: NDArray[np.int64], frames: NDArray[np.int64]) -> list[Tensor]:
        return [
            torch.from_numpy(self.dataset.frames(int(episode), [int(frame)], view)[0])
            for episode, frame in zip(episodes, frames, strict=True)
        ]


def batches(samples: Samples, start: int, stop: int, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches start, start + 1, ..., stop - 1, in order, made by `workers` processes (0: by this one)."""
    loader = DataLoader(
        samples,
        sampler=range(start, stop),
        batch_size=None,  # an item is a whole batch
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # the loader draws a seed: not from the run's own generator
    )
    return iter(loader)
