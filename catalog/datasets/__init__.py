"""Readers of robot datasets: one Protocol (dataset.py), one file a format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from catalog.datasets.dataset import Camera, Columns, Dataset, Episode, resolve_views
from catalog.datasets.lerobot import read_info
from catalog.datasets.lerobot_v3 import LeRobotV3
from catalog.datasets.lerobot_v21 import LeRobotV21
from catalog.errors import UserError

__all__ = ["Camera", "Columns", "Dataset", "Episode", "open_dataset", "resolve_views"]

_FORMATS: dict[str, Callable[[Path, Mapping[str, Any]], Dataset]] = {
    "v3.0": LeRobotV3,
    "v2.1": LeRobotV21,
    "v2.0": LeRobotV21,
}
_UNDERSTOOD = f"LeRobot {', '.join(_FORMATS)}"


def open_dataset(path: str | Path) -> Dataset:
    """The dataset in the folder `path`. Reads its metadata only.

    Raises UserError for a folder that is no dataset, a format or version that is not understood, and metadata that
    is damaged or lists fewer episodes or frames than it promises.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise UserError(f"{folder}: {found}; expected the folder of a dataset ({_UNDERSTOOD}); check the path")
    if not (folder / "meta" / "info.json").is_file():
        raise UserError(
            f"{folder}: not a dataset: {_content(folder)}; expected meta/info.json ({_UNDERSTOOD}); "
            "give the folder that holds meta, data and videos"
        )
    info = read_info(folder)
    version = info.get("codebase_version")
    if version not in _FORMATS:
        raise UserError(
            f"{folder}: format version {version}; expected {_UNDERSTOOD}; "
            "convert the dataset with the scripts that come with LeRobot"
        )
    return _FORMATS[version](folder, info)


def _content(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "the folder is empty"
    return "it holds " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
