"""The sine-cosine position grid that VGGT's dense heads and the Spatial Forcing target add to a map of tokens.

A cache holds features without positions (resizing is linear, so the position part can be added when it is read);
this module is the one definition of that part, for the teacher and for the trainer.
Source: VGGT (arXiv 2503.11651) and Spatial Forcing (arXiv 2510.12276), both as published code.
"""

import numpy as np
from numpy.typing import NDArray

POSITION_SCALE = 0.1  # what both published codes multiply the grid by where they add it
POSITION_BASE = 100.0


def position_grid(rows: int, columns: int, channels: int, aspect: float | None = None) -> NDArray[np.float32]:
    """The unscaled grid, float32 [rows, columns, channels]; multiply by POSITION_SCALE where it is added.

    u (along columns) and v (along rows) are the cell centres of a rectangle of half diagonal 1 whose width over
    height is `aspect` (default columns / rows; a dense head passes the image's). The first half of the channels
    encodes u, the second v; each half is the sines of channels/4 frequencies, then their cosines.

    Raises ValueError unless rows, columns and aspect are positive and channels is a multiple of 4.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"found a position grid of {rows}x{columns}, expected at least 1x1")
    if channels < 4 or channels % 4:
        raise ValueError(f"found {channels} channels, expected a multiple of 4 (sine and cosine of u and of v)")
    aspect = columns / rows if aspect is None else aspect
    if not aspect > 0:
        raise ValueError(f"found the aspect ratio {aspect}, expected width over height, more than 0")
    diagonal = np.sqrt(aspect * aspect + 1.0)
    u_C = _centres(columns, aspect / diagonal)
    v_R = _centres(rows, 1.0 / diagonal)
    grid = np.empty((rows, columns, channels), dtype=np.float32)
    grid[..., : channels // 2] = _waves(u_C, channels // 4)[None, :, :]
    grid[..., channels // 2 :] = _waves(v_R, channels // 4)[:, None, :]
    return grid


def _centres(count: int, span: float) -> NDArray[np.float64]:
    """The centres of `count` equal cells that cover -span..span."""
    end = span * (count - 1) / count
    return np.linspace(-end, end, count, dtype=np.float64)


def _waves(place: NDArray[np.float64], frequencies: int) -> NDArray[np.float64]:
    """[n] -> [n, 2 * frequencies]. In float64: float32 would differ from the published grid in the last digits."""
    omega = POSITION_BASE ** -(np.arange(frequencies, dtype=np.float64) / frequencies)
    angle = place[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
