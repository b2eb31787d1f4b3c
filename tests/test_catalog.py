"""The command `catalog`, and what `open_cache` refuses."""

import json
import shutil
from pathlib import Path

import pytest

from catalog import open_cache
from catalog.errors import UserError
from tests.conftest import Command


def test_ls_shows_caches_and_what_is_none(tiny_cache: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(tiny_cache, tmp_path / "a/sealed.zarr")
    (shutil.copytree(tiny_cache, tmp_path / "open.zarr") / "manifest.parquet").unlink()
    (tmp_path / "other.zarr").mkdir()
    caches = json.loads(command("catalog", "ls", tmp_path, "--json").stdout)
    assert [Path(each["cache"]).name for each in caches] == ["sealed.zarr", "open.zarr", "other.zarr"]
    assert [each.get("sealed") for each in caches] == [True, False, None]
    assert "not a feature cache" in caches[2]["problem"]
    assert "NOT SEALED" in command("catalog", "ls", tmp_path).stdout


def test_info_describes_a_dataset(metaworld: Path, command: Command) -> None:
    result = json.loads(command("catalog", "info", metaworld, "--json").stdout)
    assert (result["episodes"], result["frames"], len(result["tasks"])) == (24, 1821, 6)
    assert "open the drawer" in command("catalog", "info", metaworld).stdout


def test_check_says_which_episodes_have_no_features(tiny_cache: Path, metaworld: Path, command: Command) -> None:
    assert command("catalog", "check", tiny_cache, "--dataset", metaworld, "--episodes", "0:3").returncode == 0
    done = command("catalog", "check", tiny_cache, "--dataset", metaworld, "--episodes", "1:5", check=False)
    assert done.returncode == 1
    assert "2 of 4 episodes" in done.stderr
    assert "2 have no features of their pixels: 3, 4" in done.stderr


def edited(root: Path, change) -> Path:
    path = root / "zarr.json"
    meta = json.loads(path.read_text())
    change(meta["attributes"])
    path.write_text(json.dumps(meta))
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda attributes: attributes.update(format_version=2), "cache format 2, this version reads format 1"),
        (lambda attributes: attributes["recipe"].update(grid=[2, 2]), "ids in zarr.json do not follow"),
        (lambda attributes: attributes["recipe"].pop("views"), r"lacks \['views'\]"),
        (lambda attributes: attributes["recipe"].update(colour=1), r"has the unknown \['colour'\]"),
        (lambda attributes: attributes["storage"].update(form="int3"), "storage form 'int3'; this version reads"),
        (lambda attributes: attributes.pop("dataset"), r"attributes \['dataset'\] are missing or unknown"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(tiny_cache: Path, tmp_path: Path, change, message: str) -> None:
    root = edited(shutil.copytree(tiny_cache, tmp_path / "copy.zarr"), change)
    with pytest.raises(UserError, match=message):
        open_cache(root)


def test_a_damaged_frame_table_is_named(tiny_cache: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_cache, tmp_path / "copy.zarr")
    (root / "frames.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"frames.parquet: not readable"):
        open_cache(root)


def test_rows_that_are_not_there_are_refused(tiny_cache: Path, metaworld: Path) -> None:
    cache = open_cache(tiny_cache, metaworld)
    with pytest.raises(UserError, match="no row for episode 3, frame 0"):
        cache.rows_of(3, 0)
    with pytest.raises(UserError, match="no row for episode 0, frame 5000"):
        cache.rows_of([0, 0], [4, 5000])
    empty = next(row for row in range(cache.rows.max()) if row not in set(cache.rows.tolist()))
    with pytest.raises(UserError, match=f"row {empty} is empty"):
        cache.read([empty])
    with pytest.raises(UserError, match="no row -1"):
        cache.read([-1])
    without_dataset = open_cache(tiny_cache)
    assert (without_dataset.rows_of([2, 0], [7, 8]) == cache.rows_of([2, 0], [7, 8])).all()
    with pytest.raises(UserError, match="no episode 9"):
        without_dataset.rows_of(9, 0)
