"""What a run is told: frozen dataclasses, filled from YAML and `--set`, checked once where they enter.

Every key must be known and of its type; the resolved config is saved with the run.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from catalog.errors import UserError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    dataset: str = ""  # folder of the dataset
    cache: str | None = None  # its feature cache; what alignment.mode cached reads
    episodes: str | None = None  # numbers and ranges as in "0:12,15", to hold some back; none: all
    views: tuple[str, ...] = ()  # cameras that the student sees, in this order; none named: all of the dataset


@dataclass(frozen=True)
class ModelConfig:
    """The student: a pretrained folder, or a small random one of these sizes (for tests and demonstrations)."""

    family: Literal["paligemma"] = "paligemma"  # names the adapter
    path: str | None = None  # folder of pretrained weights; then it decides all the sizes below but the chunk
    image_size: int = 64  # pixels a side of what the student sees
    patch_size: int = 8  # pixels a side of an image token
    vision_width: int = 64  # of the vision tower
    vision_layers: int = 2
    width: int = 128  # of the language model
    layers: int = 4
    heads: int = 4  # of both
    chunk: int = 8  # actions predicted at once
    gradient_checkpointing: bool = False  # recompute activations: less memory, about a third more time


@dataclass(frozen=True)
class AlignmentConfig:
    """The alignment loss. `none` builds neither projector nor teacher."""

    mode: Literal["none", "cached", "online"] = "none"  # targets from data.cache, or from the teacher in the loop
    layer: int = 2  # hidden_states[layer] of the student is aligned; published: 24 of 32, 12 of 18
    coefficient: float = 0.5  # total loss = action loss + coefficient * alignment loss
    norm: Literal["layer", "batch", "none"] = "layer"  # in front of the projector: code trees and paper differ
    positions: bool = True  # add the position part to the targets, as published
    teacher_layer: int = -1  # which of the teacher's layers; published: the last
    teacher: str = "vggt"  # online only, as all below: the recipe of a cache decides them
    weights: str | None = None  # file of the teacher's weights
    teacher_config: str | None = None  # JSON file of the teacher's sizes
    grid: str = "native"  # "16x16": pool the features as a cache of that grid would, to compare the two modes
    framing: str = "crop"  # how a source image becomes the teacher's


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up, then a cosine to a tenth of the rate."""

    lr: float = 5e-4  # the highest rate
    warmup: int = 10  # steps
    weight_decay: float = 0.01  # of matrices; biases, norms and embeddings are not decayed
    clip: float = 1.0  # highest gradient norm, student and projector together


@dataclass(frozen=True)
class RunConfig:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 8  # samples a step
    steps: int = 100  # the cosine ends here, so a resumed run may not change it
    seed: int = 0  # decides the weights and, alone, the order of the samples
    workers: int = 0  # processes that load data; the losses do not depend on it
    checkpoint_every: int = 1000  # steps; the last step always has one
    keep: int = 2  # checkpoints that stay on disk
    log_every: int = 1  # steps between two lines of metrics
    out: str = ""  # folder of the run
    device: str = "cpu"  # or cuda, cuda:1
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast, on a GPU; weights stay float32


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and 1:4 is not (YAML 1.1 reads a string and the sexagesimal 64)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError if there is no such file or it holds none."""
    try:
        value = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a YAML file or the name of a preset") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys such as data, model, steps")
    return value


def with_settings(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """`values` with `key.sub=value` settings put in, in order; the values are YAML."""
    out = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value, as in optimiser.lr=1e-4")
        *sections, key = name.strip().split(".")
        place = out
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {setting}: '{section}' has no keys below it")
        try:
            place[key] = yaml.load(text, _Loader)
        except yaml.YAMLError:
            place[key] = text
    return out


def build(values: Mapping[str, Any]) -> RunConfig:
    """The checked config of nested plain values. Raises UserError naming the key, and the nearest known one."""
    config = _build(RunConfig, values, "")
    _check(config)
    return config


def to_values(config: RunConfig) -> dict[str, Any]:
    """The nested plain values of a config: `build(to_values(config)) == config`."""
    return _plain(asdict(config))


def to_yaml(config: RunConfig) -> str:
    return yaml.safe_dump(to_values(config), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(kind: type[T], values: Mapping[str, Any], at: str) -> T:
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UserError(f"unknown key '{at}{key}'; known here: {nearest(str(key), hints)}")
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _value(hints[name], values[name], at + name) for name in names if name in values})


def _value(hint: Any, value: Any, at: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{at} is {value!r}; expected keys below it: {', '.join(get_type_hints(hint))}")
        return _build(hint, value, at + ".")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{at} is {value!r}; expected one of: {nearest(str(value), get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise UserError(f"{at} is {value!r}; expected a list of names")
        return tuple(items)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    if float in kinds and type(value) is int:
        return float(value)
    if str in kinds and type(value) in (int, float):
        return str(value)
    if type(value) not in kinds:
        expected = " or ".join("nothing" if kind is NoneType else kind.__name__ for kind in kinds)
        raise UserError(f"{at} is {value!r}; expected {expected}")
    return value


def _check(config: RunConfig) -> None:
    """What no single key can know."""
    for name in ("batch_size", "steps", "checkpoint_every", "keep", "log_every"):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least 1")
    for name in ("seed", "workers"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} is {getattr(config, name)}; expected at least 0")
    if not config.data.dataset:
        raise UserError("data.dataset is not set; give the folder of a dataset")
    if not config.out:
        raise UserError("out is not set; give a folder for the run")
    if config.optimiser.lr <= 0 or config.optimiser.clip <= 0:
        raise UserError(f"optimiser.lr is {config.optimiser.lr}, clip is {config.optimiser.clip}; both must be above 0")
    if config.alignment.mode == "cached" and not config.data.cache:
        raise UserError("alignment.mode is cached, but data.cache is not set; give a cache made by `pipeline extract`")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device is '{config.device}'; expected cpu, cuda or cuda:N")
    if config.precision == "bfloat16" and not config.device.startswith("cuda"):
        raise UserError(
            f"precision bfloat16 needs a GPU, device is {config.device}; set precision=float32 or device=cuda"
        )
    model = config.model
    if model.image_size % model.patch_size or model.width % model.heads or model.vision_width % model.heads:
        raise UserError(
            f"model sizes do not divide: image_size {model.image_size} / patch_size {model.patch_size}, "
            f"width {model.width} and vision_width {model.vision_width} / heads {model.heads}"
        )
    if model.chunk < 1:
        raise UserError(f"model.chunk is {model.chunk}; expected at least 1")
