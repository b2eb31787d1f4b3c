"""Extraction on real demonstrations: right values, the same through both executors, resumed byte for byte."""

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore
import torch
from PIL import Image

from catalog import open_cache, open_dataset
from catalog.errors import UserError
from pipeline.teachers import load_teacher
from pipeline.teachers.framing import framing
from tests.conftest import GOLDEN, REPOSITORY, TINY, Command

VIEWS = ("observation.images.corner2", "observation.images.gripperPOV")


def contents(root: Path) -> dict[str, str]:
    """sha256 of every file of a cache that is a function of its dataset, recipe and storage."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }


def changed(arguments: list[str], **options: object) -> list[str]:
    """The arguments with some options set to other values."""
    line = list(arguments)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if option in line:
            line[line.index(option) + 1] = str(value)
        else:
            line += [option, str(value)]
    return line


def test_every_row_is_the_teacher_run_on_its_frame(tiny_cache: Path, metaworld: Path) -> None:
    dataset = open_dataset(metaworld)
    cache = open_cache(tiny_cache, dataset)
    teacher = load_teacher("vggt", GOLDEN / "public_weights.safetensors", TINY)
    frame = framing("crop", 128, 128, teacher.image_size, teacher.patch)
    rows = 0
    for episode in range(3):
        for number, images in enumerate(dataset.decode(episode, VIEWS)):
            seen = torch.stack([frame.apply(image[None]) for image in images if image is not None], dim=1)
            expected = teacher(seen, layers=[-1]).tokens[-1][0].numpy()
            (found,) = cache.read(cache.rows_of(episode, number), tap="tokens/-1")
            # float16 rounding, and the last float32 bits that depend on the size of a batch
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
            rows += 1
    assert rows == len(cache.rows) == cache.header.frames


def test_ray_and_inline_give_the_same_bytes(
    tiny_cache: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "ray.zarr"
    line = changed(extract_arguments, executor="ray", actors=2, out=out)
    result = json.loads(command("pipeline", *line, "--json").stdout)
    assert result["sealed"]
    assert result["rows_made"] == open_cache(tiny_cache).header.frames
    assert contents(out) == contents(tiny_cache)


def test_tensorstore_reads_the_same_values(tiny_cache: Path) -> None:
    cache = open_cache(tiny_cache)
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tiny_cache / "tokens/3/values")}}
    stored = tensorstore.open(driver, open=True, read=True).result().read().result()
    np.testing.assert_array_equal(stored[cache.rows].astype(np.float32), cache.read(cache.rows))
    empty = np.setdiff1d(np.arange(len(stored)), cache.rows)
    assert len(empty)
    assert np.isnan(stored[empty]).all()


def test_several_taps_come_from_one_pass(
    extract_arguments: list[str], command: Command, tmp_path: Path, metaworld: Path
) -> None:
    out = tmp_path / "taps.zarr"
    outputs = ["tokens", "special", "depth", "confidence", "points", "points_confidence", "pose"]
    line = changed(
        extract_arguments, outputs=",".join(outputs), grid="2x3", layers="1,-1", episodes="1", stride=25, out=out
    )
    command("pipeline", *line)
    dataset = open_dataset(metaworld)
    cache = open_cache(out, dataset)
    assert cache.recipe.taps == (
        "tokens/1", "tokens/3", "special/1", "special/3", "depth", "confidence", "points", "points_confidence", "pose",
    )  # fmt: skip
    rows = cache.rows_of(1, 25)
    images = torch.stack(
        [framing("crop", 128, 128, 56, 14).apply(dataset.frames(1, [25], view)) for view in VIEWS], dim=1
    )
    teacher = load_teacher("vggt", GOLDEN / "public_weights.safetensors", TINY)
    direct = teacher(images, layers=[1, -1], outputs=outputs)
    np.testing.assert_allclose(cache.read(rows, "special/-1"), direct.special[-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(cache.read(rows, "depth"), direct.depth, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(cache.read(rows, "points"), direct.points, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(cache.read(rows, "pose"), direct.pose, rtol=1e-3, atol=1e-3)
    grid = direct.tokens[1].reshape(2, 4, 4, 64).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.interpolate(grid, size=(2, 3), mode="bilinear", align_corners=True)
    np.testing.assert_allclose(
        cache.read(rows, "tokens/1")[0], pooled.permute(0, 2, 3, 1).reshape(2, 6, 64), rtol=1e-3, atol=1e-4
    )
    with pytest.raises(UserError, match="no row for episode 1, frame 24"):
        cache.rows_of(1, 24)
    with pytest.raises(UserError, match="has no tap 'tokens/2'; it has: tokens/1, tokens/3"):
        cache.read(rows, "tokens/2")


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def kill_after_receipts(arguments: list[str], out: Path, count: int, delay: float) -> int:
    """Run, and SIGKILL the driver `delay` seconds after it has `count` receipts; how many it had when it died."""
    process = start(arguments)
    while process.poll() is None and len(list(out.glob("shards/*.json"))) < count:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(list(out.glob("shards/*.json")))


def settled(out: Path) -> int:
    """Receipts, once Ray's actors are gone: they finish what they had in flight when their driver died."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < 4:
        found = len(list(out.glob("shards/*.json")))
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(0.1)
    return count


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_killed_extraction_resumes_to_the_same_bytes(
    executor: str, tiny_cache: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    shards = open_cache(tiny_cache).header.shards
    assert shards >= 10
    generator = random.Random(7)
    out = tmp_path / "killed.zarr"
    line = changed(extract_arguments, executor=executor, out=out)
    for moment in range(5):
        kill_after_receipts(line, out, moment * shards // 6, generator.random() * 0.2)
    before = settled(out) if executor == "ray" else len(list(out.glob("shards/*.json")))
    assert 0 < before < shards
    with pytest.raises(UserError, match=rf"not sealed, {before} of {shards} shards are done"):
        open_cache(out)
    state = json.loads(command("pipeline", "status", out, "--json").stdout)
    assert not state["sealed"]
    assert state["shards_done"] == before
    result = json.loads(command("pipeline", *line, "--json").stdout)
    assert result["shards_made"] == shards - before
    assert contents(out) == contents(tiny_cache)


def test_a_finished_extraction_has_nothing_left_to_do(
    tiny_cache: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")  # a copied cache is the same cache
    done = command("pipeline", *extract_arguments, "--out", out)
    assert "nothing left to do" in done.stdout
    assert contents(out) == contents(tiny_cache)


def test_an_output_of_another_recipe_is_refused_and_kept(
    tiny_cache: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")
    done = command("pipeline", *changed(extract_arguments, grid="2x2", out=out), check=False)
    assert done.returncode == 1
    assert "is another cache (recipe.grid: found [4, 4], asked for [2, 2])" in done.stderr
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    done = command("pipeline", *changed(extract_arguments, out=other), check=False)
    assert done.returncode == 1
    assert "is not a feature cache; it is never overwritten" in done.stderr
    assert contents(out) == contents(tiny_cache)
    assert (other / "thesis.txt").read_text() == "mine"


def test_two_extractions_into_one_output_do_not_mix(
    tiny_cache: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = command("pipeline", *extract_arguments, "--out", out, check=False)
    os.close(descriptor)
    assert done.returncode == 1
    assert "another extraction is writing this cache" in done.stderr


def test_verify_names_what_changed(tiny_cache: Path, command: Command, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")
    assert command("pipeline", "verify", root).returncode == 0
    shard = root / "tokens/3/values/c/2/0/0/0"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    (root / "tokens/3/values/c/4/0/0/0").unlink()
    (root / "surplus").write_text("")
    done = command("pipeline", "verify", root, "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] == [
        "tokens/3/values/c/2/0/0/0 (shard 2): its content changed (sha256)",
        "tokens/3/values/c/4/0/0/0 (shard 4): missing",
        "surplus: not in the manifest",
    ]


def test_the_manifest_tells_whose_and_what_every_file_is(tiny_cache: Path) -> None:
    cache = open_cache(tiny_cache)
    manifest = pq.read_table(tiny_cache / "manifest.parquet").to_pylist()
    assert {entry["path"] for entry in manifest} == set(contents(tiny_cache)) - {"manifest.parquet"}
    values = [entry for entry in manifest if entry["tap"] == "tokens/3"]
    assert sum(entry["rows"] for entry in values) == cache.header.frames
    assert {episode for entry in values for episode in entry["episodes"]} == cache.episodes
    assert all(entry["views"] == list(VIEWS) for entry in values)
    runs = json.loads((tiny_cache / "provenance.json").read_text())["runs"]
    assert runs[-1]["finished"] >= runs[-1]["started"]


def test_the_preview_shows_frames_and_colours(tiny_cache: Path, command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "preview.png"
    command("pipeline", "preview", tiny_cache, "--out", picture, "--frames", 4)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    left, right = pixels[:, 8 : 8 + 192], pixels[:, 208 : 208 + 192]
    for column in (left, right):
        assert len(np.unique(column.reshape(-1, 3), axis=0)) > 60  # a picture, not a blank


def test_rows_follow_the_pixels_when_the_dataset_is_another(tiny_cache: Path, samples: Path, metaworld: Path) -> None:
    other = open_dataset(samples / "lerobot_v3_sample")
    cache = open_cache(tiny_cache)
    with pytest.raises(UserError, match=r"no camera 'observation.images.corner2'"):
        cache.check(other, [0])
    dataset = open_dataset(metaworld)
    cache.check(dataset, [0, 1, 2])
    with pytest.raises(UserError, match=r"3 of 5 episodes of .* match, 2 have no features of their pixels: 3, 4"):
        cache.check(dataset, range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "tests"}, "not a dataset"),
        ({"views": "corner2,wrist"}, "no camera named 'wrist'"),
        ({"views": "corner2,corner2"}, "named twice"),
        ({"episodes": "30:40"}, "no episodes in '30:40'; it has 24"),
        ({"grid": "5x5"}, "finer than the teacher's own, 4x4"),
        ({"grid": "large"}, "expected ROWSxCOLUMNS"),
        ({"layers": "4"}, "expected 0..3"),
        ({"outputs": "token"}, "no output 'token'; expected some of: tokens"),
        ({"teacher": "vgt"}, "unknown teacher 'vgt', expected one of: vggt"),
        ({"framing": "squash"}, "squash"),
        ({"weights": "README.md"}, "README.md: "),
        ({"weights": "tests/data/golden/public_align.safetensors"}, "missing"),
        pytest.param(
            {"device": "cuda"}, "no usable GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)  # fmt: skip
def test_a_users_mistake_gets_one_line(
    options: dict[str, str], message: str, extract_arguments: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    from pipeline.cli import main

    monkeypatch.chdir(REPOSITORY)
    out = tmp_path / "x.zarr"
    assert main(changed(extract_arguments, out=out, **options)) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not out.exists()


def test_a_broken_video_fails_its_shards_by_name_and_keeps_the_rest(
    samples: Path, extract_arguments: list[str], command: Command, tmp_path: Path
) -> None:
    dataset = shutil.copytree(samples / "lerobot_v3_sample_split", tmp_path / "dataset")
    video = dataset / "videos/observation.images.wrist/chunk-000/file-001.mp4"
    broken = bytearray(video.read_bytes())
    broken[len(broken) // 4 : len(broken) // 2] = bytes(
        len(broken) // 4
    )  # the container is whole, the pictures are not
    video.write_bytes(broken)
    out = tmp_path / "x.zarr"
    out.mkdir()
    (out / ".part-of-a-killed-run").write_bytes(b"half")
    line = changed(extract_arguments, dataset=dataset, views="front,wrist", framing="pad", out=out)
    done = command("pipeline", *line, "--json", check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert not result["sealed"]
    assert all("episode 1" in failure["reason"] and str(video) in failure["reason"] for failure in result["failures"])
    assert len(result["failures"]) == 2  # 31 frames in shards of 16
    assert not list(out.rglob(".part-*"))
    assert len(list((out / "shards").glob("*.json"))) == result["shards"] - 2
