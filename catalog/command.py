"""What the three commands share: arguments in, one result on stdout, one line on stderr for a user's mistake."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from catalog.errors import UsageError, UserError

INTERRUPTED = 130


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse, call the chosen subcommand's `handler`, print what it returns; the exit code.

    A handler returns (result, text): the result for --json, the text for people. Exit code 0 only on success, 1
    for a user's mistake, 2 for wrong usage.
    """
    # Before torch is imported: threads that spin while they wait take the cores from everyone else on the machine
    # (measured: a step beside other work takes five times as long), and sleeping costs nothing that shows.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = parser.parse_args(arguments)
    handler: Callable[[argparse.Namespace], tuple[Any, str]] = options.handler
    try:
        result, text = handler(options)
    except UserError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; run the same command again to go on\n")
        return INTERRUPTED
    sys.stdout.write((json.dumps(result) if options.json else text).rstrip("\n") + "\n")
    return 0 if not (isinstance(result, dict) and result.get("ok") is False) else 1


def subcommand(
    commands: Any, name: str, handler: Callable[[argparse.Namespace], tuple[Any, str]], help: str
) -> argparse.ArgumentParser:
    """A subcommand's parser, with --json, ready for more arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(handler=handler)
    return parser


def size(count: float) -> str:
    """Bytes for people: `2.5 MB` (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
