"""The command `trainer`. Torch is imported by the handlers alone, so that --help is quick."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.command import run, subcommand
from trainer.probe.cli import add_commands as probe_commands
from trainer.sim.cli import add_commands as sim_commands

if TYPE_CHECKING:
    from trainer.config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="trainer", description="Train vision-language-action models with the alignment loss, from a feature cache."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = subcommand(commands, "run", train, "train; with --resume, continue from the last checkpoint")
    command.add_argument("config", metavar="CONFIG.yaml|PRESET", help="a file, or a name that `trainer presets` lists")
    command.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="as in optimiser.lr=1e-4"
    )
    command.add_argument(
        "--resume", action="store_true", help="continue the run in its folder, from the start if it has no checkpoint"
    )

    command = subcommand(commands, "presets", presets, "the names of the presets, or one of them as YAML")
    command.add_argument("name", nargs="?")

    probe_commands(commands)
    sim_commands(commands)
    return run(parser, arguments)


def read_config(name: str, settings: Sequence[str]) -> "RunConfig":
    """The config of a preset or a YAML file, with settings on top. Raises UserError for what is wrong with it."""
    from catalog.errors import UserError, nearest
    from trainer.config import build, read_yaml, to_values, with_settings
    from trainer.presets import PRESETS

    if name in PRESETS:
        values = to_values(PRESETS[name])
    elif Path(name).suffix in (".yaml", ".yml"):
        values = read_yaml(Path(name))
    else:
        raise UserError(f"no preset '{name}'; give a YAML file, or one of: {nearest(name, PRESETS)}")
    return build(with_settings(values, settings))


def train(options: argparse.Namespace) -> tuple[Any, str]:
    config = read_config(options.config, options.settings)
    from trainer.train import train as run_to_the_end

    result = run_to_the_end(config, options.resume)
    losses = ", ".join(f"{name} {result[name]:.4f}" for name in ("loss", "action_loss", "align_loss") if name in result)
    return result, f"{result['out']}: {result['step']} steps, {losses}; {result['checkpoint']}"


def presets(options: argparse.Namespace) -> tuple[Any, str]:
    from trainer.config import to_values, to_yaml
    from trainer.presets import PRESETS

    if options.name is None:
        return {"presets": list(PRESETS)}, "\n".join(PRESETS)
    config = read_config(options.name, [])
    return to_values(config), to_yaml(config)


if __name__ == "__main__":
    sys.exit(main())
