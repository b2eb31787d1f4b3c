"""Random scenes of Meta-World with true depth, to train a small geometry teacher on, and test scenes beside them.

Scene n is the file scene-<n>.npz (one folder for each thousand):

    images      [V, H, W, 3] uint8 RGB
    depth       [V, H, W] float16, metres along the camera's z axis; inf: nothing there
    intrinsics  [V, 3, 3] float32, pixels; the pixel in row r, column c has its centre at (c + 0.5, r + 0.5)
    extrinsics  [V, 4, 4] float32, world to camera, metres; camera axes as in OpenCV: x right, y down, z forward
    task        its name
    cameras     [V] names; "random" for a camera of no name

It is a function of seed and n alone, whatever was made before it and by how many processes. Scenes come in bouts of
eight: one expert's clumsy attempt at one task, stopped eight times. Bouts are done task by task, so that each process
compiles a model once and keeps it.
"""

import errno
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.cache.commit import commit
from catalog.errors import UserError
from trainer.sim.crew import do_all
from trainer.sim.paint import painted
from trainer.sim.policy import Expert, look
from trainer.sim.render import View
from trainer.sim.tasks import TASKS
from trainer.sim.viewpoint import random_view
from trainer.sim.world import SCENES, STATES_A_SEED, World

# No random scene shows these tasks: the six of examples/metaworld, and three to test on with the standard cameras.
HELD_OUT = (
    "drawer-open", "door-open", "button-press-topdown", "window-open", "push", "pick-place",
    "faucet-open", "hammer", "shelf-place",
)  # fmt: skip
STANDARD = ("corner", "corner2", "corner3", "topview", "behindGripper", "gripperPOV")
BOUT = 8
LONGEST = 120  # steps into an attempt
SETTINGS = "scenes.json"


@dataclass(frozen=True)
class Series:
    """What is made: all scenes of one call share it."""

    out: Path
    count: int
    views: tuple[int, int]  # fewest and most of a scene
    size: int  # pixels a side
    seed: int
    standard: tuple[str, ...] = ()  # tasks to show by the standard cameras and in their own colours; none: at random
    tasks: tuple[str, ...] = ()  # tasks to show at random; none: all that are not held out

    def file(self, number: int) -> Path:
        return self.out / f"{number // 1000:04d}" / f"scene-{number:07d}.npz"

    def numbers(self, bout: int) -> range:
        return range(bout * BOUT, min((bout + 1) * BOUT, self.count))

    def task(self, bout: int) -> str:
        if self.standard:
            return self.standard[bout % len(self.standard)]
        shown = self.tasks or [task for task in TASKS if task not in HELD_OUT]
        return shown[int(_rng(self, 0, bout).integers(len(shown)))]


def _rng(series: Series, *numbers: int) -> np.random.Generator:
    """Randomness of its own for each purpose: 0 the task of a bout, 1 its course, 2 the look of a scene."""
    return np.random.default_rng([series.seed, *numbers])


@lru_cache(maxsize=1)
def _world(task: str, size: int) -> World:
    return World(task, size, size)


def make_bout(job: tuple[Series, int]) -> int:
    """Make the missing scenes of a bout; how many there were."""
    series, bout = job
    missing = [number for number in series.numbers(bout) if not series.file(number).is_file()]
    rng = _rng(series, 1, bout)
    world, expert = _world(series.task(bout), series.size), Expert()
    world.reset(SCENES + STATES_A_SEED * series.seed + int(rng.integers(STATES_A_SEED)))
    stops = np.sort(rng.integers(0, LONGEST, BOUT)).tolist()
    noise, wander = rng.uniform(0, 1), rng.uniform(-1, 1, 3) * rng.uniform(0, 0.6)
    for step in range(stops[-1] + 1):
        for place, stop in enumerate(stops):
            number = bout * BOUT + place
            if stop == step and number in missing:
                _save(series, number, world)
        action = expert.act(look(world, expert, ""))[0] + rng.normal(0, noise, 4)
        action[:3] += wander
        world.step(action)
    return len(missing)


def _save(series: Series, number: int, world: World) -> None:
    rng = _rng(series, 2, number)
    if series.standard:
        cameras: Sequence[str] = STANDARD
        views = [world.look(camera, depth=True) for camera in cameras]
    else:
        with painted(world.model, world.data, rng):
            views = [random_view(world, rng) for _ in range(rng.integers(series.views[0], series.views[1] + 1))]
        cameras = ["random"] * len(views)
    commit(series.file(number), pack(views, world.task, cameras))


def pack(views: Sequence[View], task: str, cameras: Sequence[str]) -> bytes:
    """A scene's npz. Compressed lightly: zlib's first level takes a third of the time of its sixth for 10 % more."""
    arrays: dict[str, NDArray[Any]] = {
        "images": np.stack([view.image for view in views]),
        "depth": np.stack([view.depth for view in views if view.depth is not None]).astype(np.float16),
        "intrinsics": np.stack([view.pose.intrinsics for view in views]).astype(np.float32),
        "extrinsics": np.stack([view.pose.extrinsics for view in views]).astype(np.float32),
        "task": np.array(task),
        "cameras": np.array(cameras),
    }
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day: the same scene, the same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            content = BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(entry, content.getvalue(), compresslevel=1)
    return buffer.getvalue()


def make_scenes(series: Series, workers: int = 1) -> dict[str, Any]:
    """Make the scenes that are not there yet.

    Raises UserError for settings that mean nothing, a folder of other scenes, and a full disk.
    """
    low, high = series.views
    if series.count < 1 or series.size < 16 or series.seed < 0 or not 1 <= low <= high:
        raise UserError(
            f"--count is {series.count}, --size {series.size}, --seed {series.seed}, --views {low}..{high}; expected "
            "at least 1, 16, 0 and 1, and the fewest views first"
        )
    _open(series)
    bouts = range(-(-series.count // BOUT))
    missing = {bout: sum(not series.file(n).is_file() for n in series.numbers(bout)) for bout in bouts}
    jobs = sorted((series.task(bout), bout) for bout, scenes in missing.items() if scenes)
    todo = sum(missing.values())
    made = 0
    try:
        for done in do_all(
            make_bout, [(series, bout) for _, bout in jobs], workers, "scene",
            done=series.count - todo, worth=int, total=series.count,
        ):  # fmt: skip
            made += done
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{series.out}: the disk is full; free some space and run the same command again to go on"
            ) from None
        raise
    return {"out": str(series.out), "scenes": series.count, "made": made}


def _open(series: Series) -> None:
    settings = {
        "seed": series.seed,
        "size": series.size,
        "views": list(series.views),
        "standard": list(series.standard),
        "tasks": list(series.tasks),
    }
    file = series.out / SETTINGS
    if file.is_file():
        found = json.loads(file.read_text())
        wrong = [
            f"{name} {found.get(name)}, now {value}" for name, value in settings.items() if found.get(name) != value
        ]
        if wrong:
            raise UserError(f"{series.out} holds other scenes ({'; '.join(wrong)}); choose another --out")
    elif series.out.exists() and (not series.out.is_dir() or any(series.out.iterdir())):
        raise UserError(f"{series.out} exists and holds no scenes; choose another --out")
    commit(file, json.dumps(settings).encode())
