"""Who acts: a scripted expert, or a policy that this project trained, behind one interface."""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.sim.tasks import wording
from trainer.sim.world import World


@dataclass(frozen=True)
class Sight:
    """What a policy is given before it acts."""

    task: str
    instruction: str
    state: NDArray[np.float32]  # [4]
    observation: NDArray[np.float64]  # [39] the simulator's own numbers: for experts alone
    images: tuple[NDArray[np.uint8], ...]  # [H, W, 3] of each of the policy's cameras


class Policy(Protocol):
    """Acts in any task. `cameras` are the names of Meta-World's cameras that it wants to see, at `size`."""

    cameras: tuple[str, ...]
    size: tuple[int, int]  # height, width

    def act(self, sight: Sight) -> NDArray[np.float32]:
        """A chunk of actions [n, 4] to take from now on."""
        ...

    def instruction(self, task: str, number: int) -> str:
        """The words in which it is asked for the task in episode `number`."""
        ...


class Expert:
    """Meta-World's scripted experts: one action at a time, from the positions of all objects."""

    cameras: tuple[str, ...] = ()
    size = (128, 128)

    def __init__(self) -> None:
        self._scripts: dict[str, Any] = {}

    def act(self, sight: Sight) -> NDArray[np.float32]:
        if sight.task not in self._scripts:
            from metaworld import policies

            scripts: dict[str, Any] = dict(policies.ENV_POLICY_MAP)
            self._scripts[sight.task] = scripts[f"{sight.task}-v3"]()
        with warnings.catch_warnings():
            # Its answers are clipped, as it says that they will be.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high", category=UserWarning)
            action = self._scripts[sight.task].get_action(sight.observation)
        return np.clip(action, -1, 1).astype(np.float32)[None]

    def instruction(self, task: str, number: int) -> str:
        return wording(task, number)


def look(world: World, policy: Policy, instruction: str) -> Sight:
    """What `policy` is given of the world as it is."""
    images = tuple(world.look(camera).image for camera in policy.cameras)
    return Sight(world.task, instruction, world.state, world.observation, images)
