"""Makes caches: the frozen teachers, extraction on Ray, status, preview. Stands on catalog alone."""

import catalog

if getattr(catalog, "DISTRIBUTION", None) != "spatialcache":
    raise ImportError(
        f"found another package named 'catalog' at {getattr(catalog, '__file__', '?')}, expected the one of "
        "spatialcache; uninstall it, or run from a directory that does not hold it"
    )
