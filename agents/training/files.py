"""Files and folders that are replaced as a whole: a kill or a power cut leaves the old one or the new.

What lives here: writing to a temporary name, onto the disk, then renaming. What does not: what is written
(``checkpoint.py``, ``run.py``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder that takes the place of ``target``; a kill leaves the old one or the new."""
    make_folder(target.parent)
    recover_folder(target)
    fresh, old = _beside(target, "tmp"), _beside(target, "old")
    fresh.mkdir()
    write(fresh)
    for path in (*fresh.rglob("*"), fresh):  # folders too: a name is on the disk once its folder is
        sync(path)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Clear up after a kill in `replace_folder`: bring back the old folder if the new one had not taken its place."""
    fresh, old = _beside(target, "tmp"), _beside(target, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, content: str | Callable[[Path], None]) -> None:
    """Write a file as a whole or not at all.

    Args:
        target: the file.
        content: its text, or what writes it to the path that it is given, which ends as ``target`` does.
    """
    make_folder(target.parent)
    fresh = target.with_name(f".tmp.{target.name}")
    if callable(content):
        content(fresh)
    else:
        fresh.write_text(content, encoding="utf-8")
    sync(fresh)
    os.replace(fresh, target)
    sync(target.parent)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it, each one's name on the disk; returns the new ones, the outermost first."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)
    return new


def sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's names, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")
