"""The ground floor: datasets, feature caches and releases. Never torch, never ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catalog.cache.cache import open_cache
    from catalog.datasets import open_dataset

DISTRIBUTION = "spatialcache"

__all__ = ["DISTRIBUTION", "open_cache", "open_dataset"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `catalog.cache.reader` must stay importable with numpy alone.
    if name == "open_cache":
        from catalog.cache.cache import open_cache

        return open_cache
    if name == "open_dataset":
        from catalog.datasets import open_dataset

        return open_dataset
    raise AttributeError(f"module 'catalog' has no attribute '{name}'")
