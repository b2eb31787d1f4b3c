"""Verify a sealed cache: every manifested file has its size and sha256, and nothing else lies about."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from catalog.cache.header import is_sealed, read_header
from catalog.cache.seal import FRAMES, MANIFEST, MANIFEST_SCHEMA, PROVENANCE
from catalog.errors import UserError
from catalog.identity import file_digest


def verify(root: Path, progress: Callable[[int], None] = lambda size: None) -> list[str]:
    """What is wrong with a sealed cache, a line each; an empty list if nothing is.

    Reads every byte once; `progress` is told the bytes of each file. A permuted or forged cache under valid
    hashes is not found here: only running the teacher again shows that.
    """
    header = read_header(root)
    if not is_sealed(root):
        raise UserError(f"{root}: not sealed, so there is nothing to verify against; finish the extraction first")
    try:
        manifest = pq.read_table(root / MANIFEST, schema=MANIFEST_SCHEMA).to_pylist()
    except (OSError, ValueError) as error:
        return [f"{MANIFEST}: not readable ({error})"]
    problems = []
    for entry in manifest:
        path = root / entry["path"]
        shard = "" if entry["shard"] is None else f" (shard {entry['shard']})"
        if not path.is_file():
            problems.append(f"{entry['path']}{shard}: missing")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{entry['path']}{shard}: {path.stat().st_size} bytes, the manifest says {entry['size']}")
        elif file_digest(path) != entry["sha256"]:
            problems.append(f"{entry['path']}{shard}: its content changed (sha256)")
        progress(entry["size"])
    known = {entry["path"] for entry in manifest} | {MANIFEST, PROVENANCE}
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    problems += [f"{path}: not in the manifest" for path in sorted(found - known)]
    receipts = {entry["shard"] for entry in manifest if entry["path"].startswith("shards/")}
    if receipts != set(range(header.shards)):
        problems.append(f"{MANIFEST}: {len(receipts)} shards, zarr.json says {header.shards}")
    if not problems and pq.read_metadata(root / FRAMES).num_rows != header.frames:
        problems.append(f"{FRAMES}: {pq.read_metadata(root / FRAMES).num_rows} rows, zarr.json says {header.frames}")
    return problems
