"""A teacher's published weights: `.safetensors`, or `.pt` without code; read strictly, and part by part."""

import os
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catalog.cache.commit import publish, temporary
from catalog.errors import UserError
from catalog.identity import file_digest

NAMED = 3  # how many keys an error names of each kind
# How torch.load says that a pickle wants to call something; the rest of what it raises is a damaged file.
REFUSED_CODE = re.compile("unsupported (global|class)|unrecognized function", re.IGNORECASE)


class Checkpoint:
    """Names, shapes and sha256 of a weights file; `read` gives tensors.

    Only the header and what `read` names are loaded. The file must stay as it is while the teacher is used: a head
    may be read from it hours later, and `sha256` must still be true of it.

    Raises UserError if the file is missing, is no checkpoint, or holds anything but floating point tensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: found no such file, expected a teacher's weights (.safetensors or .pt)")
        self._state = self._stat()
        self.sha256 = file_digest(self.path)
        self._safetensors = self.path.suffix == ".safetensors"
        self.shapes = self._safetensors_shapes() if self._safetensors else self._pickle_shapes()

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
        """UserError unless names and shapes are exactly those `expected`; names below `ignored` may be there too."""
        ignored = tuple(ignored)
        missing = [name for name in expected if name not in self.shapes]
        surplus = [name for name in self.shapes if name not in expected and not name.startswith(ignored)]
        wrong = [
            f"{name} is {list(self.shapes[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in self.shapes and self.shapes[name] != tuple(shape)
        ]
        problems = [
            f"{len(found)} {what} ({'; '.join(found[:NAMED])}{'; ...' if len(found) > NAMED else ''})"
            for what, found in (("missing", missing), ("not known", surplus), ("of another shape", wrong))
            if found
        ]
        if problems:
            raise UserError(
                f"{self.path}: found {len(self.shapes)} tensors, expected the teacher's {len(expected)}: "
                f"{', '.join(problems)}; give the file of this teacher, or the config that the file was made with"
            )

    def read(self, names: Collection[str], device: torch.device) -> dict[str, Tensor]:
        """The named tensors, float32 on `device`.

        Copied out of the mapped file: one that is overwritten later would change them under their sha256.
        """
        if self._stat() != self._state:
            raise UserError(f"{self.path}: changed since it was opened; load the teacher again")
        if self._safetensors:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name).to(device, torch.float32, copy=True) for name in names}
        tensors = self._unpickle()
        return {name: tensors[name].to(device, torch.float32, copy=True).contiguous() for name in names}

    def _stat(self) -> tuple[int, int, int]:
        stat = os.stat(self.path)
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _safetensors_shapes(self) -> dict[str, tuple[int, ...]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                for name, tensor in slices.items():
                    self._check_dtype(name, tensor.get_dtype(), tensor.get_dtype() in ("F32", "F16", "BF16", "F64"))
                return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
        except SafetensorError as error:
            raise UserError(f"{self.path}: not a safetensors file ({error})") from error

    def _pickle_shapes(self) -> dict[str, tuple[int, ...]]:
        tensors = self._unpickle()
        if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise UserError(f"{self.path}: found something else than names with tensors; save the state_dict alone")
        for name, tensor in tensors.items():
            self._check_dtype(name, str(tensor.dtype), tensor.is_floating_point())
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def _unpickle(self) -> Mapping[str, Tensor]:
        try:
            # Memory-mapped, so that what is not read costs nothing; only the zip format can be.
            mapped = zipfile.is_zipfile(self.path)
            tensors: Mapping[str, Tensor] = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
            return tensors
        except pickle.UnpicklingError as error:
            if REFUSED_CODE.search(str(error)):
                raise UserError(
                    f"{self.path}: holds pickled code, which is not run; expected tensors alone: save the state_dict, "
                    "or convert the file to safetensors where you trust it"
                ) from error
            raise UserError(f"{self.path}: not a checkpoint of torch.save, nor named .safetensors") from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: not a checkpoint of torch.save, nor named .safetensors") from error

    def _check_dtype(self, name: str, dtype: str, is_float: bool) -> None:
        if not is_float:
            raise UserError(f"{self.path}: {name} is {dtype}, expected floating point weights")


def write_checkpoint(tensors: Mapping[str, Tensor], path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write tensors as safetensors in `dtype`, whole or not at all. Equal tensors give equal bytes."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: expected a name that ends in .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary(path)
    try:
        save_file({name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}, part)
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
