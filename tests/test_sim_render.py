"""What cameras see: upright, with true depth, where intrinsics and extrinsics say."""

import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("metaworld", reason="needs the extra sim")

from catalog.errors import UserError
from trainer.sim import graphics
from trainer.sim.paint import painted
from trainer.sim.render import CAMERAS, Pose, Renderer, View, check_cameras
from trainer.sim.viewpoint import _sees_something, look_at, random_view
from trainer.sim.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World("push", 160, 200)
    world.reset(3)
    yield world
    world.close()


def project(view: View, points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """World points [n, 3] -> pixels [n, 2] and depths [n]."""
    seen = points @ view.pose.extrinsics[:3, :3].T + view.pose.extrinsics[:3, 3]
    flat = seen @ view.pose.intrinsics.T
    return flat[:, :2] / flat[:, 2:], seen[:, 2]


def unproject(view: View) -> NDArray[np.float64]:
    """All pixels that show something -> world points [n, 3]."""
    assert view.depth is not None
    rows, columns = np.nonzero(np.isfinite(view.depth))
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], axis=1)
    seen = pixels @ np.linalg.inv(view.pose.intrinsics).T * view.depth[rows, columns, None]
    back = np.linalg.inv(view.pose.extrinsics)
    return seen @ back[:3, :3].T + back[:3, 3]


def agreement(one: View, other: View) -> float:
    """The share of `one`'s points that `other` should see and does, at their depth; behind something does not count."""
    pixels, depths = project(other, unproject(one))
    assert other.depth is not None
    inside = (depths > 0.05) & (pixels >= 0).all(1) & (pixels < [other.depth.shape[1], other.depth.shape[0]]).all(1)
    column, row = pixels[inside].astype(int).T
    found, expected = other.depth[row, column], depths[inside]
    in_sight = found > expected - 0.02 * expected
    assert inside.sum() > 500
    return float((np.abs(found - expected) < 0.02 * expected)[in_sight].mean())


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner3", "corner4", "gripperPOV"])
def test_a_known_point_is_where_the_camera_says(world: World, camera: str) -> None:
    """The puck: a cylinder of 2 cm radius, so what is seen lies up to 3 cm before its centre."""
    centre = np.array(world.data.body("obj").xpos)
    view = world.look(camera, depth=True)
    (pixel,), (depth,) = project(view, centre[None])
    assert view.depth is not None
    column, row = pixel.astype(int)
    assert 0 <= column < 200 and 0 <= row < 160
    assert 0.0 < depth - view.depth[row, column] < 0.035
    red, green, blue = view.image[row, column].astype(int)
    assert red > 1.5 * green and red > 1.5 * blue  # it is red


@pytest.mark.parametrize("pair", [("corner2", "corner4"), ("corner4", "corner2"), ("corner3", "topview")])
def test_two_cameras_agree_on_the_scene(world: World, pair: tuple[str, str]) -> None:
    one, other = (world.look(camera, depth=True) for camera in pair)
    assert agreement(one, other) > 0.9


def test_random_cameras_agree_with_each_other(world: World) -> None:
    before = [world.look(camera).pose for camera in CAMERAS]
    rng = np.random.default_rng(4)
    for _ in range(4):
        assert agreement(random_view(world, rng), random_view(world, rng)) > 0.85
    for camera, pose in zip(CAMERAS, before, strict=True):  # the one that was borrowed is back in its place
        assert np.array_equal(world.look(camera).pose.extrinsics, pose.extrinsics)
        assert np.array_equal(world.look(camera).pose.intrinsics, pose.intrinsics)


def test_every_fixed_camera_is_upright(world: World) -> None:
    """The axis that points down in the picture does not point up in the world, and the robot stands on the floor."""
    for camera in CAMERAS:
        view = world.look(camera)
        assert view.pose.extrinsics[1, 2] < 1e-6, camera
        assert np.linalg.det(view.pose.extrinsics[:3, :3]) == pytest.approx(1)
    (high, low), _ = project(world.look("corner2"), np.array([[0, 0.6, 0.3], [0, 0.6, 0.0]]))
    assert high[1] < low[1]


def test_the_sky_is_infinitely_far_and_nothing_else_is(world: World) -> None:
    depth = world.look("corner2", depth=True).depth
    assert depth is not None
    assert np.isinf(depth[0, 0]) and depth[np.isfinite(depth)].max() < 12
    assert np.isfinite(depth[80:]).all()  # the floor and the table


def test_depth_is_not_smeared_by_antialiasing(world: World) -> None:
    """A picture three times as fine has a pixel in the middle of each of these, on the same ray: it has its depth."""
    depth = world.look("corner2", depth=True).depth
    renderer = Renderer(world.model, 480, 600)
    fine = renderer(world.data, "corner2", depth=True).depth
    renderer.close()
    assert depth is not None and fine is not None
    middle = fine[1::3, 1::3]
    seen = np.isfinite(depth) & np.isfinite(middle)
    assert seen.mean() > 0.6 and (np.abs(depth[seen] - middle[seen]) < 0.002).mean() > 0.998


def test_two_renderers_of_one_process_do_not_mix(world: World) -> None:
    before = world.look("corner2").image
    second = Renderer(world.model, 32, 48)
    assert second(world.data, "corner2").image.shape == (32, 48, 3)
    assert np.array_equal(world.look("corner2").image, before)
    second.close()
    assert np.array_equal(world.look("corner2").image, before)


def test_paint_is_put_back(world: World) -> None:
    before = world.look("corner2").image
    with painted(world.model, world.data, np.random.default_rng(1)):
        assert (world.look("corner2").image != before).mean() > 0.3
    assert np.array_equal(world.look("corner2").image, before)


def test_a_camera_that_sees_nothing_or_stands_in_something_is_not_used() -> None:
    pose = Pose(np.eye(3), np.eye(4))

    def useful(depth: NDArray[np.float32]) -> bool:
        return _sees_something(View(np.zeros((8, 8, 3), np.uint8), depth, pose))

    scene = np.linspace(0.5, 1, 64, dtype=np.float32).reshape(8, 8)
    assert useful(scene)
    assert not useful(np.where(scene == scene.max(), np.float32(0.03), scene))  # something right before it
    assert not useful(np.full_like(scene, 1.2))  # a flat wall
    assert not useful(np.where(scene > 0.7, np.float32(np.inf), scene))  # mostly sky


def test_look_at_gives_a_rotation() -> None:
    for back in (np.array([0.0, 0.6, 0.8]), np.array([0.0, 0.0, 1.0])):
        axes = look_at(back, 0.3)
        assert np.allclose(axes @ axes.T, np.eye(3)) and np.linalg.det(axes) == pytest.approx(1)
        assert np.allclose(axes[:, 2], back)


def test_unknown_cameras_are_named_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match="no camera 'corner5' in Meta-World; expected some of: corner, corner4, corner3, "
    ):
        check_cameras(["corner5"])
    with pytest.raises(UserError, match="named twice"):
        check_cameras(["corner", "corner"])


def test_opengl_is_chosen_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"OSMesa"}
    monkeypatch.setattr(graphics, "find_library", lambda name: name if name in present else None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert graphics.choose() == "osmesa" and os.environ["MUJOCO_GL"] == "osmesa"
    present.update({"EGL", "OpenGL"})
    monkeypatch.setenv("MUJOCO_GL", "")
    assert graphics.choose() == "egl"
    present.clear()
    with pytest.raises(UserError, match="libEGL, libOpenGL; on Debian: apt-get install libegl1 libopengl0 libgl1-mesa"):
        graphics.choose()
    monkeypatch.setenv("MUJOCO_GL", "")
    with pytest.raises(UserError, match=r"not installed: libEGL.*apt-get install libegl1"):
        graphics.choose()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(UserError, match="expected egl or osmesa"):
        graphics.choose()


def test_a_missing_simulator_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"pip install 'spatialcache\[sim\]'"):
        graphics.simulator()
