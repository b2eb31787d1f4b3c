"""A trained policy, frozen, and one of the same config that was never trained; and their image tokens."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from catalog.datasets import open_dataset, resolve_views
from catalog.datasets.dataset import Dataset
from catalog.datasets.selection import select_episodes
from catalog.errors import UserError
from trainer.batch import Batch, pad_right
from trainer.config import RunConfig
from trainer.hook import HiddenState
from trainer.models import paligemma
from trainer.normalise import Bounds
from trainer.probe.frames import Frames
from trainer.samples import stretch
from trainer.tokenise import PADDING
from trainer.trained import read_policy, read_run

BATCH = 16  # frames a forward
HIGHEST = 65504.0  # of float16


@dataclass(frozen=True)
class Frozen:
    """A policy that nothing trains."""

    name: str
    policy: paligemma.PaliGemmaPolicy
    config: RunConfig
    cameras: tuple[str, ...]  # full keys in the probe's dataset, in the order that it saw them in training
    bounds: Bounds  # of the state
    checkpoint: str | None  # None: never trained

    def layers(self, asked: Sequence[int] | None) -> list[int]:
        """The layers asked for (None: all, from 0, the embeddings, to after the final norm).

        Raises UserError for one that does not exist.
        """
        last = len(self.policy.layers)
        for layer in asked or ():
            if not 0 <= layer <= last:
                raise UserError(
                    f"{self.name}: layer {layer} does not exist: the policy has {last} layers; give --layers from 0 "
                    f"(the embeddings) to {last} (after the final norm)"
                )
        return sorted(set(asked)) if asked is not None else list(range(last + 1))


def load(run: Path, dataset: Dataset) -> Frozen:
    """The policy of a run at its last whole checkpoint, to be shown frames of `dataset`.

    Raises UserError for a folder that is no run or has no checkpoint, and for a dataset that has not the run's views
    or another robot's states.
    """
    config, state, action = read_run(run)
    views = config.data.views
    if not views:  # it saw all cameras of what it was trained on
        views = tuple(open_dataset(config.data.dataset).cameras)
    try:
        cameras = resolve_views(
            dataset, [view if view in dataset.cameras else view.rsplit(".", 1)[-1] for view in views]
        )
    except UserError as error:
        raise UserError(f"{run} sees {', '.join(views)}: {error}; or make a dataset with these cameras") from None
    found = dataset.columns(next(iter(dataset.episodes))).state
    if found is None or found.shape[1] != len(state.q01):
        size = "no states" if found is None else f"states of {found.shape[1]} numbers"
        raise UserError(
            f"{run} was trained on states of {len(state.q01)} numbers, {dataset.path} has {size}; give a dataset of "
            "the same robot"
        )
    policy, path = read_policy(run, config, state, action)
    return Frozen(run.resolve().name, policy.requires_grad_(False), config, cameras, state, str(path))


def untrained(frozen: Frozen, name: str, seed: int) -> Frozen:
    """A policy of the same config with random weights from a seed, also where the run began with pretrained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = copy.deepcopy(frozen.policy)
        fresh = paligemma.PaliGemmaModel(copy.deepcopy(policy.vlm.config))
        policy.vlm = fresh
        for module in (policy.proprio_projector, policy.action_head):
            for part in module.modules():
                if isinstance(part, nn.Linear | nn.LayerNorm):
                    part.reset_parameters()
    return replace(frozen, name=name, policy=policy.eval().requires_grad_(False), checkpoint=None)


def seen_in_training(frozen: Frozen, dataset: Dataset, episodes: Sequence[int]) -> list[int] | None:
    """Those of `episodes` that the policy itself was trained on; None where it was trained on another dataset.

    A policy never sees depth, so these are no leak into the probe, but its tokens may be at home in them.
    """
    if Path(frozen.config.data.dataset).resolve() != dataset.path.resolve():
        return None
    trained = set(select_episodes(dataset, frozen.config.data.episodes))
    return [episode for episode in episodes if episode in trained]


def tokens(frozen: Frozen, frames: Frames, layers: Sequence[int], device: str) -> dict[int, Tensor]:
    """Image tokens [M, n, D] of some hidden states, float16, by layer, for the maps of `frames`."""
    policy = frozen.policy.to(device)
    ids = {task: policy.tokeniser(task) for each in frames.dataset.episodes.values() for task in each.tasks}
    order = [frozen.cameras.index(camera) for camera in frames.cameras]
    views = len(frozen.cameras)
    # Written in place: a list of parts and their concatenation would take the memory twice.
    shape = (len(frames.frame), views, policy.grid[0] * policy.grid[1], policy.width)
    out = {layer: torch.empty(shape, dtype=torch.float16) for layer in layers}
    done = 0
    captures = [HiddenState(policy.layers, policy.final_norm, layer) for layer in layers]
    try:
        with tqdm(total=len(frames.frame), unit="frame", desc=f"tokens of {frozen.name}", file=sys.stderr) as bar:
            for episode, wanted in frames.of_episodes():
                columns = frames.dataset.columns(episode)
                assert columns.state is not None
                state = torch.from_numpy(frozen.bounds.normalise(columns.state[wanted]))
                words = [columns.task[frame] for frame in wanted]
                for start, images in _images(frozen, frames.dataset, episode, wanted):
                    part = slice(start, start + len(images))
                    text, text_mask = pad_right(
                        [ids.get(task) or policy.tokeniser(task) for task in words[part]], PADDING
                    )
                    batch = _batch(frozen, images, text, text_mask, state[part])
                    with torch.inference_mode(), ExitStack() as stack:
                        for capture in captures:
                            stack.enter_context(capture)
                        policy(batch.to(torch.device(device)))
                    for layer, capture in zip(layers, captures, strict=True):
                        values = policy.image_tokens(capture.value, views)[:, order]
                        out[layer][done : done + len(images)] = values.float().clamp(-HIGHEST, HIGHEST).half().cpu()
                    done += len(images)
                    bar.update(len(images))
    finally:
        for capture in captures:
            capture.detach()
        policy.to("cpu")
    return {layer: values.flatten(0, 1) for layer, values in out.items()}


def _images(frozen: Frozen, dataset: Dataset, episode: int, frames: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(place of the first, images [B, V, 3, h, w] uint8) of an episode's frames, framed as in training."""
    size, kept, start = frozen.policy.image_size, [], 0
    for place, views in enumerate(dataset.decode(episode, frozen.cameras, frames)):
        for camera, image in zip(frozen.cameras, views, strict=True):
            if image is None:
                raise UserError(
                    f"{dataset.path}: no image of {camera} in episode {episode}, frame {frames[place]}; leave the "
                    "episode out with --train-episodes and --test-episodes"
                )
        kept.append(
            torch.stack([stretch(torch.from_numpy(image)[None], size)[0] for image in views if image is not None])
        )
        if len(kept) == BATCH:
            yield start, torch.stack(kept)
            start, kept = place + 1, []
    if kept:
        yield start, torch.stack(kept)


def _batch(frozen: Frozen, images: Tensor, text: Tensor, text_mask: Tensor, state: Tensor) -> Batch:
    """As in training, but for the actions, which nothing asks for."""
    count, chunk = len(images), frozen.policy.chunk
    nothing: NDArray[np.int64] = np.zeros(count, np.int64)
    return Batch(
        episodes=torch.from_numpy(nothing),
        frames=torch.from_numpy(nothing),
        images=images,
        views=torch.ones(images.shape[:2], dtype=torch.bool),
        text=text,
        text_mask=text_mask,
        state=state,
        actions=torch.zeros(count, chunk, frozen.policy.action_size),
        action_mask=torch.ones(count, chunk, dtype=torch.bool),
    )
