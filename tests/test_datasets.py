"""Readers of datasets: every frame is the right one, however it is reached and however the files lie."""

import gc
import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.datasets import open_dataset, resolve_views, video
from catalog.datasets.digests import camera_digest, episode_digest, episode_digests, fingerprint
from catalog.datasets.pixels import Converter
from catalog.datasets.recent import Recent
from catalog.datasets.statistics import column_statistics
from catalog.datasets.video import Clip, Videos
from catalog.errors import UserError

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "tests" / "data" / "lerobot_samples"
METAWORLD = ROOT / "examples" / "metaworld"
NAMES = [
    "lerobot_v3_sample",
    "lerobot_v3_sample_split",
    "lerobot_v3_sample_images",
    "lerobot061_v3_sample",
    "lerobot_v21_sample",
]
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="asks Linux what the process has read")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
TASKS = ["pick up the red block", "push the blue cube to the left", "pick up the red block"]


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLES / name, tmp_path / name))


def rewrite(file: Path, change, **options) -> None:
    pq.write_table(change(pq.read_table(file)), file, **options)


def edit_info(dataset: Path, **changes) -> None:
    file = dataset / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replaced(table: pa.Table, name: str, values) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def block_centre(image: np.ndarray) -> float:
    columns = np.flatnonzero((image.min(axis=-1) > 200).any(axis=0))
    return float(columns.mean())


def whole(dataset, episode_index: int, camera: str) -> np.ndarray:
    return np.stack([image for (image,) in dataset.decode(episode_index, [camera])])


def keep_episodes(dataset: Path, kept: list[int]) -> None:
    """Remove the other episodes from data and metadata, as if they had never been; videos stay as they are."""

    def chosen(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(np.isin(table["episode_index"].to_numpy(), kept)))

    for file in (dataset / "meta" / "episodes").glob("*/*.parquet"):
        rewrite(file, chosen)
    for file in (dataset / "data").glob("*/*.parquet"):
        rewrite(file, lambda table: replaced(chosen(table), "index", range(len(chosen(table)))))
    edit_info(dataset, total_episodes=len(kept), total_frames=len(pq.read_table(dataset / "data")))


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_of_every_sample(name: str) -> None:
    dataset = open_dataset(SAMPLES / name)
    assert dataset.format == ("LeRobot v2.1" if "v21" in name else "LeRobot v3.0")
    assert dataset.fps == 10
    assert [(c.key, c.height, c.width) for c in dataset.cameras.values()] == [(FRONT, 96, 128), (WRIST, 96, 128)]
    assert {i: e.length for i, e in dataset.episodes.items()} == {0: 24, 1: 31, 2: 17}
    for index, episode in dataset.episodes.items():
        columns = dataset.columns(index)
        every = np.arange(episode.length)
        assert episode.tasks == (TASKS[index],) and columns.task == (TASKS[index],) * episode.length
        assert np.array_equal(columns.frame_index, every)
        assert np.array_equal(columns.timestamp, every / 10)
        assert columns.state.shape == (episode.length, 8) and columns.state.dtype == np.float32
        assert columns.action.shape == (episode.length, 7) and columns.action.dtype == np.float32
        assert np.array_equal(columns.state[:, :2], np.stack([np.full(episode.length, index), every], axis=1))
        in_order = list(dataset.decode(index, [FRONT, WRIST]))
        assert len(in_order) == episode.length
        columns.timestamp[:] = 0  # is the caller's own
        shuffled = np.random.default_rng(index).permutation(episode.length)
        for view, camera in enumerate((FRONT, WRIST)):
            at_random = dataset.frames(index, shuffled, camera)
            assert at_random.shape == (episode.length, 96, 128, 3) and at_random.dtype == np.uint8
            for frame, image in zip(shuffled, at_random, strict=True):
                assert np.array_equal(image, in_order[frame][view])
                expected = 8 + int(frame * (128 - 16) / episode.length) - 0.5
                assert abs(block_centre(image) - expected) < 1


def test_single_frames_in_any_order() -> None:
    dataset = open_dataset(SAMPLES / "lerobot_v3_sample")
    expected = {index: whole(dataset, index, WRIST) for index in dataset.episodes}
    wanted = [(index, frame) for index in expected for frame in range(len(expected[index]))]
    for index, frame in np.random.default_rng(0).permutation(wanted).tolist():
        assert np.array_equal(dataset.frames(index, [frame], WRIST)[0], expected[index][frame])
    assert np.array_equal(dataset.frames(1, [5, 2, 5], WRIST), expected[1][[5, 2, 5]])
    assert dataset.frames(1, [], WRIST).shape == (0, 96, 128, 3)


@pytest.mark.parametrize("name", ["lerobot_v3_sample", "lerobot_v3_sample_images", "lerobot_v21_sample"])
@pytest.mark.parametrize("wanted", [range(0, 31, 7), [30], []])
def test_some_frames_in_order(name: str, wanted: list[int]) -> None:
    dataset = open_dataset(SAMPLES / name)
    pairs = list(dataset.decode(1, [WRIST, FRONT], wanted))
    assert len(pairs) == len(wanted)
    for view, camera in enumerate((WRIST, FRONT)):
        assert all(
            np.array_equal(pair[view], image)
            for pair, image in zip(pairs, dataset.frames(1, wanted, camera), strict=True)
        )


def test_metaworld_whole() -> None:
    dataset = open_dataset(METAWORLD)
    assert list(dataset.episodes) == list(range(24))
    views = resolve_views(dataset, ["corner2", "gripperPOV"])
    assert views == ("observation.images.corner2", "observation.images.gripperPOV")
    images = 0
    for index, episode in dataset.episodes.items():
        columns = dataset.columns(index)
        assert columns.state.shape == columns.action.shape == (episode.length, 4)
        for pair in dataset.decode(index, views):
            assert [image.shape for image in pair] == [(128, 128, 3)] * 2
            images += 1
    assert images == 1821
    assert len({task for episode in dataset.episodes.values() for task in episode.tasks}) == 6


def test_an_episode_is_read_where_it_begins() -> None:
    """The frames of an episode deep inside a file, counted from the start of the file."""
    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    before = sum(dataset.episodes[index].length for index in range(17))
    with av.open(str(METAWORLD / "videos" / corner / "chunk-000" / "file-000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    images = whole(dataset, 17, corner)
    assert np.array_equal(images, frames[before : before + len(images)])


def test_a_subset_of_episode_numbers(tmp_path: Path) -> None:
    whole_dataset = open_dataset(METAWORLD)
    part = Path(shutil.copytree(METAWORLD, tmp_path / "part"))
    keep_episodes(part, [0, 1, 3])
    dataset = open_dataset(part)
    corner, _ = dataset.cameras
    assert list(dataset.episodes) == [0, 1, 3]
    assert np.array_equal(whole(dataset, 3, corner), whole(whole_dataset, 3, corner))
    assert np.array_equal(dataset.frames(3, [40, 7], corner), whole_dataset.frames(3, [40, 7], corner))
    assert np.array_equal(dataset.columns(3).state, whole_dataset.columns(3).state)
    assert dataset.camera_digest(3, corner) == whole_dataset.camera_digest(3, corner)
    with pytest.raises(UserError, match=r"no episode 2; expected one of 0-1, 3;"):
        dataset.columns(2)


def test_episodes_that_share_a_row_group(tmp_path: Path) -> None:
    expected = open_dataset(SAMPLES / "lerobot_v3_sample_images")
    merged = copied("lerobot_v3_sample_images", tmp_path)
    rewrite(merged / "data" / "chunk-000" / "file-000.parquet", lambda table: table, write_statistics=False)
    dataset = open_dataset(merged)
    for index in dataset.episodes:
        assert np.array_equal(dataset.columns(index).action, expected.columns(index).action)
        assert np.array_equal(whole(dataset, index, FRONT), whole(expected, index, FRONT))


def test_reading_an_episode_reads_its_row_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **options: read.append(i) or original(self, i, **options)
    )
    dataset = open_dataset(METAWORLD)
    for _ in range(3):
        dataset.columns(5)
    assert set(read) == {5} and len(read) == 2  # the clock, then the numbers


def test_pickled_forked_and_shared_among_threads() -> None:
    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    expected = {index: whole(dataset, index, corner) for index in range(6)}
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).frames(4, [9], corner)[0], expected[4][9])
    unfinished = dataset.decode(2, [corner])
    next(unfinished)

    def same(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            index = int(rng.integers(6))
            wanted = rng.integers(0, len(expected[index]), 3)
            if not np.array_equal(dataset.frames(index, wanted, corner), expected[index][wanted]):
                return False
        return True

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=lambda seed: answers.put(same(seed)), args=(seed,)) for seed in (1, 2)]
    for child in children:
        child.start()
    assert same(3)
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0] and answers.get() and answers.get()
    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(same, range(3)))
    assert np.array_equal(next(unfinished)[0], expected[2][1])


def test_a_child_does_not_move_its_parents_place_in_a_file() -> None:
    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    expected = {index: whole(open_dataset(METAWORLD), index, corner) for index in range(8)}
    dataset.frames(0, [0], corner)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=dataset.frames, args=(23, [40], corner))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert all(np.array_equal(whole(dataset, index, corner), images) for index, images in expected.items())


def test_a_digest_in_between_does_not_move_a_readers_place() -> None:
    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    expected = whole(dataset, 3, corner)
    for frame in range(30):
        assert np.array_equal(dataset.frames(3, [frame], corner)[0], expected[frame])
        dataset.camera_digest(17, corner)


@ON_LINUX
def test_few_files_stay_open() -> None:
    videos, times = Videos(limit=2), np.zeros(1)
    folder = SAMPLES.resolve() / "lerobot_v3_sample_split" / "videos" / FRONT / "chunk-000"
    gc.disable()
    try:
        for file in [*folder.glob("*.mp4")] * 2:
            unfinished = videos.frames(Clip(file, 0.0, 0), times, [0])
            next(unfinished)
            list(videos.frames(Clip(file, 0.0, 0), times, [0]))
            unfinished.close()
        assert (
            sum(str(folder) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
            == 2
        )
    finally:
        gc.enable()


@ON_LINUX
def test_a_digest_reads_the_episodes_part_of_a_file() -> None:
    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])

    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    dataset.camera_digest(0, corner)
    before = read_so_far()
    dataset.camera_digest(23, corner)
    last = read_so_far() - before
    for index in dataset.episodes:
        dataset.camera_digest(index, corner)
    every = read_so_far() - before - last
    size = (METAWORLD / "videos" / corner / "chunk-000" / "file-000.mp4").stat().st_size
    assert last < 0.2 * size
    assert every < 2 * size  # read ahead in blocks of 32 KiB, 24 times


def encode(file: Path, images: np.ndarray, rate: int, **options: str) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("options", [{"bf": "3"}, {"bf": "3", "x264-params": "open-gop=1"}, {"bf": "0"}])
def test_random_access_decodes_one_group_of_pictures(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "video.mp4"
    encode(
        file,
        np.stack([np.roll(noise, shift, axis=1) for shift in range(90)]),
        rate=30,
        g="12",
        sc_threshold="0",
        **options,
    )
    with av.open(str(file)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    decoded, sought, advance, seek = [0], [], video._File._advance, video._File._seek

    def counted(self: video._File) -> None:
        decoded[0] += 1
        advance(self)

    monkeypatch.setattr(video._File, "_advance", counted)
    monkeypatch.setattr(video._File, "_seek", lambda self, time: sought.append(1) or seek(self, time))
    videos, clip, timestamps = Videos(), Clip(file, 0.0, 0), np.arange(90) / 30
    assert np.array_equal(list(videos.frames(clip, timestamps, range(90))), expected)
    assert (decoded[0], len(sought)) == (90, 1)
    for frame in np.random.default_rng(1).permutation(90).tolist():
        decoded[0] = 0
        (image,) = videos.frames(clip, timestamps[[frame]], [frame])
        assert np.array_equal(image, expected[frame])
        assert decoded[0] <= 14  # a group of 12, and what open groups need besides
    if "x264-params" not in options:
        decoded[0], some = 0, [24, 30, 35, 49]
        assert np.array_equal(list(videos.frames(clip, timestamps[some], some)), [expected[i] for i in some])
        assert decoded[0] == 12 + 2  # on through one group, then straight to another


@pytest.mark.parametrize(("off", "found"), [(9e-5, True), (-9e-5, True), (3e-4, False), (-3e-4, False)])
def test_a_frame_is_found_within_the_tolerance(off: float, found: bool) -> None:
    dataset = open_dataset(METAWORLD)
    corner, _ = dataset.cameras
    file = METAWORLD / "videos" / corner / "chunk-000" / "file-000.mp4"
    clip, times = Clip(file, 4.6 + off, 1), np.arange(91) / 20
    if found:
        assert np.array_equal(list(Videos().frames(clip, times, range(91))), whole(dataset, 1, corner))
        assert camera_digest(Videos().packets(clip, times), times) == dataset.camera_digest(1, corner)
        return
    for read in (lambda: list(Videos().frames(clip, times, range(91))), lambda: list(Videos().packets(clip, times))):
        with pytest.raises(UserError, match=r"episode 1: frame 0: no frame at 4\.\d+ s of the file"):
            read()


def test_packets_do_not_depend_on_where_a_seek_lands(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = episode_digests(open_dataset(SAMPLES / "lerobot_v3_sample"), [FRONT])
    monkeypatch.setattr(video._File, "_ticks", lambda self, time: 0)
    assert episode_digests(open_dataset(SAMPLES / "lerobot_v3_sample"), [FRONT]) == expected


def test_a_long_episode_keeps_its_time_in_float32(tmp_path: Path) -> None:
    """Half an hour in, float32 seconds are off by more than the tolerance between frames allows for clocks."""
    dataset = copied("lerobot_v3_sample", tmp_path)
    start = 40_000
    rewrite(
        dataset / "data" / "chunk-000" / "file-000.parquet",
        lambda table: replaced(table, "timestamp", (table["frame_index"].to_numpy() + start) / 10),
    )
    timestamp = open_dataset(dataset).columns(1).timestamp
    assert np.array_equal(timestamp, (np.arange(31) + start) / 10)


def test_digests_belong_to_the_frames_and_not_to_the_files() -> None:
    cameras = [FRONT, WRIST]
    digests = {name: episode_digests(open_dataset(SAMPLES / name), cameras) for name in NAMES}
    first = digests["lerobot_v3_sample"]
    assert first == digests["lerobot_v3_sample_split"] == digests["lerobot061_v3_sample"]
    assert len({tuple(by_episode.values()) for by_episode in digests.values()}) == 3
    assert len(set(first.values())) == 3
    # Golden: a changed definition would orphan every cache that exists.
    assert fingerprint(first.values()) == "1ada9c96a0da92ecf90b9aa44c3b01bc5b93e3c34d6c582ef8fcd200faae87b6"
    assert (
        fingerprint(digests["lerobot_v3_sample_images"].values())
        == "3dd9274c672306477cb09df7f30ed7e0dcabc1fbe923f708ee9ebcdec2761fd5"
    )
    dataset = open_dataset(SAMPLES / "lerobot_v3_sample")
    assert [episode_digest(dataset, index, cameras[::-1]) for index in dataset.episodes] == list(first.values())
    assert episode_digest(dataset, 0, [FRONT]) != first[0]
    assert episode_digests(dataset, cameras, [2, 0]) == {0: first[0], 2: first[2]}


def test_the_fingerprint_follows_the_list_of_episodes() -> None:
    digests = list(episode_digests(open_dataset(SAMPLES / "lerobot_v3_sample"), [FRONT]).values())
    assert fingerprint(digests) == fingerprint(tuple(digests))
    assert len({fingerprint(d) for d in (digests, digests[:2], digests[1:], digests[::-1], [])}) == 5


def test_a_digest_tells_packets_absence_and_time_apart() -> None:
    times = np.arange(2) / 10
    kinds = [
        camera_digest(pieces, stamps)
        for pieces, stamps in [
            ([b"ab", b"c"], times),
            ([b"a", b"bc"], times),
            ([b"ab", None], times),
            ([b"ab", b""], times),
            ([b"ab", b"c"], times * 2),
            ([b"ab", b"c"], times[:1]),
        ]
    ]
    assert len(set(kinds)) == len(kinds)


def merge(split: Path, cameras: list[str]) -> None:
    """Put the videos of a dataset with a file an episode into one file a camera, without encoding again."""
    listed = split / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    for camera in cameras:
        folder = split / "videos" / camera / "chunk-000"
        begins, ticks = [], 0
        with av.open(str(split / "merged.mp4"), "w") as output:
            stream = None
            for file in sorted(folder.glob("*.mp4")):
                with av.open(str(file)) as source:
                    track = source.streams.video[0]
                    # Opaque: a decoder's name, such as libdav1d, names no encoder to take the template from.
                    stream = stream or output.add_stream_from_template(track, opaque=True)
                    begins.append(float(ticks * track.time_base))
                    for packet in source.demux(track):
                        if packet.size:
                            packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                            output.mux(packet)
                    ticks += track.duration
        shutil.rmtree(folder)
        folder.mkdir()
        (split / "merged.mp4").rename(folder / "file-000.mp4")
        rewrite(
            listed,
            lambda table, camera=camera, begins=begins: replaced(
                replaced(table, f"videos/{camera}/file_index", [0, 0, 0]), f"videos/{camera}/from_timestamp", begins
            ),
        )


def test_merging_video_files_keeps_frames_and_digests(tmp_path: Path) -> None:
    before = open_dataset(SAMPLES / "lerobot_v3_sample_split")
    merge(copied("lerobot_v3_sample_split", tmp_path), [FRONT, WRIST])
    after = open_dataset(tmp_path / "lerobot_v3_sample_split")
    assert episode_digests(after, [FRONT, WRIST]) == episode_digests(before, [FRONT, WRIST])
    for index in before.episodes:
        assert np.array_equal(whole(after, index, WRIST), whole(before, index, WRIST))


def test_encoding_an_episode_again_changes_its_digest_alone(tmp_path: Path) -> None:
    before = open_dataset(SAMPLES / "lerobot_v3_sample_split")
    changed = copied("lerobot_v3_sample_split", tmp_path)
    encode(changed / "videos" / FRONT / "chunk-000" / "file-001.mp4", whole(before, 1, FRONT), rate=10)
    after = open_dataset(changed)
    assert abs(whole(after, 1, FRONT).astype(int) - whole(before, 1, FRONT)).mean() < 4
    old, new = episode_digests(before, [FRONT, WRIST]), episode_digests(after, [FRONT, WRIST])
    assert (new[0] == old[0], new[1] == old[1], new[2] == old[2]) == (True, False, True)
    assert episode_digest(after, 1, [WRIST]) == episode_digest(before, 1, [WRIST])
    assert fingerprint(new.values()) != fingerprint(old.values())


def test_editing_states_and_actions_keeps_digests(tmp_path: Path) -> None:
    dataset = copied("lerobot_v3_sample", tmp_path)
    rewrite(
        dataset / "data" / "chunk-000" / "file-000.parquet",
        lambda table: replaced(table, "action", [[0.0] * 7] * len(table)),
    )
    expected = episode_digests(open_dataset(SAMPLES / "lerobot_v3_sample"), [FRONT])
    assert episode_digests(open_dataset(dataset), [FRONT]) == expected
    assert not open_dataset(dataset).columns(0).action.any()


def test_an_absent_image_is_none(tmp_path: Path) -> None:
    dataset = copied("lerobot_v3_sample_images", tmp_path)
    expected = whole(open_dataset(dataset), 0, FRONT)

    def blank(table: pa.Table) -> pa.Table:
        images = table[FRONT].to_pylist()
        images[3], images[4] = None, {"bytes": None, "path": None}
        return replaced(table, FRONT, images)

    rewrite(dataset / "data" / "chunk-000" / "file-000.parquet", blank)
    changed = open_dataset(dataset)
    seen = list(changed.decode(0, [WRIST, FRONT]))
    assert [frame for frame, (_, front) in enumerate(seen) if front is None] == [3, 4]
    assert all(wrist is not None for wrist, _ in seen)
    assert np.array_equal(seen[5][1], expected[5])
    assert changed.camera_digest(0, FRONT) != open_dataset(SAMPLES / dataset.name).camera_digest(0, FRONT)
    with pytest.raises(UserError, match=r"no image of episode 0, frame 4"):
        changed.frames(0, [4], FRONT)


def test_a_camera_without_video_of_an_episode_is_none(tmp_path: Path) -> None:
    dataset = copied("lerobot_v3_sample", tmp_path)
    for key in ("chunk_index", "file_index", "from_timestamp"):
        rewrite(
            dataset / "meta" / "episodes" / "chunk-000" / "file-000.parquet",
            lambda table, name=f"videos/{WRIST}/{key}": replaced(table, name, [*table[name].to_pylist()[:2], None]),
        )
    changed = open_dataset(dataset)
    assert [wrist for _, wrist in changed.decode(2, [FRONT, WRIST])] == [None] * 17
    assert np.array_equal(whole(changed, 1, WRIST), whole(open_dataset(SAMPLES / "lerobot_v3_sample_split"), 1, WRIST))
    assert changed.camera_digest(2, WRIST) == camera_digest([None] * 17, np.arange(17) / 10)


def test_jpeg_images(tmp_path: Path) -> None:
    picture = np.full((96, 128, 3), (200, 100, 50), np.uint8)
    av.VideoFrame.from_ndarray(picture, format="rgb24").save(tmp_path / "picture.jpg")
    image = Converter().image((tmp_path / "picture.jpg").read_bytes())
    assert image.shape == picture.shape and abs(image.astype(int) - picture).max() < 8


def test_blank_lines_in_json_lines(tmp_path: Path) -> None:
    dataset = copied("lerobot_v21_sample", tmp_path)
    for file in (dataset / "meta").glob("*.jsonl"):
        file.write_text(file.read_text() + "\n\n")
    assert list(open_dataset(dataset).episodes) == [0, 1, 2]


def test_features_decide_the_cameras(tmp_path: Path) -> None:
    dataset = copied("lerobot_v3_sample", tmp_path)
    features = json.loads((dataset / "meta" / "info.json").read_text())["features"]
    features[FRONT] |= {"shape": [3, 96, 128], "names": ["channels", "height", "width"]}
    features[WRIST]["info"]["is_depth_map"] = True
    edit_info(dataset, features=features, some_future_key={"of": "LeRobot"})
    cameras = open_dataset(dataset).cameras
    assert [(camera.key, camera.height, camera.width) for camera in cameras.values()] == [(FRONT, 96, 128)]
    for shape, names in (
        ([128, 96, 3], ["width", "height", "channel"]),
        ([3, 96, 128], None),
        ([96, 128, 3], None),
        ([96, 128, 3], {"axes": []}),
    ):
        features[FRONT] |= {"shape": shape, "names": names}
        edit_info(dataset, features=features)
        camera = open_dataset(dataset).cameras[FRONT]
        assert (camera.height, camera.width) == (96, 128)


def test_statistics_come_from_the_data() -> None:
    dataset = open_dataset(METAWORLD)
    table = pq.read_table(METAWORLD / "data", columns=["observation.state", "action", "episode_index"])
    for name, key in (("state", "observation.state"), ("action", "action")):
        values = np.array(table[key].to_pylist(), np.float64)
        found = column_statistics(dataset)[name]
        assert found.count == 1821
        for field, expected in {
            "mean": values.mean(0),
            "std": values.std(0),
            "min": values.min(0),
            "max": values.max(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }.items():
            assert getattr(found, field).dtype == np.float64
            np.testing.assert_allclose(getattr(found, field), expected, rtol=1e-12, atol=1e-15)
    stored = json.loads((METAWORLD / "meta" / "stats.json").read_text())["observation.state"]
    assert abs(np.array(stored["q99"]) - column_statistics(dataset)["state"].q99).max() > 1e-2
    some = column_statistics(dataset, [3, 20])["state"]
    rows = np.isin(table["episode_index"].to_numpy(), [3, 20])
    np.testing.assert_allclose(some.mean, np.array(table["observation.state"].to_pylist())[rows].mean(0), rtol=1e-6)
    assert some.count == rows.sum()
    with pytest.raises(UserError, match="statistics over no episodes"):
        column_statistics(dataset, [])


def test_views_are_named_in_full_or_by_their_last_part() -> None:
    dataset = open_dataset(SAMPLES / "lerobot_v3_sample")
    assert resolve_views(dataset, ["wrist", FRONT]) == (WRIST, FRONT)


def test_what_was_read_last_is_kept() -> None:
    recent: Recent[str, list[int]] = Recent(3, len)
    recent.put("a", [1])
    recent.put("b", [1])
    assert recent.get("a") == [1]
    recent.put("c", [1, 2])
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == ([1], None, [1, 2])
    recent.put("c", [1])
    recent.put("d", [1])
    assert recent.get("a") == [1]
    recent.put("e", [1, 2, 3, 4])
    assert (recent.get("a"), recent.get("e")) == (None, [1, 2, 3, 4])
    assert pickle.loads(pickle.dumps(recent)).get("e") is None
