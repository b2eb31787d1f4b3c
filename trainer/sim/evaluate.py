"""Success of a policy, closed loop, with 95 % intervals.

Episode k of a task starts from initial state EVALUATION + k (trainer.sim.world), which no demonstration starts from.
It is a success if Meta-World says so in any of its at most 500 steps, as is usual for it.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Any

from catalog.cache.commit import commit
from catalog.errors import UserError
from trainer.sim.clip import encode
from trainer.sim.crew import do_all
from trainer.sim.episode import steps
from trainer.sim.policy import Expert, Policy
from trainer.sim.render import Renderer
from trainer.sim.world import EVALUATION, World

EXPERT = "expert"
WATCH, WATCH_SIZE = "corner2", 256  # what videos show


@dataclass(frozen=True)
class Who:
    """A policy by name, to be made in each process."""

    name: str  # the word expert, or the folder of a run
    size: tuple[int, int] | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Trial:
    """One episode to do."""

    who: Who
    task: str
    number: int  # 0, 1, ... of the task
    steps_per_chunk: int | None
    video: Path | None  # file to write


@dataclass(frozen=True)
class Outcome:
    task: str
    number: int
    success: bool
    steps: int


@lru_cache(maxsize=1)
def make(who: Who) -> Policy:
    """The policy. Raises UserError as trainer.sim.learned does."""
    if who.name == EXPERT:
        return Expert()
    import torch

    from trainer.sim.learned import LearnedPolicy

    torch.set_num_threads(1)
    return LearnedPolicy(Path(who.name), who.size, who.device)


@lru_cache(maxsize=1)
def _world(task: str, height: int, width: int) -> World:
    """The last task's world: trials come task by task."""
    return World(task, height, width)


def attempt(trial: Trial) -> Outcome:
    """Do one episode."""
    policy = make(trial.who)
    world = _world(trial.task, *policy.size)
    instruction = policy.instruction(trial.task, trial.number)
    course = steps(world, policy, EVALUATION + trial.number, instruction, trial.steps_per_chunk)
    if trial.video is None:
        for _ in course:
            pass
    else:
        film = Renderer(world.model, WATCH_SIZE, WATCH_SIZE)
        try:
            commit(trial.video, encode((film(world.data, WATCH).image for _ in course), crf=20))
        finally:
            film.close()
    return Outcome(trial.task, trial.number, world.succeeded, world.steps)


def evaluate(
    who: Who,
    tasks: tuple[str, ...],
    episodes: int,
    workers: int = 1,
    steps_per_chunk: int | None = None,
    videos: Path | None = None,
) -> dict[str, Any]:
    """`episodes` episodes of each task; with `videos`, the first of each as an mp4 in that folder.

    {"success_rate", "interval", ...} over all episodes, and the same by task. Raises UserError, before the first
    step, for a policy that cannot act in Meta-World.
    """
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}; expected at least 1")
    if steps_per_chunk is not None and steps_per_chunk < 1:
        raise UserError(f"--steps-per-chunk is {steps_per_chunk}; expected at least 1")
    policy = make(who)
    chunk = getattr(policy, "chunk", 1)
    if steps_per_chunk is not None and steps_per_chunk > chunk:
        raise UserError(f"--steps-per-chunk is {steps_per_chunk}, the policy predicts {chunk}; give at most that")
    trials = [
        Trial(who, task, number, steps_per_chunk, videos / f"{task}.mp4" if videos and number == 0 else None)
        for task in tasks
        for number in range(episodes)
    ]
    outcomes = list(do_all(attempt, trials, workers, "episode"))
    result: dict[str, Any] = {"policy": who.name, **_rate(outcomes)}
    if checkpoint := getattr(policy, "checkpoint", None):
        result["checkpoint"] = str(checkpoint)
    result["tasks"] = {task: _rate([each for each in outcomes if each.task == task]) for task in tasks}
    result["initial_states"] = [EVALUATION, EVALUATION + episodes]
    result["steps_per_chunk"] = steps_per_chunk or chunk
    if videos:
        result["videos"] = [str(trial.video) for trial in trials if trial.video]
    return result


def _rate(outcomes: list[Outcome]) -> dict[str, Any]:
    successes = sum(each.success for each in outcomes)
    return {
        "success_rate": successes / len(outcomes),
        "interval": list(wilson(successes, len(outcomes))),
        "successes": successes,
        "episodes": len(outcomes),
        "steps": sum(each.steps for each in outcomes) / len(outcomes),
        "failed": sorted(each.number for each in outcomes if not each.success),
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): honest for few trials, and at 0 and 1."""
    z = 1.959963984540054
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == trials else middle + half)
