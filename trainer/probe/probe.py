"""The whole of it: frames, arms, fits, numbers. Same frames, steps, seed and capacity for every arm.

Cost: one forward of each policy over the frames, then a short fit for each layer and arm. The tokens of one arm at a
time are in memory, in float16: frames x views x tokens x width x layers x 2 bytes. Where that is too much, take fewer
layers or a larger stride.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from catalog.datasets import open_dataset
from catalog.errors import UserError
from trainer.probe.arms import NO_IMAGE, Arm, check_alike, make_arms, no_image
from trainer.probe.fit import Settings, fit, offsets
from trainer.probe.frames import Frames, read_frames, split_episodes
from trainer.probe.heads import KINDS, Kind, spread
from trainer.probe.measure import LIMIT, RESAMPLES, Bootstrap, Sums, by_episode, counts, metrics, sums
from trainer.probe.policy import load, seen_in_training
from trainer.probe.teacher import open_features

PICTURES = 3  # test frames that are drawn, each from all cameras

Key = tuple[str, Kind | None, tuple[int, ...], int]  # arm, probe, layers, width


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    runs: tuple[Path, ...]
    dataset: Path
    cache: Path | None = None
    layers: tuple[int, ...] | None = None  # None: all
    train: str | None = None  # episodes, as in 0:18
    test: str | None = None
    stride: int = 4  # frames of an episode are nearly copies of each other
    steps: int = 400
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Pictures:
    """Some test frames and what each arm makes of them, with the DPT-like probe."""

    maps: list[int]  # their places among all maps
    predicted: dict[str, Tensor]  # by arm: [pictures, H, W] metres


def probe(asked: Asked) -> tuple[dict[str, Any], Frames, Pictures]:
    """All numbers, the frames that they are of, and predictions to draw. Raises UserError for what does not fit."""
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device is {asked.device}, but torch finds no GPU; leave it at cpu")
    dataset = open_dataset(asked.dataset)
    train, test = split_episodes(dataset, asked.train, asked.test)
    runs = [load(run, dataset) for run in asked.runs]
    check_alike(runs)
    layers = [run.layers(asked.layers) for run in runs]
    frames = read_frames(dataset, runs[0].cameras, train, test, asked.stride)
    features = open_features(asked.cache, frames, runs[0].policy) if asked.cache else None
    if features is not None and features.seen is not None:
        hide(frames.depth, features.seen, runs[0].policy.grid)
    _check_depth(frames)
    arms = make_arms(runs, layers, features, frames, asked.seed, asked.device)
    width = min(arm.width for arm in arms)
    measured = Measured(frames, asked.seed)
    measured.add((NO_IMAGE, None, (), 0), no_image(frames.depth[: frames.split], len(frames.cameras))[measured.camera])
    settings = Settings(runs[0].policy.grid, width, asked.steps, asked.seed, asked.device)
    learned: dict[str, int] = {}
    for arm in arms:
        learned |= _probe_arm(arm, settings, frames, measured)
    about = {
        "dataset": str(dataset.path),
        "cache": str(asked.cache) if asked.cache else None,
        "cameras": [camera.rsplit(".", 1)[-1] for camera in frames.cameras],
        "train_episodes": train,
        "test_episodes": test,
        "stride": asked.stride,
        "frames": {"train": frames.split // len(frames.cameras), "test": len(measured.camera) // len(frames.cameras)},
        "map": list(frames.depth.shape[1:]),
        "limit_metres": LIMIT,
        "resamples": RESAMPLES,
        "grid": list(runs[0].policy.grid),
        "width": width,
        "steps": asked.steps,
        "seed": asked.seed,
        "parameters": learned,
        "arms": [
            {"name": arm.name, "kind": arm.kind, "width": arm.width, "layers": arm.layers, "checkpoint": arm.checkpoint}
            for arm in arms
        ],
        "test_episodes_seen_by_the_policy": {run.name: seen_in_training(run, dataset, test) for run in runs},
    }
    result = {**about, "results": measured.results(), "differences": measured.differences(arms)}
    return result, frames, Pictures(measured.pictures, measured.drawn)


def hide(depth: Tensor, seen: Tensor, grid: tuple[int, int]) -> None:
    """Make depth [M, H, W] count for no arm where the teacher did not see what the token shows; `seen` [V, n]."""
    views = len(seen)
    flags = seen.unflatten(1, grid).unsqueeze(1).float()
    pixels = torch.nn.functional.interpolate(flags, size=tuple(depth.shape[1:]), mode="nearest").squeeze(1) > 0
    depth.view(-1, views, *depth.shape[1:]).masked_fill_(~pixels, torch.inf)


def _check_depth(frames: Frames) -> None:
    for which, depth in (("training", frames.depth[: frames.split]), ("test", frames.depth[frames.split :])):
        if not counts(depth).any():
            raise UserError(
                f"{frames.dataset.path}: nothing within {LIMIT:.0f} m in the {which} episodes' depth; choose others, "
                "or make the demonstrations again with --depth"
            )


class Measured:
    """Sums of every prediction, by camera and test episode; in the end, the numbers."""

    def __init__(self, frames: Frames, seed: int):
        self.frames = frames
        self.true = frames.depth[frames.split :]
        views = len(frames.cameras)
        episode = np.repeat(frames.episode, views)[frames.split :]
        self.camera = np.tile(np.arange(views), len(episode) // views)
        self.episode = episode
        self.places = {number: place for place, number in enumerate(frames.test)}
        self.bootstrap = Bootstrap.of(len(frames.test), seed)
        self.sums: dict[Key, Sums] = {}  # [V, E, 4]
        # The middle frame of some test episodes, every camera.
        chosen = np.unique(np.linspace(0, len(frames.test) - 1, PICTURES).round().astype(int))
        self.pictures = [
            int(frame * views + view)
            for place in chosen
            for frame in [np.flatnonzero(frames.episode == frames.test[place])]
            for frame in [frame[len(frame) // 2]]
            for view in range(views)
        ]
        self.drawn: dict[str, Tensor] = {}

    def add(self, key: Key, predicted: Tensor) -> None:
        """`predicted` [test maps, H, W] metres."""
        each = np.concatenate(
            [sums(one, true) for one, true in zip(predicted.split(64), self.true.split(64), strict=True)]
        )
        self.sums[key] = np.stack(
            [
                by_episode(each[self.camera == view], self.episode[self.camera == view], self.places)
                for view in range(len(self.frames.cameras))
            ]
        )
        if key[1] in (None, "dpt") and key[0] not in self.drawn:  # the common width comes first
            self.drawn[key[0]] = predicted[[place - self.frames.split for place in self.pictures]]

    def results(self) -> list[dict[str, Any]]:
        short = [camera.rsplit(".", 1)[-1] for camera in self.frames.cameras]
        rows = []
        for (arm, kind, layers, width), each in self.sums.items():
            episodes = {name: values.tolist() for name, values in metrics(each.sum(0)).items()}
            rows.append(
                {
                    "arm": arm,
                    "probe": kind,
                    "layers": list(layers),
                    "width": width or None,
                    "pixels": int(each[..., 0].sum()),
                    "all": self.bootstrap.summary(each.sum(0)),
                    "cameras": {name: self.bootstrap.summary(one) for name, one in zip(short, each, strict=True)},
                    "episodes": {
                        str(number): {name: _finite(values[place]) for name, values in episodes.items()}
                        for number, place in self.places.items()
                    },
                }
            )
        return rows

    def differences(self, arms: Sequence[Arm]) -> list[dict[str, Any]]:
        """Of each run to its floor and to the first run, paired, at the same probe, layers and width."""
        runs = [arm for arm in arms if arm.kind == "run"]
        rows = []
        for arm in runs:
            for other in [arm.floor, *([runs[0].name] if arm is not runs[0] else [])]:
                for (name, kind, layers, width), each in self.sums.items():
                    against = self.sums.get((other or "", kind, layers, width))
                    if name == arm.name and against is not None:
                        difference = self.bootstrap.difference(each.sum(0), against.sum(0))
                        rows.append(
                            {"arm": name, "minus": other, "probe": kind, "layers": list(layers), "width": width}
                            | {"all": difference}
                        )
        return rows


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _probe_arm(arm: Arm, settings: Settings, frames: Frames, measured: Measured) -> dict[str, int]:
    """Fit and measure all probes of an arm, at the common width and, where its tokens are wider, at their own."""
    tokens = arm.read()
    widths = [settings.width] if arm.width == settings.width else [settings.width, arm.width]
    jobs: list[tuple[Kind, tuple[int, ...], int]] = [
        (kind, layers, width)
        for width in widths
        for kind in KINDS
        for layers in ([tuple(spread(arm.layers))] if kind == "dpt" else [(layer,) for layer in arm.layers])
    ]
    learned: dict[str, int] = {}
    known = frames.depth[: frames.split]
    offset = offsets(known, len(frames.cameras)).repeat(len(frames.frame))
    for kind, layers, width in tqdm(jobs, unit="fit", desc=f"probes of {arm.name}", file=sys.stderr):
        train = [tokens[layer][: frames.split] for layer in layers]
        test = [tokens[layer][frames.split :] for layer in layers]
        one = Settings(settings.grid, width, settings.steps, settings.seed, settings.device)
        found = fit(kind, train, known, offset[: frames.split], one)
        measured.add(
            (arm.name, kind, layers, width),
            torch.cat(list(found.predict(test, offset[frames.split :], settings.device))),
        )
        learned[f"{kind}, width {width}"] = found.parameters_learned
    return learned
