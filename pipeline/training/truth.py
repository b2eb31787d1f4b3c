"""True geometry in the units that VGGT learns (arXiv 2503.11651, section 3.4).

Everything is expressed in the camera frame of view 0 and divided by the mean distance of the visible points from that
camera: the network cannot know metres, and is not asked to.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """Of B scenes of V views. What is not `valid` (sky, nothing) holds zeros."""

    depth: Tensor  # [B, V, H, W] along z
    points: Tensor  # [B, V, H, W, 3] in the camera frame of view 0
    pose: Tensor  # [B, V, 9]: translation 3, quaternion 4 (x, y, z, w), vertical and horizontal view angle in radians
    valid: Tensor  # [B, V, H, W] bool


def truth(depth: Tensor, intrinsics: Tensor, extrinsics: Tensor) -> Truth:
    """Depth [B, V, H, W] in metres (inf where there is nothing), intrinsics [B, V, 3, 3] in pixels and extrinsics
    [B, V, 4, 4] from world to camera (OpenCV axes) as the network's targets."""
    valid = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid, depth, 0.0).float()
    relative = extrinsics.double() @ torch.linalg.inv(extrinsics[:, :1].double())  # view 0's frame to each view's
    seen = unproject(depth, intrinsics.float())
    back = torch.linalg.inv(relative).float()
    points = torch.einsum("bvij,bvhwj->bvhwi", back[..., :3, :3], seen) + back[..., None, None, :3, 3]
    points = torch.where(valid[..., None], points, 0.0)
    count = valid.flatten(1).sum(1).clamp(min=1)
    scale = (points.norm(dim=-1).flatten(1).sum(1) / count).clamp(min=1e-6)
    wide = scale[:, None, None, None]
    height, width = depth.shape[-2:]
    angles = [2 * torch.atan(size / 2 / intrinsics[..., i, i].float()) for size, i in ((height, 1), (width, 0))]
    translation = relative[..., :3, 3].float() / scale[:, None, None]
    pose = torch.cat([translation, quaternion(relative[..., :3, :3]).float(), torch.stack(angles, -1)], -1)
    return Truth(depth / wide, points / wide[..., None], pose, valid)


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points [..., H, W, 3] in the camera's frame of depth [..., H, W]; pixel centres lie at +0.5."""
    height, width = depth.shape[-2:]
    y = (torch.arange(height, device=depth.device) + 0.5)[:, None]
    x = (torch.arange(width, device=depth.device) + 0.5)[None, :]

    def at(row: int, column: int) -> Tensor:
        return intrinsics[..., row, column, None, None]

    return torch.stack([(x - at(0, 2)) / at(0, 0) * depth, (y - at(1, 2)) / at(1, 1) * depth, depth], -1)


def quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions [..., 4] as (x, y, z, w), w >= 0, of rotation matrices [..., 3, 3].

    From the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000), which needs no cases.
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotation.flatten(-2).unbind(-1)
    rows = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    matrix = torch.stack([torch.stack(row, -1) for row in rows], -2) / 3
    vector = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    return torch.where(vector[..., 3:] < 0, -vector, vector)
