"""Who made a cache, when, where and with what: beside the data, in no id and no manifest."""

import getpass
import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from catalog import DISTRIBUTION
from catalog.cache.commit import commit
from catalog.cache.seal import PROVENANCE

LIBRARIES = (DISTRIBUTION, "torch", "numpy", "av", "pyarrow", "ray")


def begin(root: Path, dataset: Path, device: str, executor: str) -> None:
    """Add a run to the cache's history."""
    run = {
        "started": _now(),
        "finished": None,
        "dataset": str(dataset.resolve()),
        "commit": _commit(),
        "versions": {library: _version(library) for library in LIBRARIES} | {"python": platform.python_version()},
        "machine": platform.machine(),
        "device": _device(device),
        "executor": executor,
        "who": getpass.getuser(),
    }
    _write(root, [*read(root), run])


def finish(root: Path) -> None:
    """Note the end of the latest run."""
    *runs, last = read(root)
    _write(root, [*runs, last | {"finished": _now()}])


def read(root: Path) -> list[dict[str, Any]]:
    """The runs that worked on a cache, oldest first."""
    try:
        return list(json.loads((root / PROVENANCE).read_bytes())["runs"])
    except FileNotFoundError:
        return []


def _write(root: Path, runs: list[dict[str, Any]]) -> None:
    commit(root / PROVENANCE, json.dumps({"runs": runs}, indent=2).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device(device: str) -> str:
    if device == "cpu":
        return f"cpu ({platform.processor() or platform.machine()})"
    import torch

    return torch.cuda.get_device_name(device)


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the running code, where it runs from a checkout and git is there to ask."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
