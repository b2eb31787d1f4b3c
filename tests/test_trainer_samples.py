"""Batches: the right frames under the right names, chunks that end with their episode, any number of workers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catalog import open_cache, open_dataset
from catalog.datasets.statistics import column_statistics
from trainer.batch import Batch
from trainer.normalise import Bounds
from trainer.samples import Samples, batches, read_numbers, stretch
from trainer.targets import CachedFeatures
from trainer.tokenise import ByteTokeniser

CHUNK, SIZE = 6, 4


def make(path: Path, views: list[str], episodes: list[int], cache: Path | None = None) -> Samples:
    dataset = open_dataset(path)
    statistics = column_statistics(dataset, episodes)
    bounds = [Bounds.of(statistics[name]) for name in ("state", "action")]
    numbers = read_numbers(dataset, episodes)
    cached = CachedFeatures(cache, dataset, views, numbers.episode, numbers.frame, -1) if cache else None
    size = (48, 64)
    return Samples(
        dataset, views, numbers, *bounds, ByteTokeniser(), size, CHUNK, SIZE, 3, cached=cached, keep_sources=True
    )


def assert_same(one: Batch, two: Batch) -> None:
    for name, value in vars(one).items():
        for a, b in zip(*(v if isinstance(v, tuple) else (v,) for v in (value, getattr(two, name))), strict=True):
            assert (a is None and b is None) or torch.equal(a, b), name


@pytest.mark.parametrize("name", ["lerobot_v3_sample", "lerobot_v21_sample"])
def test_a_batch_holds_the_frames_that_it_names(samples: Path, name: str) -> None:
    views = ["observation.images.front", "observation.images.wrist"]
    made = make(samples / name, views, [0, 2])
    dataset = made.dataset
    seen = set()
    for number in range(3):
        batch = made[number]
        for i, (episode, frame) in enumerate(zip(batch.episodes.tolist(), batch.frames.tolist(), strict=True)):
            assert episode in (0, 2)
            columns = dataset.columns(episode)
            assert columns.state is not None and columns.action is not None
            assert columns.state[frame, :2].tolist() == [episode, frame]  # this dataset says so itself
            seen.add((episode, frame))
            for view, key in enumerate(views):
                image = torch.from_numpy(dataset.frames(episode, [frame], key))
                assert batch.sources is not None and torch.equal(batch.sources[view][i], image[0])
                assert torch.equal(batch.images[i, view], stretch(image, (48, 64))[0])
            ids = ByteTokeniser()(columns.task[frame])
            assert batch.text[i, batch.text_mask[i]].tolist() == ids
            bounds = [Bounds.of(each) for each in column_statistics(dataset, [0, 2]).values()]
            np.testing.assert_array_equal(batch.state[i], bounds[0].normalise(columns.state)[frame])
            chunk = bounds[1].normalise(columns.action)[frame : frame + CHUNK]
            left = dataset.episodes[episode].length - frame
            assert batch.action_mask[i].tolist() == [k < left for k in range(CHUNK)]
            np.testing.assert_array_equal(batch.actions[i, : len(chunk)], chunk)
            assert batch.actions[i, len(chunk) :].abs().sum() == 0
    assert len(seen) == 3 * SIZE


def test_chunks_never_cross_episodes(samples: Path) -> None:
    made = make(samples / "lerobot_v3_sample", ["observation.images.front"], [0, 1, 2])
    batch = made.batch(np.arange(len(made.numbers.frame)))
    lengths = {index: episode.length for index, episode in made.dataset.episodes.items()}
    inside = [min(CHUNK, lengths[int(e)] - int(f)) for e, f in zip(batch.episodes, batch.frames, strict=True)]
    assert batch.action_mask.sum(1).tolist() == inside
    assert inside.count(1) == 3 and batch.actions[~batch.action_mask].abs().sum() == 0


def test_workers_and_resuming_change_nothing(samples: Path) -> None:
    made = make(samples / "lerobot_v3_sample", ["observation.images.wrist"], [0, 1])
    alone = list(batches(made, 0, 7, workers=0, pin=False))
    shared = list(batches(made, 0, 7, workers=2, pin=False))
    resumed = list(batches(pickle.loads(pickle.dumps(made)), 4, 7, workers=2, pin=False))
    assert len(alone) == len(shared) == 7
    for one, two in zip(alone + alone[4:], shared + resumed, strict=True):
        assert_same(one, two)


def test_the_loader_leaves_the_random_generators_alone(samples: Path) -> None:
    made = make(samples / "lerobot_v3_sample", ["observation.images.wrist"], [0])
    before = torch.get_rng_state()
    list(batches(made, 0, 2, workers=0, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("views", [["corner2", "gripperPOV"], ["gripperPOV", "corner2"], ["gripperPOV"]])
def test_cached_features_belong_to_the_frames_and_views(metaworld: Path, tiny_cache: Path, views: list[str]) -> None:
    keys = [f"observation.images.{view}" for view in views]
    made = make(metaworld, keys, [0, 2], tiny_cache)
    cache = open_cache(tiny_cache, made.dataset)
    for batch in batches(made, 0, 2, workers=1, pin=False):
        rows = cache.rows_of(batch.episodes.numpy(), batch.frames.numpy())
        columns = [cache.recipe.views.index(key) for key in keys]
        expected = torch.from_numpy(cache.read(rows)[:, columns])
        assert batch.features is not None and torch.equal(batch.features, expected)
        assert batch.feature_mask is not None and batch.feature_mask.all()


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (100, 40), (60, 80)])
def test_stretching_is_pillows_resize(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image[10:30, 10:30] = 255
    ours = stretch(torch.from_numpy(image)[None], size)[0].permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    assert abs(ours - theirs).max() <= (0 if size == (60, 80) else 1)
