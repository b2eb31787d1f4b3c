"""The folder of a run, and what makes two runs the same one.

config.yaml        the resolved config
identity.json      what it was trained on: dataset, features, and the versions that trained it
statistics.json    bounds of states and actions: a policy is useless without them
metrics.jsonl      tensorboard/      checkpoints/
"""

import json
from pathlib import Path
from typing import Any

from catalog.cache.commit import commit
from catalog.cache.recipe import differences
from catalog.errors import UserError
from trainer.config import RunConfig, read_yaml, to_values, to_yaml

CONFIG, IDENTITY, STATISTICS = "config.yaml", "identity.json", "statistics.json"

# What a resumed run may change without changing a loss. Places may change too: identity.json holds the contents.
FREE = {"out", "workers", "checkpoint_every", "keep", "log_every", "data.dataset", "data.cache"}


def open_run(
    folder: Path, config: RunConfig, identity: dict[str, Any], statistics: dict[str, Any], resume: bool
) -> None:
    """Make the folder of a new run, or check that this is the run that an existing one holds.

    Raises UserError for a folder that is not empty when not resuming, and for one that holds another run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the run with out")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} exists and is not a run (no {CONFIG}); choose another out")
        if not resume:
            raise UserError(f"{folder} holds a run already; continue it with --resume, or choose another out")
        _same("config", read_yaml(folder / CONFIG), to_values(config), folder)
        if (folder / IDENTITY).is_file():
            _same("data", json.loads((folder / IDENTITY).read_text()), identity, folder)
    else:
        # The config is what makes it a run, so that a run killed right here can be resumed.
        commit(folder / CONFIG, to_yaml(config).encode())
    commit(folder / IDENTITY, (json.dumps(identity, indent=1) + "\n").encode())
    commit(folder / STATISTICS, (json.dumps(statistics, indent=1) + "\n").encode())


def _same(what: str, found: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    lines = [line for line in differences(found, asked) if line.split(":")[0] not in FREE]
    if lines:
        raise UserError(
            f"{folder}: the run's {what} is not the same ({'; '.join(lines)}); --resume continues one run: undo the "
            "change, or choose another out"
        )
