"""What a run says about itself: a line of metrics.jsonl and TensorBoard scalars a step.

A resumed run continues both from its checkpoint's step: what a killed run wrote after it is cut off.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from catalog.cache.commit import commit

METRICS = "metrics.jsonl"


def read(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics, without one that a kill left half written."""
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Metrics:
    """Writes the metrics of the steps after `step`, the one that the run starts from."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in read(run) if line["step"] <= step]
        self.last = {name: value for name, value in kept[-1].items() if name != "step"} if kept else {}
        commit(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = open(run / METRICS, "a")  # noqa: SIM115 (closed by __exit__)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.close()
        self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: the step's own values, no averages, so that a resumed run writes the same."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Make the lines so far as durable as the checkpoint that follows."""
        os.fsync(self._file.fileno())
