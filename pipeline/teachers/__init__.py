"""The frozen teachers. `load_teacher` is the door; `Teacher` says what every one of them offers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from catalog.errors import UserError, nearest
from pipeline.teachers.checkpoint import write_checkpoint
from pipeline.teachers.teacher import OUTPUTS, Teacher, TeacherOutput
from pipeline.teachers.vggt import PRESETS, VGGTTeacher

__all__ = ["OUTPUTS", "TEACHERS", "Teacher", "TeacherOutput", "load_teacher", "save_teacher"]

TEACHERS: dict[str, Callable[..., Teacher]] = dict.fromkeys(PRESETS, VGGTTeacher)


def load_teacher(
    name: str,
    weights: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
) -> Teacher:
    """The teacher `name` of TEACHERS, frozen, on `device`.

    weights: its published checkpoint (.safetensors or .pt), checked strictly; None gives random weights from a seed,
    the same in every process. config: changes to its sizes, by name. dtype: what its trunk computes in ("float32",
    "bfloat16", "float16"); by default bfloat16 on CUDA and float32 elsewhere.

    Raises UserError on an unknown name, key or dtype, and on weights that are not this teacher's.
    """
    if name not in TEACHERS:
        raise UserError(f"unknown teacher '{name}', expected one of: {nearest(name, TEACHERS)}")
    return TEACHERS[name](name, weights, config, device, dtype)


def save_teacher(teacher: Teacher, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write all weights of a teacher, heads included, to a .safetensors file that `load_teacher` reads."""
    write_checkpoint(teacher.state_dict(), path, dtype)
