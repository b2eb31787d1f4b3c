"""A policy of this project's trainer, from the folder of its run: config, bounds, last checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from catalog.datasets import Dataset, open_dataset, resolve_views
from catalog.errors import UserError
from trainer.batch import Batch, pad_right
from trainer.config import RunConfig
from trainer.normalise import Bounds
from trainer.samples import stretch
from trainer.sim.policy import Sight
from trainer.sim.render import check_cameras
from trainer.sim.tasks import wording
from trainer.sim.world import ACTION_SIZE, STATE_SIZE
from trainer.tokenise import PADDING
from trainer.trained import read_policy, read_run


class LearnedPolicy:
    """Sees what it saw in training: the views' cameras at the size of the dataset's images, framed for the student by
    the trainer's own resize; states normalised and actions restored by the bounds saved with the run."""

    def __init__(self, run: Path, size: tuple[int, int] | None = None, device: str = "cpu"):
        """`size`: (height, width) to render at instead of the dataset's. Reads the last whole checkpoint.

        Raises UserError for a folder without one, cameras that Meta-World has not, and a policy of another robot.
        """
        config, self.state_bounds, self.action_bounds = read_run(run)
        _check_robot(run, self.state_bounds, self.action_bounds)
        dataset = _dataset(config)
        views = tuple(config.data.views)
        if dataset is not None:
            views = resolve_views(dataset, views) if views else tuple(dataset.cameras)
        elif not views:
            raise UserError(f"{run}: data.views names no cameras and {config.data.dataset} is gone; name them there")
        self.cameras = check_cameras([view.rsplit(".", 1)[-1] for view in views])
        self.size = size or _size(run, config, dataset, views)
        self.known = sorted({task for each in dataset.episodes.values() for task in each.tasks}) if dataset else []
        self._policy, self.checkpoint = read_policy(run, config, self.state_bounds, self.action_bounds)
        self._device = torch.device(device)
        self._policy.to(self._device)
        self.chunk = self._policy.chunk

    def act(self, sight: Sight) -> NDArray[np.float32]:
        """[chunk, 4] in the simulator's units."""
        images = [stretch(torch.from_numpy(image)[None], self._policy.image_size)[0] for image in sight.images]
        text, text_mask = pad_right([self._policy.tokeniser(sight.instruction)], PADDING)
        batch = Batch(
            episodes=torch.zeros(1, dtype=torch.int64),
            frames=torch.zeros(1, dtype=torch.int64),
            images=torch.stack(images)[None],
            views=torch.ones(1, len(images), dtype=torch.bool),
            text=text,
            text_mask=text_mask,
            state=torch.from_numpy(self.state_bounds.normalise(sight.state))[None],
            actions=torch.zeros(1, self.chunk, ACTION_SIZE),
            action_mask=torch.ones(1, self.chunk, dtype=torch.bool),
        )
        with torch.inference_mode():
            actions: NDArray[np.float32] = self._policy(batch.to(self._device))[0].float().cpu().numpy()
        return self.action_bounds.restore(np.clip(actions, -1, 1))

    def instruction(self, task: str, number: int) -> str:
        return wording(task, number, self.known)


def _check_robot(run: Path, state: Bounds, action: Bounds) -> None:
    """UserError if the policy's states or actions are not those of Meta-World's robot."""
    for name, bounds, expected in (("state", state, STATE_SIZE), ("action", action, ACTION_SIZE)):
        if (found := len(bounds.q01)) != expected:
            raise UserError(
                f"{run}: its {name}s have {found} numbers, Meta-World's have {expected} "
                f"({'hand x, y, z and gripper' if name == 'state' else 'dx, dy, dz and gripper'}); it was trained for "
                "another robot: give a run trained on Meta-World demonstrations (`trainer demos`)"
            )


def _dataset(config: RunConfig) -> Dataset | None:
    """What the run was trained on, if it is still there: it knows the cameras' sizes and the wordings."""
    try:
        return open_dataset(config.data.dataset)
    except UserError:
        return None


def _size(run: Path, config: RunConfig, dataset: Dataset | None, views: Sequence[str]) -> tuple[int, int]:
    if dataset is None:
        raise UserError(
            f"{run}: its dataset {config.data.dataset} is gone, so the size of its images is not known; give --size"
        )
    sizes = {(dataset.cameras[view].height, dataset.cameras[view].width) for view in views}
    if len(sizes) > 1:
        raise UserError(f"{run}: its views differ in size ({sorted(sizes)}); expected one size; give --size")
    return sizes.pop()
