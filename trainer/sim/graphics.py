"""OpenGL without a screen: one context a process, made where it is first needed.

MuJoCo chooses its OpenGL when it is imported, by MUJOCO_GL; without one this file chooses, so that nothing else has to.
EGL comes first: it renders on a GPU where there is one and in software where there is none. A context belongs to the
process that made it and does not survive fork.
"""

import atexit
import os
from ctypes.util import find_library
from functools import cache
from importlib import import_module
from typing import Any

from catalog.errors import UserError

# MUJOCO_GL -> the libraries that it needs, and the Debian 12 packages that bring them and a software renderer.
LIBRARIES = {"egl": ("EGL", "OpenGL"), "osmesa": ("OSMesa",)}
PACKAGES = {"egl": "libegl1 libopengl0 libgl1-mesa-dri", "osmesa": "libosmesa6"}


def missing(kind: str) -> list[str]:
    """Libraries of this kind that are not installed."""
    return [f"lib{library}" for library in LIBRARIES[kind] if not find_library(library)]


def install(kind: str) -> str:
    return f"on Debian: apt-get install {PACKAGES[kind]}"


def choose() -> str:
    """Set MUJOCO_GL if it is not: the first of egl and osmesa whose library is there.

    Raises UserError if the library of the one that is set, or any library, is missing.
    """
    kind = os.environ.get("MUJOCO_GL", "").strip().lower()
    if kind == "":
        found = [each for each in LIBRARIES if not missing(each)]
        if not found:
            raise UserError(
                f"rendering needs an OpenGL without a screen; not installed: {', '.join(missing('egl'))} (for EGL), "
                f"{', '.join(missing('osmesa'))} (for OSMesa); {install('egl')}"
            )
        kind = os.environ["MUJOCO_GL"] = found[0]
    elif kind not in LIBRARIES:
        raise UserError(
            f"MUJOCO_GL is {kind}, expected egl or osmesa, which need no screen; unset it, and one of them is chosen"
        )
    elif missing(kind):
        raise UserError(f"MUJOCO_GL is {kind}, but not installed: {', '.join(missing(kind))}; {install(kind)}")
    return kind


def simulator() -> Any:
    """The module mujoco, with its OpenGL chosen. Raises UserError where it or its graphics are not installed."""
    kind = choose()
    try:
        import mujoco
    except Exception as error:  # PyOpenGL fails in many ways: AttributeError, TypeError, ImportError
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "mujoco":
            raise UserError("the simulator is not installed; run pip install 'spatialcache[sim]'") from None
        raise UserError(_broken(kind, error)) from error
    return mujoco


@cache
def make_context() -> Any:
    """This process's OpenGL context, current. Raises UserError if the library cannot make one."""
    kind = choose()
    simulator()
    try:
        # Not mujoco.GLContext: whoever imported mujoco before this file was asked got the one that needs a screen.
        kinds_own = import_module(f"mujoco.{kind}").GLContext
        kinds_own._context = None  # or one that cannot be made complains on stderr when it is deleted
        context = kinds_own(64, 64)  # the size means nothing: MuJoCo has a buffer of its own
        context.make_current()
    except Exception as error:
        raise UserError(_broken(kind, error)) from error
    # Before EGL's own exit handler, or freeing it fails.
    atexit.register(context.free)
    return context


def _broken(kind: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"rendering: MUJOCO_GL={kind} does not work here ({type(error).__name__}: {reason}); expected an OpenGL "
        f"without a screen; {install(kind)}"
    )
