"""The order of the data is a pure function of the seed and the sample number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.order import Order, permutation, splitmix64

SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, 200)


@given(SEEDS, SIZES, st.integers(0, 2000), st.integers(0, 50), st.integers(0, 50))
def test_any_window_of_the_stream_is_the_same(seed: int, size: int, start: int, first: int, second: int) -> None:
    whole = Order(seed, size)(start, first + second)
    resumed = Order(seed, size)
    assert whole.tolist() == [*Order(seed, size)(start, first), *resumed(start + first, second)]


@given(SEEDS, SIZES, st.integers(0, 5))
def test_every_epoch_is_a_permutation(seed: int, size: int, epoch: int) -> None:
    assert sorted(Order(seed, size)(epoch * size, size)) == list(range(size))


def test_epochs_and_seeds_differ_and_mix() -> None:
    orders = {tuple(permutation(seed, epoch, 100)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400
    places = np.mean([permutation(0, epoch, 100) for epoch in range(200)], axis=0)
    assert abs(places - 49.5).max() < 10  # no sample has a place of its own


def test_the_order_never_changes_between_versions() -> None:
    assert int(splitmix64(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF  # of the reference implementation
    assert Order(7, 5)(0, 12).tolist() == [3, 2, 0, 1, 4, 2, 0, 4, 1, 3, 1, 0]
