"""Normalisation: there, back, and clipped; constant columns do no harm."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from catalog.datasets import open_dataset
from catalog.datasets.statistics import column_statistics
from trainer.normalise import Bounds

BOUNDS = Bounds(np.asarray([-2, 0, 5], np.float32), np.asarray([2, 0.5, 5], np.float32))


@given(arrays(np.float32, (7, 3), elements=st.floats(0, 1, width=32)))
def test_round_trip_inside_the_bounds(parts: np.ndarray) -> None:
    values = BOUNDS.q01 + parts * (BOUNDS.q99 - BOUNDS.q01)
    normalised = BOUNDS.normalise(values)
    assert normalised.dtype == np.float32 and abs(normalised).max() <= 1
    np.testing.assert_allclose(BOUNDS.restore(normalised), values, atol=1e-5)


def test_clipping_and_constant_columns() -> None:
    values = np.asarray([[-9, -9, -9], [9, 9, 9], [0, 0.25, 5]], np.float32)
    assert BOUNDS.normalise(values).tolist() == [[-1, -1, 0], [1, 1, 0], [0, 0, 0]]
    assert BOUNDS.restore(np.asarray([0, 0, 1], np.float32))[2] == 5


def test_bounds_are_global_quantiles_of_the_training_episodes(metaworld) -> None:
    dataset = open_dataset(metaworld)
    bounds = Bounds.of(column_statistics(dataset, [1, 4])["action"])
    actions = np.concatenate([dataset.columns(episode).action for episode in (1, 4)])
    np.testing.assert_allclose(bounds.q01, np.quantile(actions, 0.01, axis=0), rtol=1e-6)
    assert np.mean(abs(bounds.normalise(actions)) == 1) > 0
    again = Bounds.from_json(json.loads(json.dumps(bounds.to_json())))
    assert np.array_equal(again.q01, bounds.q01) and np.array_equal(again.q99, bounds.q99)
    assert bounds.q01.shape == (4,) and bounds.q99.dtype == np.float32


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    assert BOUNDS.normalise(np.zeros(shape, np.float32)).shape == shape
