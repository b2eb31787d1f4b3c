"""Which frame goes to which row: the plan of shards, a function of the episodes alone.

A shard holds whole episodes unless an episode is longer than a shard; then the episode has its shards to
itself. What is left of a shard stays empty and costs nothing. An episode begins a new shard where it does not
fit, and wherever its digest ends in a certain way (one episode in four): so after an edit the plan falls back
into step within a few episodes, and the shards of untouched episodes keep their bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

NEW_SHARD_ENDINGS = "0123"  # 4 of 16 hex digits


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a shard that hold frames of one episode."""

    episode: str  # digest
    episode_index: int  # where the dataset had it at the time of extraction
    row: int  # the first row
    frames: range  # frame_index of each row

    @property
    def rows(self) -> range:
        return range(self.row, self.row + len(self.frames))


@dataclass(frozen=True)
class Shard:
    index: int
    spans: tuple[Span, ...]

    @property
    def length(self) -> int:
        """Rows that are filled."""
        return sum(len(span.frames) for span in self.spans)


def plan_shards(episodes: Iterable[tuple[str, int, range]], shard_rows: int) -> list[Shard]:
    """Shards for (episode digest, episode_index, frames) in dataset order.

    An episode whose digest came before is skipped: it has the same pixels, so it has its rows already.
    """
    shards: list[list[Span]] = []
    seen: set[str] = set()
    filled = shard_rows  # of the last shard
    for digest, index, frames in episodes:
        if digest in seen or not frames:
            continue
        seen.add(digest)
        if len(frames) > shard_rows - filled or digest[-1] in NEW_SHARD_ENDINGS:
            filled = shard_rows
        for start in range(0, len(frames), shard_rows):
            part = frames[start : start + shard_rows]
            if filled == shard_rows:
                shards.append([])
                filled = 0
            row = (len(shards) - 1) * shard_rows + filled
            shards[-1].append(Span(digest, index, row, part))
            filled += len(part)
        if len(frames) > shard_rows:
            filled = shard_rows  # a long episode shares its last shard with none
    return [Shard(index, tuple(spans)) for index, spans in enumerate(shards)]
