"""What a cache holds and how far it is."""

from pathlib import Path
from typing import Any

from catalog.cache.header import is_sealed, read_header
from catalog.cache.layout import arrays
from catalog.cache.receipt import read_receipt
from pipeline import provenance


def status(root: Path) -> dict[str, Any]:
    """A JSON-able description of a cache, finished or not."""
    header = read_header(root)
    recipe = header.recipe
    receipts = [read_receipt(root, shard, header.cache_id) for shard in range(header.shards)]
    done = [receipt for receipt in receipts if receipt is not None]
    views = len(recipe.views)
    return {
        "cache": str(root),
        "sealed": is_sealed(root),
        "shards": header.shards,
        "shards_done": len(done),
        "frames": header.frames,
        "frames_done": sum(receipt.rows for receipt in done),
        "bytes": sum(receipt.bytes for receipt in done),
        "bytes_per_frame": {spec.tap: spec.chunk_bytes * views for spec in arrays(recipe)},
        "episodes": header.episodes,
        "teacher": recipe.teacher["name"],
        "trained": recipe.teacher["trained"],
        "licence": recipe.teacher["licence"],
        "views": list(recipe.views),
        "taps": list(recipe.taps),
        "grid": list(recipe.grid),
        "recipe_id": recipe.id,
        "feature_id": header.feature_id,
        "cache_id": header.cache_id,
        "runs": provenance.read(root),
    }
