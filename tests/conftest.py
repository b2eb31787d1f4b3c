"""Fixtures that several test files need: the datasets in the repository, a small teacher, a finished cache."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: as catalog.command does for the commands

REPOSITORY = Path(__file__).parents[1]

# The whole VGGT at a size at which a forward of two views takes milliseconds: a 4x4 grid of 64 channels.
TINY = {
    "embed_dim": 32,
    "num_heads": 2,
    "depth": 4,
    "patch_embed_depth": 2,
    "image_size": 56,
    "dpt_layers": [0, 1, 2, 3],
    "dpt_features": 32,
    "dpt_channels": [16, 32, 32, 32],
}
GOLDEN = REPOSITORY / "tests" / "data" / "golden"

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def metaworld() -> Path:
    return REPOSITORY / "examples" / "metaworld"


@pytest.fixture(scope="session")
def samples() -> Path:
    return REPOSITORY / "tests" / "data" / "lerobot_samples"


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Run one of the three commands in a process of its own: `command("pipeline", "status", cache)`."""

    def run(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"{name}.cli", *map(str, arguments)]
        done = subprocess.run(
            line, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(line)}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def extract_arguments(metaworld: Path, tiny_config: Path) -> list[str]:
    """Arguments of `pipeline extract` for three episodes of two views, all but --out."""
    line = f"extract --dataset {metaworld} --teacher vggt --weights {GOLDEN / 'public_weights.safetensors'}"
    line += f" --teacher-config {tiny_config} --views corner2,gripperPOV --grid native --episodes 0:3 --shard-rows 16"
    return [*line.split(), "--device", "cpu", "--executor", "inline"]


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, command: Command, extract_arguments: list[str]) -> Path:
    """A sealed cache of three episodes of examples/metaworld. Read only: copy it before you change it."""
    path = tmp_path_factory.mktemp("cache") / "tiny.zarr"
    command("pipeline", *extract_arguments, "--out", path)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without an OpenGL for headless rendering the simulator cannot run; `make test` installs it where it may."""
    from trainer.sim.graphics import LIBRARIES, install, missing

    if all(missing(kind) for kind in LIBRARIES):
        for item in items:
            if item.path.name.startswith("test_sim_") or "demos" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=f"no OpenGL for headless rendering; {install('egl')}"))
