"""Another look for a scene: colours, textures and lights at random, put back afterwards.

Not how often a texture repeats (mat_texrepeat): MuJoCo's renderer remembers that from one picture to the next, so that
a scene would depend on those before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

RGB_ROLE = 1  # of a material's textures, in mujoco.mjtTextureRole
FLAT = 0  # a texture that is neither cube nor sky, in mujoco.mjtTexture


@contextmanager
def painted(model: Any, data: Any, rng: np.random.Generator) -> Iterator[None]:
    """Within it, `model` and `data` render in random colours, textures and light. Transparency stays."""
    headlight = model.vis.headlight
    touched = [
        model.geom_rgba, model.mat_rgba, model.mat_texid,
        model.light_diffuse, model.light_specular, data.light_xpos, data.light_xdir,
        headlight.ambient, headlight.diffuse,
    ]  # fmt: skip
    before = [array.copy() for array in touched]
    try:
        _colours(model, rng)
        _lights(model, data, rng)
        yield
    finally:
        for array, value in zip(touched, before, strict=True):
            array[:] = value


def _colours(model: Any, rng: np.random.Generator) -> None:
    """Each colour stays, or is drawn anew, with a chance that differs between scenes."""
    share = rng.uniform(0, 1)
    for rgba in (model.geom_rgba, model.mat_rgba):
        drawn = rng.uniform(0, 1, (len(rgba), 3)) ** rng.uniform(0.5, 2)
        again = rng.uniform(size=len(rgba)) < share
        rgba[again, :3] = drawn[again]
    flat = np.flatnonzero(np.asarray(model.tex_type) == FLAT)
    textures = model.mat_texid[:, RGB_ROLE]
    for material in np.flatnonzero(np.isin(textures, flat)):
        if rng.uniform() < share:
            model.mat_texid[material, RGB_ROLE] = rng.choice(flat)


def _lights(model: Any, data: Any, rng: np.random.Generator) -> None:
    brightness = rng.uniform(0.2, 1)
    for light in range(model.nlight):
        model.light_diffuse[light] = brightness * rng.uniform(0.5, 1, 3) * rng.uniform(0.2, 1)
        model.light_specular[light] = rng.uniform(0, 0.5)
        where = np.array([rng.uniform(-1.5, 1.5), rng.uniform(-1, 2), rng.uniform(1, 3)])
        aim = np.array([rng.uniform(-0.4, 0.4), rng.uniform(0.3, 1), 0.0])
        data.light_xpos[light] = where
        data.light_xdir[light] = (aim - where) / np.linalg.norm(aim - where)
    model.vis.headlight.ambient[:] = rng.uniform(0.1, 0.5)
    model.vis.headlight.diffuse[:] = rng.uniform(0, 0.6)
