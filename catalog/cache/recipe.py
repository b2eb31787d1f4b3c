"""The recipe: everything that decides the values of a feature, and the three ids that follow from it.

    recipe_id  = sha256(recipe)
    feature_id = sha256(recipe_id, dataset fingerprint)
    cache_id   = sha256(feature_id, storage)

each over canonical JSON. Two caches with one feature_id hold the same features, however they are stored.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from catalog.errors import UserError
from catalog.identity import digest

TOKEN_OUTPUTS = ("tokens", "special")  # one tap a layer
MAP_OUTPUTS = ("depth", "confidence", "points", "points_confidence", "pose")  # one tap
OUTPUTS = TOKEN_OUTPUTS + MAP_OUTPUTS


@dataclass(frozen=True)
class Recipe:
    """How features are made. Layers are absolute numbers; views are full camera keys, view 0 the reference."""

    teacher: dict[str, Any]  # name, config, weights_sha256, trained, layers, channels, special, licence
    layers: tuple[int, ...]  # of the token taps, ascending
    outputs: tuple[str, ...]  # of OUTPUTS, in that order
    views: tuple[str, ...]
    framing: dict[str, dict[str, Any]]  # by view: named steps, sizes, affine from source to teacher pixels
    image_size: tuple[int, int]  # what the teacher sees: height, width in pixels
    native_grid: tuple[int, int]  # the teacher's own token grid: rows, columns
    grid: tuple[int, int]  # the stored token grid, pooled from the native one (bilinear, align_corners)
    absent: str  # what stands for an absent view: "refuse"
    window: tuple[int, ...]  # timesteps that the teacher sees together, relative to the row's own: (0,)
    dtype: str  # the teacher's compute dtype

    @property
    def id(self) -> str:
        return digest(self.to_json())

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of what is stored: `tokens/23`, `special/23`, `depth`, ..."""
        names: list[str] = []
        for output in self.outputs:
            names += [f"{output}/{layer}" for layer in self.layers] if output in TOKEN_OUTPUTS else [output]
        return tuple(names)

    def tap(self, name: str) -> str:
        """The stored tap for a name in which the layer may be negative (`tokens/-1` is the teacher's last)."""
        output, _, layer = name.partition("/")
        if output in TOKEN_OUTPUTS and layer.lstrip("-").isdigit():
            number = int(layer)
            name = f"{output}/{number + int(self.teacher['layers']) if number < 0 else number}"
        if name not in self.taps:
            raise UserError(f"the cache has no tap '{name}'; it has: {', '.join(self.taps)}; extract again with it")
        return name

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "Recipe":
        """Strictly: a missing or unknown key is a UserError that names it."""
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
            raise UserError(
                f"{where}: the recipe lacks {missing} and has the unknown {unknown}; "
                "it was written by another version of this software: update, or extract again"
            )
        tuples = {"layers", "outputs", "views", "image_size", "native_grid", "grid", "window"}
        items: dict[str, Any] = {key: tuple(item) if key in tuples else item for key, item in value.items()}
        return cls(**items)


def feature_id(recipe: Recipe, fingerprint: str) -> str:
    return digest({"recipe_id": recipe.id, "dataset": fingerprint})


def cache_id(recipe: Recipe, fingerprint: str, storage: dict[str, Any]) -> str:
    return digest({"feature_id": feature_id(recipe, fingerprint), "storage": storage})


def differences(found: Any, expected: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, a line each: `framing.x.size: found [1], asked for [2]`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(set(found) | set(expected))
        return [
            line for key in keys for line in differences(found.get(key), expected.get(key), f"{at}.{key}".strip("."))
        ]
    return [] if found == expected else [f"{at}: found {found}, asked for {expected}"]


def parse_grid(text: str, native: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of a stored grid asked for as `16x16` or `native`; never finer than the teacher's own."""
    if text == "native":
        return native
    rows, cross, columns = text.partition("x")
    if not (cross and rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise UserError(f"grid '{text}'; expected ROWSxCOLUMNS such as 16x16, or native")
    if int(rows) > native[0] or int(columns) > native[1]:
        raise UserError(f"grid {text} is finer than the teacher's own, {native[0]}x{native[1]}; use that or native")
    return int(rows), int(columns)
