"""The rows of one episode in a parquet file that may hold many, without reading the others.

LeRobot writes a row group an episode; tools that merge datasets write many episodes to a group. The column
`episode_index` says which rows are whose, and its statistics say which groups to read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalog.datasets.recent import Recent
from catalog.errors import UserError


@dataclass(frozen=True)
class _Footer:
    """What a file says about itself: its columns, and the lowest and highest episode of each row group."""

    metadata: Any
    columns: frozenset[str]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]


def _bytes(table: Any) -> int:
    return int(table.nbytes)


def _one(_: object) -> int:
    return 1


class Rows:
    """Reads episodes' rows. Keeps the row groups it read last, up to `limit` bytes; holds no file open."""

    def __init__(self, limit: int = 128 << 20) -> None:
        self._groups: Recent[tuple[Path, int, tuple[str, ...]], Any] = Recent(limit, _bytes)
        self._footers: Recent[Path, _Footer] = Recent(64, _one)

    def read(self, path: Path, episode_index: int, columns: Sequence[str]) -> Any:
        """pyarrow.Table of the episode's rows in stored order; no rows where the file has none of it.

        Raises UserError for a file that is missing or no parquet file, and for a column that it lacks.
        """
        wanted = tuple(columns)
        try:
            footer = self._footers.get(path) or self._footers.put(path, _footer(path))
            absent = [name for name in ("episode_index", *wanted) if name not in footer.columns]
            if absent:
                raise UserError(
                    f"{path}: episode {episode_index}: no column '{absent[0]}', only "
                    f"{', '.join(sorted(footer.columns))}; expected the features that meta/info.json names; "
                    "download or copy the dataset again"
                )
            groups = np.flatnonzero((footer.lowest <= episode_index) & (episode_index <= footer.highest))
            parts = [_of_episode(self._group(path, footer, int(g), wanted), episode_index) for g in groups]
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: the data of episode {episode_index} is not there; expected the file that the dataset's "
                "metadata names; download or copy the dataset again"
            ) from error
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: episode {episode_index}: not readable as parquet ({_first_line(error)}); "
                "expected a whole file; download or copy it again"
            ) from error
        if not parts:
            return footer.metadata.schema.to_arrow_schema().empty_table().select(wanted)
        return pa.concat_tables(parts).select(wanted)

    def _group(self, path: Path, footer: _Footer, group: int, columns: tuple[str, ...]) -> Any:
        key = (path, group, columns)
        table = self._groups.get(key)
        if table is None:
            with pq.ParquetFile(path, metadata=footer.metadata) as file:
                # One thread: processes forked from this one must not wait for a thread that they lack.
                names = list(dict.fromkeys(("episode_index", *columns)))
                table = self._groups.put(key, file.read_row_group(group, columns=names, use_threads=False))
        return table


def _footer(path: Path) -> _Footer:
    metadata = pq.read_metadata(path)
    names = metadata.schema.to_arrow_schema().names
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    bounds = np.tile([-np.inf, np.inf], (metadata.num_row_groups, 1))
    if "episode_index" in leaves:
        place = leaves.index("episode_index")
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_min_max:
                bounds[group] = statistics.min, statistics.max
    return _Footer(metadata, frozenset(names), bounds[:, 0], bounds[:, 1])


def _of_episode(table: Any, episode_index: int) -> Any:
    places = np.flatnonzero(table["episode_index"].to_numpy() == episode_index)
    if len(places) and places[-1] - places[0] + 1 == len(places):
        return table.slice(int(places[0]), len(places))  # no copy
    return table.take(pa.array(places))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
