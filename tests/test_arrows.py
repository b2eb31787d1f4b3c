"""The house: who may import whom, and that --help is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FORBIDDEN = {
    "catalog": {"torch", "ray", "pipeline", "trainer", "transformers", "dask"},
    "pipeline": {"trainer", "transformers"},
    "trainer": {"ray", "pipeline", "dask"},
}
# The one exception: the trainer's online mode keeps the teacher in the loop.
ALLOWED = {("trainer", "pipeline.teachers"), ("trainer", "pipeline.teachers.framing")}
RAY_FILE = Path("pipeline/actors.py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the project imports absolutely"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            if (package, module) not in ALLOWED:
                assert module.split(".")[0] not in FORBIDDEN[package], f"{path} imports {module}"


def test_ray_is_imported_in_one_file_alone() -> None:
    importers = [
        path.relative_to(REPOSITORY)
        for path in (REPOSITORY / "pipeline").rglob("*.py")
        if any(module.split(".")[0] == "ray" for module in imports(path))
    ]
    assert importers == [RAY_FILE]


@pytest.mark.parametrize("name", ["catalog", "pipeline", "trainer"])
def test_help_imports_neither_torch_nor_ray(name: str) -> None:
    code = (
        f"import sys; from {name}.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as exit: code = exit.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'zarr', 'dask'} & set(sys.modules)\n"
        "sys.stderr.write(repr((code, sorted(heavy))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stderr == "(0, [])"
    assert f"usage: {name}" in done.stdout


@pytest.mark.parametrize("name", ["catalog", "pipeline", "trainer"])
def test_wrong_usage_exits_with_2(name: str, command) -> None:
    assert command(name, "no-such-command", check=False).returncode == 2


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "catalog.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(REPOSITORY)!r}]; import pipeline"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert "found another package named 'catalog'" in done.stderr
    assert str(tmp_path) in done.stderr
