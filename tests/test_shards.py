"""The plan of shards: every frame has one row, whole episodes stay together, an edit stays local."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from catalog.cache.shards import plan_shards


def episodes(lengths: list[int], salt: str = "") -> list[tuple[str, int, range]]:
    return [(hashlib.sha256(f"{salt}{i}".encode()).hexdigest(), i, range(length)) for i, length in enumerate(lengths)]


@given(st.lists(st.integers(1, 70), max_size=30), st.integers(1, 40), st.text(max_size=3))
def test_every_frame_has_one_row_in_its_shard(lengths: list[int], shard_rows: int, salt: str) -> None:
    shards = plan_shards(episodes(lengths, salt), shard_rows)
    named: dict[tuple[int, int], int] = {}
    for number, shard in enumerate(shards):
        assert shard.index == number
        for span in shard.spans:
            for row, frame in zip(span.rows, span.frames, strict=True):
                assert row // shard_rows == number
                assert (span.episode_index, frame) not in named
                named[span.episode_index, frame] = row
    assert len(set(named.values())) == len(named) == sum(lengths)
    assert set(named) == {(i, frame) for i, length in enumerate(lengths) for frame in range(length)}


@given(st.lists(st.integers(1, 70), max_size=30), st.integers(1, 40))
def test_an_episode_is_split_only_where_it_is_longer_than_a_shard(lengths: list[int], shard_rows: int) -> None:
    shards = plan_shards(episodes(lengths), shard_rows)
    for index, length in enumerate(lengths):
        holders = [shard for shard in shards if any(span.episode_index == index for span in shard.spans)]
        assert len(holders) == -(-length // shard_rows)
        if length > shard_rows:
            assert all(len(shard.spans) == 1 for shard in holders)


def test_equal_pixels_are_stored_once() -> None:
    (first, _, frames), other = episodes([5, 6])
    shards = plan_shards([(first, 0, frames), other, (first, 7, frames)], 16)
    assert [span.episode_index for shard in shards for span in shard.spans] == [0, 1]


def test_an_edit_in_the_middle_leaves_most_shards_as_they_were() -> None:
    # Equal lengths are the hard case: without a rule that looks at the episodes the plan would never fall into step.
    before = episodes([30] * 400)

    def contents(named: list[tuple[str, int, range]]) -> set[tuple[str, ...]]:
        return {tuple(span.episode for span in shard.spans) for shard in plan_shards(named, 128)}

    for place in (0, 57, 200, 333):
        deleted = [*before[:place], *before[place + 1 :]]
        longer = [*before[:place], ("f" * 64, place, range(100)), *before[place + 1 :]]
        assert len(contents(deleted) - contents(before)) <= 6
        assert len(contents(longer) - contents(before)) <= 6


def test_stride_keeps_the_frames_numbers() -> None:
    ((span,),) = [shard.spans for shard in plan_shards([("a" * 64, 4, range(0, 10, 3))], 16)]
    assert list(zip(span.rows, span.frames, strict=True)) == [(0, 0), (1, 3), (2, 6), (3, 9)]
