"""The cache of decoded data sets and partitions: made once, then mapped by every process.

Its folder is ``$SIM_CACHE``, by default ``~/.cache/sim``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.errors import DataError

_FORMAT = 1  # part of every key; increase it when the format of the stored files changes


def cache_folder() -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get("SIM_CACHE") or Path.home() / ".cache" / "sim")


def cached(kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """Return the cache folder for ``key``; if it does not exist, ``make(folder)`` writes its files.

    The folder appears by a rename when it is complete. If two processes make it at the same time, the first is kept.

    Raises:
        DataError: the cache cannot be written.
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    folder = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:20]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        target.chmod(0o755)  # other users may share the cache
    except OSError as error:
        raise DataError(
            f"the cache {cache_folder()} cannot be written: {error.strerror}; set SIM_CACHE to a writable folder"
        ) from error
    try:
        make(target)
        (target / "key.json").write_text(text, encoding="utf-8")
        target.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise DataError(f"the cache {folder.parent} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return folder
