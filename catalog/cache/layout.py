"""Where everything lies in a cache, and the Zarr v3 metadata that says so.

    NAME.zarr/
      zarr.json                    attributes: format_version, recipe, storage, ids, dataset, fidelity
      <tap>/values/c/<shard>/...   one file a shard and array; chunk = one view of one row
      frames.parquet               which episode and frame fill a row
      shards/<n>.json              the receipt of a finished shard
      manifest.parquet             seals the cache
      provenance.json              outside the manifest and outside every id

The metadata is written here rather than by a Zarr library so that its bytes depend on nothing but the cache.
"""

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from catalog.cache.commit import commit
from catalog.cache.recipe import Recipe
from catalog.identity import canonical

FORMAT_VERSION = 1
SHARD_BYTES = 64 << 20
MIN_SHARD_ROWS = 16

CRC32C = {"name": "crc32c"}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class Storage:
    """How features lie on disk. Enters the cache_id and nothing else."""

    form: str = "float16"
    shard_rows: int = MIN_SHARD_ROWS
    stride: int = 1  # every stride-th frame of an episode has a row

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ArraySpec:
    """One array of a cache. Its full shape is (rows, views, *tail), its chunks (1, 1, *tail)."""

    tap: str
    path: str  # inside the cache
    tail: tuple[int, ...]
    names: tuple[str, ...]  # dimension names of the tail
    dtype: np.dtype[Any]

    @property
    def chunk_bytes(self) -> int:
        return prod(self.tail) * self.dtype.itemsize


def arrays(recipe: Recipe) -> list[ArraySpec]:
    """The arrays of every tap of a recipe, in float16."""
    height, width = recipe.image_size
    tails: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "tokens": ((recipe.grid[0] * recipe.grid[1], recipe.teacher["channels"]), ("token", "channel")),
        "special": ((recipe.teacher["special"], recipe.teacher["channels"]), ("token", "channel")),
        "depth": ((height, width), ("y", "x")),
        "confidence": ((height, width), ("y", "x")),
        "points": ((height, width, 3), ("y", "x", "xyz")),
        "points_confidence": ((height, width), ("y", "x")),
        "pose": ((9,), ("pose",)),
    }
    return [ArraySpec(tap, f"{tap}/values", *tails[tap.split("/")[0]], np.dtype("<f2")) for tap in recipe.taps]


def default_shard_rows(recipe: Recipe, rows: int) -> int:
    """The largest row count with at most 64 MiB in the heaviest array and at most rows/32; at least 16."""
    heaviest = max(spec.chunk_bytes for spec in arrays(recipe)) * len(recipe.views)
    return max(MIN_SHARD_ROWS, min(SHARD_BYTES // heaviest, rows // 32))


def shard_path(spec: ArraySpec, shard: int) -> str:
    """A shard's file inside the cache, as Zarr's default chunk key encoding names it."""
    return "/".join([spec.path, "c", str(shard), "0"] + ["0"] * len(spec.tail))


def receipt_path(shard: int) -> str:
    return f"shards/{shard}.json"


def array_metadata(spec: ArraySpec, rows: int, views: int, shard_rows: int) -> dict[str, Any]:
    """zarr.json of an array: sharded, little-endian, crc32c on every chunk and on the index, no compressor."""
    sharding = {
        "chunk_shape": [1, 1, *spec.tail],
        "codecs": [BYTES, CRC32C],
        "index_codecs": [BYTES, CRC32C],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, views, *spec.tail],
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, views, *spec.tail]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if spec.dtype.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["row", "view", *spec.names],
        "attributes": {},
    }


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def write_metadata(root: Path, attributes: dict[str, Any], recipe: Recipe, storage: Storage, shards: int) -> None:
    """All zarr.json files of a cache; the root last, so that a cache without one was never begun."""
    for spec in arrays(recipe):
        parents = [parent for parent in Path(spec.path).parents if parent != Path(".")]
        for parent in reversed(parents):
            commit(root / parent / "zarr.json", canonical(group_metadata({})))
        metadata = array_metadata(spec, shards * storage.shard_rows, len(recipe.views), storage.shard_rows)
        commit(root / spec.path / "zarr.json", canonical(metadata))
    commit(root / "zarr.json", canonical(group_metadata(attributes)))
