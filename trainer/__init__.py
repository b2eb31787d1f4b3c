"""Uses caches: trains vision-language-action models with the alignment loss. Never ray."""

import catalog

if getattr(catalog, "DISTRIBUTION", None) != "spatialcache":
    raise ImportError(
        f"found another package named 'catalog' at {getattr(catalog, '__file__', '?')}, expected the one of "
        "spatialcache; uninstall it, or run from a directory that does not hold it"
    )
