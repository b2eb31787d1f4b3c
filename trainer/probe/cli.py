"""The command `trainer probe`. Nothing heavy is imported before it runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from catalog.command import subcommand
from catalog.errors import UsageError


def add_commands(commands: Any) -> None:
    """Add it to `trainer`'s subcommands."""
    command = subcommand(commands, "probe", probe, "how much depth a frozen policy's image tokens hold, layer by layer")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    command.add_argument(
        "--dataset", type=Path, required=True, metavar="DIR", help="demonstrations made with `trainer demos --depth`"
    )
    command.add_argument("--cache", type=Path, metavar="NAME.zarr", help="features of this dataset: probes the teacher")
    command.add_argument("--layers", default="all", metavar="all|0,2,4", help="0: embeddings; last: after the norm")
    command.add_argument("--train-episodes", metavar="0:18", help="default: all but those of the test")
    command.add_argument("--test-episodes", metavar="18:24", help="default: every fourth, or what training leaves")
    command.add_argument("--stride", type=int, default=4, metavar="N", help="every N-th frame (default 4)")
    command.add_argument("--steps", type=int, default=400, metavar="N", help="of each probe's training (default 400)")
    command.add_argument("--seed", type=int, default=0, help="of probes, projection, random policy and bootstrap")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument("--out", type=Path, default=Path("probe"), metavar="DIR", help="default probe")


def probe(options: argparse.Namespace) -> tuple[Any, str]:
    for name, least in (("stride", 1), ("steps", 1), ("seed", 0)):
        if (value := getattr(options, name)) < least:
            raise UsageError(f"--{name} is {value}; expected at least {least}")
    chosen = parse_layers(options.layers)
    from catalog.cache.commit import commit
    from trainer.probe import draw, report
    from trainer.probe.probe import Asked
    from trainer.probe.probe import probe as run_all

    draw.need_matplotlib()
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out {options.out} is a file; expected a folder")
    asked = Asked(
        runs=tuple(options.runs),
        dataset=options.dataset,
        cache=options.cache,
        layers=chosen,
        train=options.train_episodes,
        test=options.test_episodes,
        stride=options.stride,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
    )
    result, frames, pictures = run_all(asked)
    for note in report.notes(result):
        sys.stderr.write(f"trainer: {note}\n")
    commit(options.out / "probe.md", report.markdown(result).encode())
    commit(options.out / "probe.json", (json.dumps(result, indent=1) + "\n").encode())
    commit(options.out / "layers.png", draw.layers(result))
    commit(options.out / "depths.png", draw.depths(frames, pictures))
    return result, report.plain(result)


def parse_layers(text: str) -> tuple[int, ...] | None:
    """`all` -> None; `0,2,4` -> numbers."""
    if text == "all":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--layers is '{text}'; expected `all`, or numbers such as 0,2,4")
    return tuple(map(int, parts))
