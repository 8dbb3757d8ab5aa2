"""The folder of scanned manifests, and of downloads where the library that downloads has none."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """The cache folder: `$S3PRL_MTL_CACHE`, or `~/.cache/s3prl_mtl`."""
    folder = os.environ.get("S3PRL_MTL_CACHE") or "~/.cache/s3prl_mtl"
    return Path(os.path.abspath(os.path.expanduser(folder)))
