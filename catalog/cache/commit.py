"""Put a file in its place whole or not at all: temporary name, fsync, rename, fsync the folder."""

import os
from pathlib import Path
from uuid import uuid4

TEMPORARY = ".part-"


def temporary(path: Path) -> Path:
    """A name beside `path` that no reader takes for data and no other writer takes for its own."""
    return path.with_name(f"{TEMPORARY}{uuid4().hex}")


def publish(part: Path, path: Path) -> None:
    """Put a finished temporary file in its place, durably."""
    _fsync(part)
    os.replace(part, path)
    _fsync(path.parent)


def commit(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all, durably; folders are made where they lack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        part.write_bytes(content)
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(root: Path) -> None:
    """Delete what killed writers left behind. Only for whoever holds the cache's lock."""
    for part in root.rglob(TEMPORARY + "*"):
        part.unlink(missing_ok=True)
