"""A camera anywhere above the table that sees something."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.sim.render import View
from trainer.sim.world import World

WORKSPACE = np.array([0.0, 0.65, 0.1])  # metres: where the tasks happen
CLOSE = 0.2  # share of views from a few hands' breadths away, as a camera on the gripper has
NEAREST = 0.06  # metres: a camera that sees anything nearer stands in or against something
TRIES = 30


def random_view(world: World, rng: np.random.Generator) -> View:
    """Image and depth from a random camera: on a hemisphere about a point near the hand or the workspace's centre."""
    hand = np.array(world.data.body("hand").xpos)
    for _ in range(TRIES):
        close = rng.uniform() < CLOSE
        target = (hand if close else WORKSPACE) + rng.normal(0, [0.1, 0.1, 0.05])
        distance = rng.uniform(0.15, 0.6) if close else rng.uniform(0.5, 2.3)
        azimuth, elevation = rng.uniform(0, 2 * np.pi), np.arcsin(rng.uniform(np.sin(np.radians(8)), 1))
        direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        fovy, roll = rng.uniform(35, 90), np.radians(rng.normal(0, 10))
        axes = look_at(np.array(direction), roll)
        view = world.renderer.at(world.data, target + distance * np.array(direction), axes, fovy, depth=True)
        if _sees_something(view):
            return view
    return view


def look_at(back: NDArray[np.float64], roll: float) -> NDArray[np.float64]:
    """Axes (right, up, back) in the columns [3, 3] of a camera that looks against the unit vector `back`, its right
    side level with the ground but for `roll` radians."""
    right = np.cross([0.0, 0.0, 1.0], back)
    length = np.linalg.norm(right)
    right = right / length if length > 1e-6 else np.array([1.0, 0.0, 0.0])
    up = np.cross(back, right)
    return np.stack([np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right, back], axis=1)


def _sees_something(view: View) -> bool:
    """Nothing in its way, and not the sky or the bare floor alone."""
    assert view.depth is not None
    seen: NDArray[Any] = view.depth[np.isfinite(view.depth)]
    return bool(seen.size > view.depth.size / 2 and seen.min() > NEAREST and np.ptp(seen) > 0.1)
