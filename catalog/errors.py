"""The one exception that a user sees as a single line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake: what was found, what was expected, what to do. The commands print it and exit 1."""


class UsageError(UserError):
    """A command line that cannot mean anything. The commands print it and exit 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`known` as text for an error message, the names closest to `word` first."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    return ", ".join(close + [name for name in names if name not in close])
