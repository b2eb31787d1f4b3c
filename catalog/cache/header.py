"""The header of a cache: what its root zarr.json says in attributes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.cache.layout import FORMAT_VERSION, Storage
from catalog.cache.recipe import Recipe, cache_id, feature_id
from catalog.cache.seal import MANIFEST
from catalog.errors import UserError

KEYS = {"format_version", "recipe", "recipe_id", "feature_id", "cache_id", "storage", "dataset", "shards", "fidelity"}


@dataclass(frozen=True)
class Header:
    recipe: Recipe
    storage: Storage
    fingerprint: str  # of the dataset's episodes that are in the cache, under the recipe's views
    episodes: int
    frames: int  # rows that are filled
    shards: int
    fidelity: dict[str, Any] | None = None  # measured, for forms that lose something

    @property
    def feature_id(self) -> str:
        return feature_id(self.recipe, self.fingerprint)

    @property
    def cache_id(self) -> str:
        return cache_id(self.recipe, self.fingerprint, self.storage.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe.to_json(),
            "recipe_id": self.recipe.id,
            "feature_id": self.feature_id,
            "cache_id": self.cache_id,
            "storage": self.storage.to_json(),
            "dataset": {"fingerprint": self.fingerprint, "episodes": self.episodes, "frames": self.frames},
            "shards": self.shards,
            "fidelity": self.fidelity,
        }


def read_header(root: Path) -> Header:
    """The header of a cache, sealed or not. UserError for a folder that is not a cache, a format that is not
    understood, and ids that do not follow from what they name."""
    try:
        value = json.loads((root / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{root}: not a feature cache (no readable zarr.json); make one with `pipeline extract`"
        ) from None
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{root}: cache format {version}, this version reads format {FORMAT_VERSION}; update, or extract again"
        )
    if set(value) != KEYS:
        raise UserError(f"{root}: attributes {sorted(set(value) ^ KEYS)} are missing or unknown; the cache is damaged")
    header = Header(
        recipe=Recipe.from_json(value["recipe"], str(root)),
        storage=_storage(value["storage"], root),
        fingerprint=value["dataset"]["fingerprint"],
        episodes=value["dataset"]["episodes"],
        frames=value["dataset"]["frames"],
        shards=value["shards"],
        fidelity=value["fidelity"],
    )
    if header.to_json() != value:
        raise UserError(f"{root}: the ids in zarr.json do not follow from its recipe; it was edited: extract again")
    return header


def _storage(value: dict[str, Any], root: Path) -> Storage:
    try:
        storage = Storage(**value)
    except TypeError as error:
        raise UserError(f"{root}: storage {value} is not understood ({error})") from None
    if storage.form != "float16":
        raise UserError(f"{root}: storage form '{storage.form}'; this version reads: float16")
    return storage


def is_sealed(root: Path) -> bool:
    return (root / MANIFEST).is_file()
