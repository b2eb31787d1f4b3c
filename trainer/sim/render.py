"""What a camera sees: image, true depth, intrinsics and extrinsics, upright.

Coordinates as in pipeline.teachers.framing: the pixel in row r, column c covers [c, c + 1) x [r, r + 1), centre
(c + 0.5, r + 0.5). Cameras are as in OpenCV: x to the right, y down, z into the scene. So a point X of the world, in
metres, is seen at  depth * (x, y, 1) = intrinsics @ (extrinsics @ (X, 1))[:3].

Depth is along z, not along the ray. MuJoCo's buffer holds it reversed: for a value v in it, near plane n and far plane
f, metres = n / (v (1 - n/f) + n/f). With antialiasing the buffer holds averages over samples, which are the depth of
nothing, so a model is rendered without. Shadows are off: they cost five times the rest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UserError, nearest
from trainer.sim.graphics import make_context, simulator

# Mounted upside down in Meta-World's scenes: image, intrinsics and extrinsics are turned by 180 degrees.
TURNED = frozenset({"corner", "corner2", "corner3", "corner4"})
CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")


@dataclass(frozen=True)
class Pose:
    """Where a camera is and how it sees."""

    intrinsics: NDArray[np.float64]  # [3, 3] in pixels
    extrinsics: NDArray[np.float64]  # [4, 4] world to camera, metres


@dataclass(frozen=True)
class View:
    """What it sees."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    depth: NDArray[np.float32] | None  # [H, W] metres along z, inf where there is nothing; None: not asked for
    pose: Pose


def check_cameras(cameras: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Camera names, each known and named once. Raises UserError with the nearest names."""
    for camera in cameras:
        if camera not in CAMERAS:
            raise UserError(f"no camera '{camera}' in Meta-World; expected some of: {nearest(camera, CAMERAS)}")
    if len(set(cameras)) != len(cameras):
        raise UserError(f"a camera is named twice in {','.join(cameras)}; name each once")
    return tuple(cameras)


def intrinsics(fovy: float, height: int, width: int) -> NDArray[np.float64]:
    """[3, 3] of a camera with a vertical field of view of `fovy` degrees and square pixels."""
    focal = height / 2 / np.tan(np.radians(fovy) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def extrinsics(position: NDArray[np.float64], axes: NDArray[np.float64], turned: bool) -> NDArray[np.float64]:
    """[4, 4] of a camera at `position` [3] whose axes (right, up, back), as MuJoCo has them, are columns [3, 3]."""
    rotation = (axes * ([-1, 1, -1] if turned else [1, -1, -1])).T
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ position
    return matrix


class Renderer:
    """Renders one model, at one size, as often as asked. Cheap to use, about 0.15 s to make: keep it."""

    def __init__(self, model: Any, height: int, width: int):
        self._mujoco = mujoco = simulator()
        make_context()
        self.model, self.height, self.width = model, height, width
        model.vis.quality.offsamples = 0  # see above
        model.vis.quality.shadowsize = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rectangle = mujoco.MjrRect(0, 0, width, height)

    def close(self) -> None:
        self._context.free()

    def __call__(self, data: Any, camera: str, depth: bool = False) -> View:
        """What a camera of the model sees in the state that `data` holds."""
        return self._draw(data, self.model.camera(camera).id, camera in TURNED, depth)

    def at(
        self, data: Any, position: NDArray[np.float64], axes: NDArray[np.float64], fovy: float, depth: bool = False
    ) -> View:
        """What a camera anywhere would see: at `position` [3], with axes (right, up, back) in the columns of [3, 3]."""
        borrowed = 0
        places = (data.cam_xpos, data.cam_xmat, self.model.cam_fovy)
        before = [place[borrowed].copy() for place in places]
        try:
            for place, value in zip(places, (position, axes.ravel(), fovy), strict=True):
                place[borrowed] = value
            return self._draw(data, borrowed, False, depth)
        finally:
            for place, value in zip(places, before, strict=True):
                place[borrowed] = value

    def _draw(self, data: Any, camera: int, turned: bool, depth: bool) -> View:
        mujoco = self._mujoco
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self.model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        image = np.empty((self.height, self.width, 3), np.uint8)
        buffer = np.empty((self.height, self.width), np.float32) if depth else None
        mujoco.mjr_readPixels(image, buffer, self._rectangle, self._context)
        # OpenGL's rows run upwards; a camera that is upside down is turned, which leaves its columns to be reversed.
        order = np.s_[:, ::-1] if turned else np.s_[::-1]
        pose = Pose(
            intrinsics(self.model.cam_fovy[camera], self.height, self.width),
            extrinsics(data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3), turned),
        )
        metres = None if buffer is None else self._metres(buffer[order])
        return View(np.ascontiguousarray(image[order]), metres, pose)

    def _metres(self, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
        planes = self.model.vis.map
        near, far = planes.znear * self.model.stat.extent, planes.zfar * self.model.stat.extent
        metres = near / (buffer.astype(np.float64) * (1 - near / far) + near / far)
        # The sky is a box that is drawn, some 70 m away (0.59 of the far plane), in a scene of 8 m. Along the z axis of
        # a wide camera that becomes a third of it; a sixth of the far plane, 20 m, is between the two.
        metres[metres > far / 6] = np.inf
        return metres.astype(np.float32)
