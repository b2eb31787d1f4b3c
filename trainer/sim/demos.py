"""Expert demonstrations as a LeRobot v3.0 dataset; a killed or full run goes on where it stopped.

Episode k of a task starts from initial state DEMONSTRATIONS + k (trainer.sim.world). Each is written to a folder of
its own under OUT/.attempts, whole or not at all; a failed one leaves a mark only. When all are done, or the disk is
full, the dataset is put together from what is there (trainer.sim.assemble). Frames are those before each action, until
four steps after the first success, as in examples/metaworld.
"""

import errno
import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.cache.commit import commit, publish, temporary
from catalog.errors import UserError
from trainer.sim.assemble import ATTEMPTS, EPISODE, NUMBERS, Layout, assemble, is_dataset
from trainer.sim.clip import encode
from trainer.sim.crew import do_all
from trainer.sim.episode import steps
from trainer.sim.policy import Expert
from trainer.sim.statistics import picture_statistics
from trainer.sim.tasks import wording
from trainer.sim.world import DEMONSTRATIONS, World

FULL = (errno.ENOSPC, errno.EDQUOT)
AFTER_SUCCESS = 4  # steps that an episode goes on for
SETTINGS = "demonstrations.json"
FAILED = "failed"
RESERVE = "reserve"  # a file deleted when the disk is full, so that the metadata still find room
RESERVED = 4 << 20  # bytes, and as many again for each thousand episodes


@dataclass(frozen=True)
class Attempt:
    """One demonstration to make."""

    out: Path
    task: str
    number: int  # 0, 1, ... of the task
    cameras: tuple[str, ...]
    size: int  # pixels a side
    depth: bool

    @property
    def folder(self) -> Path:
        return self.out / ATTEMPTS / f"{self.task}-{self.number:06d}"


@lru_cache(maxsize=1)
def _world(task: str, size: int) -> World:
    """The last task's world: attempts come task by task."""
    return World(task, size, size)


def demonstrate(attempt: Attempt) -> bool | None:
    """Make one; whether the expert succeeded, None if there was no room to write it down."""
    world, expert = _world(attempt.task, attempt.size), Expert()
    words = wording(attempt.task, attempt.number)
    images: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in attempt.cameras}
    depths: dict[str, list[NDArray[np.float16]]] = {camera: [] for camera in attempt.cameras}
    poses: dict[str, list[tuple[Any, Any]]] = {camera: [] for camera in attempt.cameras}
    states, actions = [], []
    for step in steps(world, expert, DEMONSTRATIONS + attempt.number, words, after=AFTER_SUCCESS):
        states.append(step.state)
        actions.append(step.action)
        for camera in attempt.cameras:
            view = world.look(camera, attempt.depth)
            images[camera].append(view.image)
            if view.depth is not None:
                depths[camera].append(view.depth.astype(np.float16))
                poses[camera].append((view.pose.intrinsics, view.pose.extrinsics))
    part = temporary(attempt.folder)
    try:
        part.mkdir(parents=True)
        if not world.succeeded:
            (part / FAILED).touch()
        else:
            _write(part / NUMBERS, {"state": np.stack(states), "action": np.stack(actions)})
            summaries = {}
            for camera in attempt.cameras:
                (part / f"{camera}.mp4").write_bytes(encode(images[camera]))
                summaries[camera] = picture_statistics(np.stack(images[camera]))
                if attempt.depth:
                    arrays = {"depth": np.stack(depths[camera])}
                    arrays["intrinsics"] = np.stack([pose[0] for pose in poses[camera]]).astype(np.float32)
                    arrays["extrinsics"] = np.stack([pose[1] for pose in poses[camera]]).astype(np.float32)
                    _write(part / f"{camera}.npz", arrays)
            (part / EPISODE).write_text(json.dumps({"task": attempt.task, "words": words, "pictures": summaries}))
        for path in part.iterdir():
            _sync(path)
        publish(part, attempt.folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in FULL:
            return None
        raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return world.succeeded


def demonstrations(
    out: Path, tasks: tuple[str, ...], episodes: int, cameras: tuple[str, ...], size: int, depth: bool, workers: int = 1
) -> dict[str, Any]:
    """Make `episodes` attempts at each task and the dataset of those that succeeded.

    Raises UserError for a folder that holds something else, and for a full disk, after putting together a dataset of
    what was complete.
    """
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}; expected at least 1")
    if size < 16 or size % 2:
        raise UserError(f"--size is {size}; expected an even number of pixels, at least 16 (h264 needs even sizes)")
    settings = {"tasks": list(tasks), "episodes": episodes, "cameras": list(cameras), "size": size, "depth": depth}
    finished = _open(out, settings)
    if finished is not None:
        return finished
    attempts = [Attempt(out, task, number, cameras, size, depth) for task in tasks for number in range(episodes)]
    todo = [attempt for attempt in attempts if not attempt.folder.is_dir()]
    made = do_all(demonstrate, todo, workers, "episode", done=len(attempts) - len(todo))
    full = any(success is None for success in made)
    if full:
        made.close()  # waits for those under way
        (out / ATTEMPTS / RESERVE).unlink(missing_ok=True)
    complete = [attempt.folder for attempt in attempts if (attempt.folder / NUMBERS).is_file()]
    failures = [f"{each.task} {each.number}" for each in attempts if (each.folder / FAILED).is_file()]
    if not complete and not full:
        raise UserError(
            f"{out}: the experts failed in all {len(failures)} episodes, nothing to write; try more episodes"
        )
    try:
        result = assemble(Layout(out, cameras, size, depth), complete) if complete else {}
    except OSError as error:
        raise _full(out, error, "and the dataset is not put together") from None
    if full:
        raise UserError(
            f"{out}: the disk is full after {len(complete)} of {len(attempts)} episodes; "
            f"{'the dataset holds these and opens' if complete else 'there is no dataset yet'}; "
            "free some space and run the same command again to go on"
        )
    result |= {"failed": len(failures), "failures": failures}
    commit(out / SETTINGS, json.dumps({**settings, "result": result}, indent=1).encode())
    shutil.rmtree(out / ATTEMPTS)
    return result


def _full(out: Path, error: OSError, what: str) -> Exception:
    """A full disk in words; any other error as it is."""
    if error.errno not in FULL:
        return error
    return UserError(f"{out}: the disk is full, {what}; free some space and run the same command again to go on")


def _open(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Begin in a folder, or go on in it; the result if it is finished."""
    if (out / SETTINGS).is_file():
        found = json.loads((out / SETTINGS).read_text())
        result: dict[str, Any] | None = found.pop("result", None)
        wrong = [
            f"{name} {found.get(name)}, now {value}" for name, value in settings.items() if found.get(name) != value
        ]
        if wrong:
            raise UserError(f"{out} holds other demonstrations ({'; '.join(wrong)}); choose another --out")
        if result is not None and is_dataset(out):
            sys.stderr.write(f"trainer: {out} is complete already\n")
            return result
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no demonstrations of this command; choose another --out")
    (out / ATTEMPTS).mkdir(parents=True, exist_ok=True)
    for leftover in (out / ATTEMPTS).glob(".part-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        commit(out / SETTINGS, json.dumps(settings, indent=1).encode())
        total = RESERVED * (1 + settings["episodes"] * len(settings["tasks"]) // 1000)
        (out / ATTEMPTS / RESERVE).write_bytes(os.urandom(total))  # zeros could be kept for nothing
    except OSError as error:
        raise _full(out, error, "before anything is made") from None
    return None


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    path.write_bytes(buffer.getvalue())


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
