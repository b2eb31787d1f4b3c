"""The order of the training samples: a pure function of (seed, global sample number).

Every epoch is a permutation of the dataset's samples. Nothing is drawn from a generator that has a state, so a run
starts at any sample number, and any number of loader workers sees the same order. The permutation sorts hashes
(splitmix64, Steele et al. 2014) instead of asking numpy, whose generators may change between versions.
"""

import numpy as np
from numpy.typing import NDArray


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each element; a bijection, so different elements never collide."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of epoch `epoch`: a permutation of range(size)."""
    # Not symmetric in the two: seed 1 must not live through seed 0's epochs in another order.
    key = splitmix64(splitmix64(np.asarray([seed], np.uint64)) ^ np.uint64(epoch))
    return np.argsort(splitmix64(np.arange(size, dtype=np.uint64) ^ key), kind="stable").astype(np.int64)


class Order:
    """The endless stream of samples of one seed; keeps the permutation of the epoch it was last asked for."""

    def __init__(self, seed: int, size: int):
        self.seed, self.size = seed, size
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __call__(self, start: int, count: int) -> NDArray[np.int64]:
        """The samples [count] at the global sample numbers start, start + 1, ..."""
        return np.asarray([self._at(number) for number in range(start, start + count)], np.int64)

    def _at(self, number: int) -> int:
        epoch, place = divmod(number, self.size)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self.seed, epoch, self.size)
        return int(self._permutation[place])
