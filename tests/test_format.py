"""Cache format 1 on disk: other Zarr libraries read it, damage is seen, the reader needs numpy alone."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from catalog.cache.commit import TEMPORARY
from catalog.cache.crc32c import crc32c, crc32c_plain
from catalog.cache.layout import ArraySpec, array_metadata, shard_path
from catalog.cache.reader import ArrayReader
from catalog.cache.receipt import FilledSpan, read_receipt
from catalog.cache.writer import ShardWriter
from catalog.errors import UserError
from catalog.identity import canonical

SHARD_ROWS, VIEWS, ID = 8, 3, "0" * 64
TOKENS = ArraySpec("tokens/3", "tokens/3/values", (6, 10), ("token", "channel"), np.dtype("<f2"))
POSE = ArraySpec("pose", "pose/values", (9,), ("pose",), np.dtype("<f2"))
ABSENT = (9, 1)  # row, view


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Two shards, rows 0..5 and 8..11 filled, row 9 without view 1."""
    generator = np.random.default_rng(0)
    values = {
        spec.tap: generator.normal(size=(2 * SHARD_ROWS, VIEWS, *spec.tail)).astype("<f2") for spec in (TOKENS, POSE)
    }
    for spec in (TOKENS, POSE):
        path = tmp_path / spec.path / "zarr.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(canonical(array_metadata(spec, 2 * SHARD_ROWS, VIEWS, SHARD_ROWS)))
    for shard, rows in enumerate((range(6), range(8, 12))):
        with ShardWriter(tmp_path, ID, [TOKENS, POSE], shard, SHARD_ROWS, VIEWS) as writer:
            for row in rows:
                present = [(row, view) != ABSENT for view in range(VIEWS)]
                writer.row(row, {tap: array[row] for tap, array in values.items()}, present)
            count = len(rows)
            shown = tuple((True,) * VIEWS for _ in rows)
            writer.finish(
                [FilledSpan("e", 0, rows.start, tuple(range(count)), (0.0,) * count, shown, ("00" * 16,) * count)]
            )
    for array in values.values():
        array[ABSENT] = np.nan
        array[6:8] = array[12:] = np.nan
    return tmp_path, values


@pytest.mark.parametrize("spec", [TOKENS, POSE], ids=lambda spec: spec.tap)
def test_tensorstore_and_zarr_read_the_same_values(
    written: tuple[Path, dict[str, np.ndarray]], spec: ArraySpec
) -> None:
    root, values = written
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root / spec.path)}}
    by_tensorstore = tensorstore.open(driver, open=True, read=True).result().read().result()
    by_zarr = zarr.open_array(root / spec.path, mode="r", zarr_format=3)[:]
    np.testing.assert_array_equal(by_tensorstore, values[spec.tap])
    np.testing.assert_array_equal(by_zarr, values[spec.tap])


def test_the_reader_gives_any_rows_in_any_order(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, values = written
    rows = [11, 0, 5, 5, 8, 2]
    for check in (False, True):
        np.testing.assert_array_equal(ArrayReader(root / TOKENS.path, check).read(rows), values["tokens/3"][rows])


def test_the_metadata_carries_crc32c_and_nan(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    meta = json.loads((written[0] / TOKENS.path / "zarr.json").read_text())
    sharding = meta["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"]
    assert [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
    assert meta["fill_value"] == "NaN"


def test_an_absent_view_is_nan_where_it_is_expected_and_an_error_elsewhere(
    written: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, values = written
    reader = ArrayReader(root / TOKENS.path)
    expected = np.array([[True] * VIEWS, [True, False, True]])
    np.testing.assert_array_equal(reader.read([8, 9], expected), values["tokens/3"][[8, 9]])
    with pytest.raises(UserError, match="row 9 has no data for view 1"):
        reader.read([8, 9])
    with pytest.raises(UserError, match="row 7 has no data"):
        reader.read([7])
    with pytest.raises(UserError, match="no row 16; it has rows 0 to 15"):
        reader.read([16])


def test_a_flipped_byte_is_never_returned(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = written
    path = root / shard_path(TOKENS, 0)
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(UserError, match="checksum"):
            ArrayReader(root / TOKENS.path, check=True).read(range(6))


def test_a_truncated_and_a_missing_shard_are_named(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = written
    path = root / shard_path(TOKENS, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="ends too early"):
        ArrayReader(root / TOKENS.path).read([0])
    path.unlink()
    with pytest.raises(UserError, match="this shard is missing"):
        ArrayReader(root / TOKENS.path).read([0])


def test_a_reader_survives_pickling_and_fork(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, values = written
    reader = ArrayReader(root / TOKENS.path)
    reader.read([0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read([10]), values["tokens/3"][[10]])
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.read([4, 11]), values["tokens/3"][[4, 11]]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_more_shards_than_files_may_be_open(
    written: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, values = written
    monkeypatch.setattr("catalog.cache.reader.OPEN_FILES", 1)
    reader = ArrayReader(root / TOKENS.path)
    for rows in ([0, 8], [9 - 9, 10], [11, 1]):
        np.testing.assert_array_equal(reader.read(rows), values["tokens/3"][rows])
    assert len(reader._files) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta.update(data_type="float64"), "data type 'float64'"),
        (lambda meta: meta.update(codecs=[{"name": "blosc"}]), r"codecs \['blosc'\]"),
        (lambda meta: meta["codecs"][0]["configuration"].update(codecs=[{"name": "zstd"}]), "zstd"),
        (lambda meta: meta["codecs"][0]["configuration"].update(index_location="start"), "index is not at the end"),
        (lambda meta: meta["codecs"][0]["configuration"].update(chunk_shape=[2, 1, 6, 10]), "one view of one row"),
        (lambda meta: meta.update(node_type="group"), "expected a Zarr v3 array"),
    ],
)
def test_what_the_reader_does_not_know_is_refused_by_name(written, change, message) -> None:
    path = written[0] / TOKENS.path / "zarr.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=message):
        ArrayReader(written[0] / TOKENS.path)


def test_the_reader_needs_numpy_and_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import catalog.cache.reader\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"catalog", "numpy", "google_crc32c"}


def test_both_checksums_agree_with_the_standard() -> None:
    assert crc32c_plain(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283  # RFC 3720's check value
    data = np.random.default_rng(1).integers(0, 256, 1000).astype(np.uint8)
    assert crc32c(data) == crc32c_plain(data)


def test_a_receipt_proves_a_shard_and_nothing_else_does(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = written
    receipt = read_receipt(root, 0, ID)
    assert receipt is not None
    assert receipt.rows == 6
    assert read_receipt(root, 0, "1" * 64) is None  # of another cache
    shard = root / shard_path(TOKENS, 0)
    shutil.copy(shard, root / "kept")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert read_receipt(root, 0, ID) is None  # its data is shorter than it says
    shutil.copy(root / "kept", shard)
    path = root / "shards/0.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_receipt(root, 0, ID) is None  # torn
    path.unlink()
    assert read_receipt(root, 0, ID) is None


def test_an_abandoned_writer_leaves_no_trace_and_a_bad_value_is_refused(tmp_path: Path) -> None:
    ones = np.ones((VIEWS, 9), np.float32)
    with ShardWriter(tmp_path, ID, [POSE], 0, SHARD_ROWS, VIEWS) as writer:
        writer.row(0, {"pose": ones}, [True] * VIEWS)
        with pytest.raises(ValueError, match="not finite"):
            writer.row(1, {"pose": ones * 1e6}, [True] * VIEWS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with ShardWriter(tmp_path, ID, [POSE], 0, SHARD_ROWS, VIEWS) as writer:
        assert next(path.name for path in tmp_path.rglob("*") if path.is_file()).startswith(TEMPORARY)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(writer)
