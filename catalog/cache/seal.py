"""Seal a cache whose shards all have receipts: frames.parquet, then manifest.parquet, last.

Both are made from the receipts alone, in the order of the shards.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.cache.commit import publish, temporary
from catalog.cache.layout import arrays, receipt_path
from catalog.cache.receipt import Receipt, read_receipt
from catalog.cache.recipe import Recipe
from catalog.errors import UserError
from catalog.identity import file_digest

FRAMES = "frames.parquet"
MANIFEST = "manifest.parquet"
PROVENANCE = "provenance.json"

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("episode", pa.string(), nullable=False),  # digest
        pa.field("episode_index", pa.int64(), nullable=False),
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("timestamp", pa.float64(), nullable=False),  # seconds since the episode began
        pa.field("present", pa.list_(pa.bool_()), nullable=False),  # by view
        pa.field("pixels", pa.binary(16), nullable=False),  # tells decoders apart; enters no id
    ]
)
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("shard", pa.int64()),
        pa.field("tap", pa.string()),
        pa.field("rows", pa.int64()),  # filled
        pa.field("episodes", pa.list_(pa.string())),  # digests
        pa.field("views", pa.list_(pa.string())),
    ]
)


def frame_columns(receipt: Receipt) -> dict[str, list[Any]]:
    """The rows of frames.parquet that a receipt stands for."""
    columns: dict[str, list[Any]] = {name: [] for name in FRAMES_SCHEMA.names}
    for span in receipt.spans:
        count = len(span.frames)
        columns["row"] += range(span.row, span.row + count)
        columns["episode"] += [span.episode] * count
        columns["episode_index"] += [span.episode_index] * count
        columns["frame_index"] += span.frames
        columns["timestamp"] += span.timestamps
        columns["present"] += [list(row) for row in span.present]
        columns["pixels"] += [bytes.fromhex(digest) for digest in span.pixels]
    return columns


def _manifest_columns(root: Path, receipt: Receipt, recipe: Recipe) -> list[dict[str, Any]]:
    path = receipt_path(receipt.shard)
    episodes = [span.episode for span in receipt.spans]
    shared = {"shard": receipt.shard, "rows": receipt.rows, "episodes": episodes, "views": list(recipe.views)}
    own = {"path": path, "size": (root / path).stat().st_size, "sha256": file_digest(root / path), "tap": None}
    return [own | shared] + [
        {"path": file.path, "size": file.size, "sha256": file.sha256, "tap": file.tap} | shared
        for file in receipt.files
    ]


def _metadata_files(root: Path, recipe: Recipe) -> Iterator[str]:
    folders = {folder for spec in arrays(recipe) for folder in (Path(spec.path), *Path(spec.path).parents)}
    yield from sorted(str(folder / "zarr.json") for folder in folders)
    yield FRAMES


def seal(root: Path, cache_id: str, recipe: Recipe, shards: int) -> None:
    """Write frames.parquet and manifest.parquet. Raises UserError naming the shards that lack a receipt."""
    frames_part, manifest_part = temporary(root / FRAMES), temporary(root / MANIFEST)
    manifest: list[dict[str, Any]] = []
    missing: list[int] = []
    try:
        with pq.ParquetWriter(frames_part, FRAMES_SCHEMA) as writer:
            for shard in range(shards):
                receipt = read_receipt(root, shard, cache_id)
                if receipt is None:
                    missing.append(shard)
                    continue
                writer.write_table(pa.table(frame_columns(receipt), FRAMES_SCHEMA))
                manifest += _manifest_columns(root, receipt, recipe)
        if missing:
            raise UserError(f"{root}: {len(missing)} of {shards} shards are not done ({missing[:5]}...); extract again")
        publish(frames_part, root / FRAMES)
        for path in _metadata_files(root, recipe):
            manifest.append({"path": path, "size": (root / path).stat().st_size, "sha256": file_digest(root / path)})
        pq.write_table(
            pa.Table.from_pylist(sorted(manifest, key=lambda file: file["path"]), MANIFEST_SCHEMA), manifest_part
        )
        publish(manifest_part, root / MANIFEST)
    finally:
        frames_part.unlink(missing_ok=True)
        manifest_part.unlink(missing_ok=True)
