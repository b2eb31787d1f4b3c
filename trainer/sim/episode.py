"""One episode, closed loop: look, act, carry out the first of the actions, look again."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.sim.policy import Policy, look
from trainer.sim.world import ACTION_SIZE, STEPS, World


@dataclass(frozen=True)
class Step:
    """What was done in a step, from what state. The world has not moved yet when it is handed out."""

    state: NDArray[np.float32]  # [4] before the action
    action: NDArray[np.float32]  # [4] in -1..1


def steps(
    world: World, policy: Policy, number: int, instruction: str, steps_per_chunk: int | None = None, after: int = 0
) -> Iterator[Step]:
    """The steps of an episode from initial state `number`; each is carried out when the next one is asked for.

    `steps_per_chunk`: actions carried out of each chunk (None: all). It ends `after` steps after the first success, or
    at Meta-World's limit of 500 steps.
    """
    world.reset(number)
    chunk = np.empty((0, ACTION_SIZE), np.float32)
    end = STEPS
    while world.steps < end:
        if len(chunk) == 0:
            chunk = policy.act(look(world, policy, instruction))[:steps_per_chunk]
            assert chunk.ndim == 2 and len(chunk) and chunk.shape[1] == ACTION_SIZE, chunk.shape
        action, chunk = np.clip(chunk[0], -1, 1), chunk[1:]
        yield Step(world.state, action)
        before = world.succeeded
        world.step(action)
        if world.succeeded and not before:
            end = min(STEPS, world.steps + after)
