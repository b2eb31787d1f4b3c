"""Write one shard: all arrays of a row range, chunk after chunk, in Zarr's sharding_indexed encoding.

One writer owns a whole shard and writes it once, in row order, into temporary files; `finish` puts every file
in its place and then writes the receipt. A shard file is its chunks (each followed by its crc32c), then the
index (offset and length of every chunk as little-endian uint64, 2**64 - 1 for an absent one) and its crc32c.
Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from catalog.cache.commit import publish, temporary
from catalog.cache.crc32c import crc32c
from catalog.cache.layout import ArraySpec, shard_path
from catalog.cache.receipt import FilledSpan, Receipt, ShardFile, write_receipt

ABSENT = np.uint64(2**64 - 1)


class _ArrayFile:
    """The file of one array's shard while it is being written."""

    def __init__(self, root: Path, spec: ArraySpec, shard: int, shard_rows: int, views: int) -> None:
        self.spec = spec
        self.path = root / shard_path(spec, shard)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part = temporary(self.path)
        self.file: BinaryIO = open(self.part, "wb")  # noqa: SIM115 (closed by finish or abandon)
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.index = np.full((shard_rows, views, 2), ABSENT, dtype="<u8")

    def _append(self, data: NDArray[np.uint8]) -> None:
        for piece in (data, np.array([crc32c(data)], dtype="<u4").view(np.uint8)):
            self.file.write(piece)
            self.sha256.update(piece)
            self.size += piece.nbytes

    def chunk(self, slot: int, view: int, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, dtype=self.spec.dtype).reshape(-1).view(np.uint8)
        if values.shape != self.spec.tail:
            raise ValueError(f"{self.spec.tap}: a chunk of shape {values.shape}, expected {self.spec.tail}")
        self.index[slot, view] = self.size, data.nbytes + 4
        self._append(data)

    def finish(self, root: Path) -> ShardFile:
        self._append(self.index.reshape(-1).view(np.uint8))
        self.file.close()
        publish(self.part, self.path)
        return ShardFile(self.spec.tap, str(self.path.relative_to(root)), self.size, self.sha256.hexdigest())

    def abandon(self) -> None:
        self.file.close()
        self.part.unlink(missing_ok=True)


class ShardWriter:
    """Writes one shard. Use as a context manager: leaving it without `finish` leaves no trace."""

    def __init__(
        self, root: Path, cache_id: str, specs: Sequence[ArraySpec], shard: int, shard_rows: int, views: int
    ) -> None:
        self.root, self.cache_id, self.shard = root, cache_id, shard
        self.first = shard * shard_rows
        self.files: list[_ArrayFile] = []
        try:
            for spec in specs:
                self.files.append(_ArrayFile(root, spec, shard, shard_rows, views))
        except BaseException:
            self.abandon()
            raise
        self.views = views
        self.done = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ShardWriter owns open files and cannot be pickled; make one where the shard is written")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.done:
            self.abandon()

    def row(self, row: int, values: Mapping[str, NDArray[Any]], present: Sequence[bool]) -> None:
        """Write one row: by tap an array [views, *tail]; views that are not present get no chunk.

        Raises ValueError for values that float16 cannot hold or that are not finite.
        """
        for file in self.files:
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
                stored = values[file.spec.tap].astype(file.spec.dtype, copy=False)
            for view in range(self.views):
                if present[view]:
                    if not np.isfinite(stored[view]).all():
                        raise ValueError(f"{file.spec.tap} has values that are not finite in {stored.dtype}")
                    file.chunk(row - self.first, view, stored[view])

    def finish(self, spans: Sequence[FilledSpan]) -> Receipt:
        """Put the data in place, then the receipt."""
        receipt = Receipt(self.cache_id, self.shard, tuple(file.finish(self.root) for file in self.files), tuple(spans))
        write_receipt(self.root, receipt)
        self.done = True
        return receipt

    def abandon(self) -> None:
        for file in self.files:
            file.abandon()
