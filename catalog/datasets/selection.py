"""Which episodes a command means: `0:12`, `3,7,20:30`; by their numbers in the dataset, never by position."""

from catalog.datasets.dataset import Dataset
from catalog.errors import UserError


def select_episodes(dataset: Dataset, selection: str | None) -> list[int]:
    """Episode numbers, ascending, each once; all of the dataset's for None.

    `a:b` is half open like a Python range and takes those numbers in it that exist; a single number must exist.
    """
    if selection is None:
        return list(dataset.episodes)
    chosen: set[int] = set()
    for part in selection.split(","):
        start, colon, stop = part.strip().partition(":")
        if not all(end.isdigit() for end in ((start or "0"), (stop or "0"))) or (not colon and not start):
            raise UserError(
                f"episodes '{selection}': found '{part}', expected numbers and ranges such as 0:12 or 3,7,20:30"
            )
        if colon:
            last = int(stop) if stop else max(dataset.episodes) + 1
            numbers = [index for index in dataset.episodes if int(start or 0) <= index < last]
        else:
            numbers = [index for index in dataset.episodes if index == int(start)]
        if not numbers:
            raise UserError(
                f"{dataset.path}: no episodes in '{part}'; it has {len(dataset.episodes)}, "
                f"numbered {min(dataset.episodes)} to {max(dataset.episodes)}"
            )
        chosen.update(numbers)
    return sorted(chosen)
