"""One task of Meta-World to act in, from initial states that have a number.

Initial state n of a task is `train_tasks[n % 50]` of `MT1(task, seed=1 + n // 50)`: the positions of objects and goal
are drawn by Meta-World from that seed (`reset(seed=)` is ignored there). The numbers are split by use, so that no
policy is measured on a state that it was shown:

    demonstrations    0 to 49,999         seeds 1 to 1,000 (examples/metaworld holds numbers 0 to 3)
    evaluation        50,000 to 99,999    seeds 1,001 to 2,000
    scenes            100,000 and up      seeds 2,001 and up

A step is 1/80 s. State is the observation's first four numbers: hand x, y, z in metres, opening of the gripper 0 to 1.
An action is a shift of the hand in centimetres and the gripper's effort, -1 open to 1 closed, each in -1..1.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UserError
from trainer.sim.graphics import simulator
from trainer.sim.render import Renderer, View

DEMONSTRATIONS, EVALUATION, SCENES = 0, 50_000, 100_000
STATES_A_SEED = 50
STEPS = 500  # Meta-World's limit
STATE_SIZE, ACTION_SIZE = 4, 4


def _metaworld() -> Any:
    simulator()
    try:
        import metaworld
    except ModuleNotFoundError as error:
        raise UserError(
            f"the simulator is not installed (no module {error.name}); run pip install 'spatialcache[sim]'"
        ) from None
    return metaworld


@lru_cache(maxsize=8)
def initial_states(task: str, seed: int) -> list[Any]:
    """The 50 initial states of a task for one seed, as Meta-World's own objects. About a second."""
    states: list[Any] = _metaworld().MT1(f"{task}-v3", seed=seed).train_tasks
    assert len(states) == STATES_A_SEED
    return states


class World:
    """A task, its current state and its cameras. Making one takes half a second, a reset 10 ms."""

    def __init__(self, task: str, height: int = 128, width: int = 128):
        self.task = task
        self.height, self.width = height, width
        self._env: Any = _metaworld().env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        self._renderer: Renderer | None = None
        self.observation: NDArray[np.float64] = np.zeros(0)  # [39] what Meta-World says: the experts read it
        self.succeeded = False  # in some step since the reset
        self.steps = 0

    @property
    def model(self) -> Any:
        return self._env.model

    @property
    def data(self) -> Any:
        return self._env.data

    @property
    def state(self) -> NDArray[np.float32]:
        """[4] what a policy may know."""
        return self.observation[:STATE_SIZE].astype(np.float32)

    @property
    def renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self.model, self.height, self.width)
        return self._renderer

    def reset(self, number: int) -> None:
        """To initial state `number`."""
        self._env.set_task(initial_states(self.task, 1 + number // STATES_A_SEED)[number % STATES_A_SEED])
        self.observation, _ = self._env.reset()
        self.succeeded, self.steps = False, 0

    def step(self, action: NDArray[np.floating[Any]]) -> None:
        """Apply an action [4]; what lies outside -1..1 is clipped, as Meta-World does."""
        clipped = np.clip(np.asarray(action, np.float32), -1, 1)
        self.observation, _, _, _, info = self._env.step(clipped)  # `terminated` is never true
        self.succeeded |= bool(info["success"])
        self.steps += 1

    def look(self, camera: str, depth: bool = False) -> View:
        """What a camera sees now."""
        return self.renderer(self.data, camera, depth)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()
