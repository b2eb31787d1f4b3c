"""Read rows of one array of a local cache: the shard index parsed once, `preadv` straight into the batch buffer.

Needs numpy and the standard library alone. It reads exactly the codecs of format 1 and refuses others by name;
any Zarr v3 library reads the same files, 5 to 100 times slower at random rows. A reader holds file descriptors
and offsets only: it can be pickled, and used in a forked process.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.cache.crc32c import crc32c
from catalog.errors import UserError

OPEN_FILES = 256  # of one array; well below the usual limit of 1,024 descriptors a process
ABSENT = -1
DTYPES = {"float16": "<f2", "uint8": "|u1", "int8": "|i1"}


class ArrayReader:
    """Rows of one array [rows, views, *tail]. `check` compares every chunk's crc32c as it is read."""

    def __init__(self, path: Path, check: bool = False) -> None:
        self.path = path
        self.check = check
        self.shape, self.shard_rows, self.dtype = _parse(path / "zarr.json")
        self.views = self.shape[1]
        self.chunk_bytes = prod(self.shape[2:]) * self.dtype.itemsize
        self._suffix = "/".join(["0"] * (len(self.shape) - 1))
        self._offsets: dict[int, NDArray[np.int64]] = {}  # by shard: [shard_rows, views], ABSENT where no chunk
        self._files: OrderedDict[int, int] = OrderedDict()  # by shard, least recently used first

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, rows: Sequence[int] | NDArray[np.int64], expected: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Stored values [n, views, *tail] of `rows`, in the order asked for.

        `expected` [n, views] says which views must be there (default: all); the others are not read and come out
        as the fill value. Raises UserError for a chunk that must be there and is not, or that is damaged.
        """
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if expected is not None:
            out[~expected] = np.nan if self.dtype.kind == "f" else 0
        # One flat view of bytes: slicing it costs a tenth of slicing the array.
        buffer = memoryview(out.reshape(-1).view(np.uint8))
        checksums = np.empty((len(rows), self.views), "<u4")
        checksum_bytes = memoryview(checksums.reshape(-1).view(np.uint8))
        size = self.chunk_bytes
        for i, row in enumerate(rows):
            shard, slot = divmod(int(row), self.shard_rows)
            if not 0 <= row < self.shape[0]:
                raise UserError(f"{self.path}: no row {row}; it has rows 0 to {self.shape[0] - 1}")
            descriptor = self._files.get(shard)
            if descriptor is None:
                descriptor = self._open(shard)
            else:
                self._files.move_to_end(shard)
            offsets = self._offsets[shard][slot]
            view = 0
            while view < self.views:
                if expected is not None and not expected[i, view]:
                    view += 1
                    continue
                start = int(offsets[view])
                if start == ABSENT:
                    raise UserError(
                        f"{self.path}: row {row} has no data for view {view}; the cache is damaged or was not sealed: "
                        "run `pipeline verify`"
                    )
                # Views that lie side by side in the file come with one call.
                stop = view + 1
                while stop < self.views and offsets[stop] == start + (stop - view) * (size + 4):
                    if expected is not None and not expected[i, stop]:
                        break
                    stop += 1
                pieces = []
                for number in range(i * self.views + view, i * self.views + stop):
                    pieces += [buffer[number * size : (number + 1) * size], checksum_bytes[number * 4 : number * 4 + 4]]
                if os.preadv(descriptor, pieces, start) != (stop - view) * (size + 4):
                    raise UserError(f"{self._shard_path(shard)}: ends too early; run `pipeline verify`")
                if self.check:
                    for each in range(view, stop):
                        self._compare(out[i, each], int(checksums[i, each]), int(row), each)
                view = stop
        return out

    def _compare(self, chunk: NDArray[Any], stored: int, row: int, view: int) -> None:
        if crc32c(chunk.reshape(-1).view(np.uint8)) != stored:
            raise UserError(
                f"{self._shard_path(row // self.shard_rows)}: row {row}, view {view} does not have its checksum; "
                "run `pipeline verify`"
            )

    def _shard_path(self, shard: int) -> Path:
        return self.path / "c" / str(shard) / self._suffix

    def _open(self, shard: int) -> int:
        path = self._shard_path(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(f"{path}: this shard is missing; run `pipeline verify`") from None
        if shard not in self._offsets:
            try:
                self._offsets[shard] = self._index(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
        self._files[shard] = descriptor
        while len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _index(self, descriptor: int, path: Path) -> NDArray[np.int64]:
        """Offsets of all chunks of a shard, checked: the index has its crc32c, every chunk its length and place."""
        length = self.shard_rows * self.views * 16
        end = os.fstat(descriptor).st_size - 4
        raw = os.pread(descriptor, length + 4, max(0, end - length))
        if len(raw) != length + 4:
            raise UserError(f"{path}: ends too early; run `pipeline verify`")
        data = np.frombuffer(raw, np.uint8)
        if crc32c(data[:length]) != int(data[length:].view("<u4")[0]):
            raise UserError(f"{path}: its index does not have its checksum; run `pipeline verify`")
        index = data[:length].view("<u8").reshape(self.shard_rows, self.views, 2)
        absent = (index == np.uint64(2**64 - 1)).all(axis=-1)
        offsets = np.where(absent, 0, index[..., 0]).astype(np.int64)
        inside = (offsets >= 0) & (offsets + self.chunk_bytes + 4 <= end - length)
        if not (absent | (inside & (index[..., 1] == self.chunk_bytes + 4))).all():
            raise UserError(f"{path}: its index names chunks that cannot be; run `pipeline verify`")
        return np.where(absent, ABSENT, offsets)


def _parse(path: Path) -> tuple[tuple[int, ...], int, np.dtype[Any]]:
    """(shape, rows a shard, dtype) from an array's zarr.json. Refuses what format 1 does not write, by name."""
    try:
        meta = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as Zarr v3 metadata ({error})") from None
    if meta.get("zarr_format") != 3 or meta.get("node_type") != "array":
        raise UserError(f"{path}: expected a Zarr v3 array")
    if meta["data_type"] not in DTYPES:
        raise UserError(f"{path}: data type '{meta['data_type']}'; this reader knows {', '.join(DTYPES)}")
    codecs = [codec["name"] for codec in meta["codecs"]]
    if codecs != ["sharding_indexed"]:
        raise UserError(f"{path}: codecs {codecs}; this reader knows sharding_indexed alone, use a Zarr library")
    sharding = meta["codecs"][0]["configuration"]
    for key in ("codecs", "index_codecs"):
        names = [codec["name"] for codec in sharding[key]]
        if (
            names != ["bytes", "crc32c"]
            or sharding[key][0].get("configuration", {}).get("endian", "little") != "little"
        ):
            raise UserError(f"{path}: {key} {names} inside the shard; this reader knows bytes (little), crc32c")
    if sharding.get("index_location", "end") != "end":
        raise UserError(f"{path}: the shard index is not at the end; this reader knows 'end' alone")
    shape = tuple(meta["shape"])
    shard = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
    if shard[1:] != shape[1:] or tuple(sharding["chunk_shape"]) != (1, 1, *shape[2:]):
        raise UserError(f"{path}: chunks {sharding['chunk_shape']} in shards {shard}; expected one view of one row")
    return shape, shard[0], np.dtype(DTYPES[meta["data_type"]])
