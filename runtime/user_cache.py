"""Where what is dear to compute is kept between runs."""

import os
from pathlib import Path

VARIABLE = "ESM2_ENGINES_CACHE"


def default_folder() -> Path:
    """``$ESM2_ENGINES_CACHE``, else ``esm2-engines`` in the user's cache folder."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esm2-engines"
    except RuntimeError:  # no home: a folder that cannot be made, like one on a read-only disk
        return Path(os.devnull) / "esm2-engines"
