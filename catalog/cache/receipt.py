"""The receipt of a finished shard, written after its data: the only proof that the shard is there.

Everything in it follows from dataset, recipe and storage, so a resumed cache has the same receipts as an
uninterrupted one. Timings and attempts belong to provenance.json and the event log.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog.cache.commit import commit
from catalog.cache.layout import receipt_path
from catalog.identity import canonical


@dataclass(frozen=True)
class ShardFile:
    tap: str
    path: str  # inside the cache
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class FilledSpan:
    """A span as it was written: `present` and `pixels` have an entry a row."""

    episode: str
    episode_index: int
    row: int
    frames: tuple[int, ...]
    timestamps: tuple[float, ...]  # seconds since the episode began
    present: tuple[tuple[bool, ...], ...]  # by row, by view
    pixels: tuple[str, ...]  # first 16 bytes of sha256 over the decoded images, hex; tells decoders apart


@dataclass(frozen=True)
class Receipt:
    cache_id: str
    shard: int
    files: tuple[ShardFile, ...]
    spans: tuple[FilledSpan, ...]

    @property
    def rows(self) -> int:
        return sum(len(span.frames) for span in self.spans)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def write_receipt(root: Path, receipt: Receipt) -> None:
    commit(root / receipt_path(receipt.shard), canonical(asdict(receipt)))


def read_receipt(root: Path, shard: int, cache_id: str) -> Receipt | None:
    """The receipt of a shard, or None where there is no valid one: absent, torn, of another cache, or its files
    are not there in their full size. (Their content is what `verify` is for.)"""
    try:
        value: dict[str, Any] = json.loads((root / receipt_path(shard)).read_bytes())
        receipt = Receipt(
            cache_id=value["cache_id"],
            shard=value["shard"],
            files=tuple(ShardFile(**file) for file in value["files"]),
            spans=tuple(
                FilledSpan(
                    **{key: tuple(item) if isinstance(item, list) else item for key, item in span.items()}
                    | {"present": tuple(tuple(row) for row in span["present"])}
                )
                for span in value["spans"]
            ),
        )
        whole = all((root / file.path).stat().st_size == file.size for file in receipt.files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if whole and (receipt.cache_id, receipt.shard) == (cache_id, shard) else None
