"""Open a sealed cache: find rows by episode and frame, read features, check that they belong to a dataset."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalog.cache.decode import decode
from catalog.cache.header import is_sealed, read_header
from catalog.cache.reader import ArrayReader
from catalog.cache.recipe import Recipe
from catalog.cache.seal import FRAMES, FRAMES_SCHEMA
from catalog.datasets import open_dataset
from catalog.datasets.dataset import Dataset
from catalog.datasets.digests import episode_digest
from catalog.errors import UserError

MISSING = -1


class Cache:
    """A sealed cache, opened with the dataset whose frames it is asked for. Made by `open_cache`.

    Rows are found through the episodes' digests, so a cache never gives features of other pixels, however the
    dataset was renumbered. Picklable, and safe to use after a fork.
    """

    def __init__(self, root: Path, dataset: Dataset | None, check: bool) -> None:
        self.path = root
        self.header = read_header(root)
        self.dataset = dataset
        self._readers = {tap: ArrayReader(root / tap / "values", check) for tap in self.recipe.taps}
        try:
            table = pq.read_table(root / FRAMES, schema=FRAMES_SCHEMA)
        except (OSError, ValueError) as error:
            raise UserError(f"{root / FRAMES}: not readable ({error}); run `pipeline verify`") from None
        self.rows: NDArray[np.int64] = table["row"].to_numpy()  # filled rows, ascending
        self.frame_index: NDArray[np.int64] = table["frame_index"].to_numpy()
        views = len(self.recipe.views)
        flags = pc.list_flatten(table["present"]).to_numpy(zero_copy_only=False).reshape(-1, views)
        self._present: NDArray[np.bool_] = np.zeros((self.header.shards * self.header.storage.shard_rows, views), bool)
        self._present[self.rows] = flags
        # Rows of an episode lie side by side, so an episode is a run of equal digests.
        digests = table["episode"].combine_chunks().dictionary_encode()
        codes = digests.indices.to_numpy()
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        runs = zip(starts, np.append(starts[1:], len(codes)), strict=True)
        names = digests.dictionary.to_pylist()
        self._runs: dict[str, slice] = {names[codes[start]]: slice(int(start), int(stop)) for start, stop in runs}
        index = table["episode_index"].to_numpy()
        self._recorded: dict[int, str] = {int(index[run.start]): name for name, run in self._runs.items()}

    @property
    def recipe(self) -> Recipe:
        return self.header.recipe

    @property
    def channels(self) -> int:
        return int(self.recipe.teacher["channels"])

    @property
    def episodes(self) -> frozenset[str]:
        """Digests of the episodes that have rows."""
        return frozenset(self._runs)

    def digest(self, episode_index: int) -> str:
        """The digest under which to look for an episode: the dataset's own where the cache was opened with one,
        else the one that bore this number when the cache was made."""
        if self.dataset is None:
            if episode_index not in self._recorded:
                raise UserError(f"{self.path}: no episode {episode_index}; it has {_shorten(sorted(self._recorded))}")
            return self._recorded[episode_index]
        return episode_digest(self.dataset, episode_index, self.recipe.views)

    def rows_of(
        self,
        episode_index: int | Sequence[int] | NDArray[np.int64],
        frame_index: int | Sequence[int] | NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Slots [n] of frames named by episode and frame (broadcast against each other).

        Raises UserError for a frame that has no row, and for an episode whose pixels are not those of the cache.
        """
        episodes, frames = np.broadcast_arrays(np.atleast_1d(episode_index), np.atleast_1d(frame_index))
        rows = np.full(episodes.shape, MISSING, np.int64)
        for episode in np.unique(episodes):
            asked = episodes == episode
            rows[asked] = self._rows_in(int(episode), frames[asked])
        if (rows == MISSING).any():
            first = int(np.flatnonzero(rows == MISSING)[0])
            raise UserError(
                f"{self.path}: no row for episode {episodes[first]}, frame {frames[first]} "
                f"({int((rows == MISSING).sum())} of {rows.size} asked for are missing); "
                "the cache was made of other episodes or frames: `pipeline extract` them"
            )
        return rows

    def _rows_in(self, episode_index: int, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        run = self._runs.get(self.digest(episode_index))
        if run is None:
            return np.full(frames.shape, MISSING, np.int64)
        stored = self.frame_index[run]
        place = np.minimum(np.searchsorted(stored, frames), len(stored) - 1)
        return np.where(stored[place] == frames, self.rows[run][place], MISSING)

    def frames_of(self, episode_index: int) -> NDArray[np.int64]:
        """The frame_index of every row of an episode, ascending; empty where the cache does not have it."""
        return self.frame_index[self._runs.get(self.digest(episode_index), slice(0))]

    def present(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which views [n, views] of some rows have features."""
        return self._present[np.asarray(rows, np.int64)]

    def read(self, rows: Sequence[int] | NDArray[np.int64], tap: str = "tokens/-1") -> NDArray[np.float32]:
        """Decoded features float32 [n, views, *tail] (tokens: [n, views, tokens, channels]), without positions.

        A view that its row does not have is NaN. Raises UserError for rows that are not filled and for damage.
        """
        return decode(self.read_stored(rows, tap))

    def read_stored(self, rows: Sequence[int] | NDArray[np.int64], tap: str = "tokens/-1") -> NDArray[Any]:
        """As `read`, in the stored form, for whoever decodes on another device."""
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self._present)):
            raise UserError(
                f"{self.path}: no row {rows.max() if rows.min() >= 0 else rows.min()}; rows are {_shorten(self.rows)}"
            )
        present = self._present[rows]
        if not present.any(axis=1).all():
            empty = int(rows[np.flatnonzero(~present.any(axis=1))[0]])
            raise UserError(f"{self.path}: row {empty} is empty; ask for rows that `rows_of` gives")
        return self._readers[self.recipe.tap(tap)].read(rows, None if present.all() else present)

    def check(self, dataset: Dataset, episodes: Iterable[int]) -> None:
        """Raise UserError unless every one of `episodes` has its rows here, found by its digest."""
        asked = list(episodes)
        stale = [episode for episode in asked if episode_digest(dataset, episode, self.recipe.views) not in self._runs]
        if stale:
            raise UserError(
                f"{self.path}: {len(asked) - len(stale)} of {len(asked)} episodes of {dataset.path} match, "
                f"{len(stale)} have no features of their pixels: {_shorten(stale)}; the cache belongs to another "
                "dataset or the dataset changed: extract again"
            )


def _shorten(numbers: Sequence[int] | NDArray[np.int64]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8])
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > 8 else "")


def open_cache(path: str | Path, dataset: Dataset | str | Path | None = None, check: bool = False) -> Cache:
    """Open a sealed cache for reading.

    `dataset` (or its path) is the one whose episodes will be asked for; without it, episode numbers mean what
    they meant when the cache was made. `check` compares the checksum of everything that is read.
    Raises UserError for a folder that is not a cache, is not sealed, or is of an unknown format.
    """
    root = Path(path)
    header = read_header(root)
    if not is_sealed(root):
        done = len(list((root / "shards").glob("*.json")))
        raise UserError(
            f"{root}: not sealed, {done} of {header.shards} shards are done; "
            "run the same `pipeline extract` again to finish it"
        )
    if isinstance(dataset, str | Path):
        dataset = open_dataset(dataset)
    return Cache(root, dataset, check)
