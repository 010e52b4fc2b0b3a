"""Writing what must survive a kill at any moment, and reading it back.

What lives here: nested states ↔ one folder of JSON and safetensors (never a pickle), numbered checkpoints, and folders
and files that are replaced as a whole. What does not: what belongs into a state (each trainer's ``state_dict``).

Every write goes to a temporary name first, reaches the disk, and is then renamed: a name that exists is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSOR = "__tensor__"


def save_checkpoint(folder: Path, update: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/<update>`` atomically, then delete the older ones.

    Args:
        folder: where the run keeps its checkpoints.
        update: its number; counts from 0.
        state: nested mappings and lists of tensors, numbers, texts, booleans and None.
    """
    target = folder / f"{update:08d}"
    older = _numbered(folder)
    replace_folder(target, lambda path: write_state(path, state))
    for path in older:
        if path != target:
            shutil.rmtree(path)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return max(_numbered(folder), default=None)


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state into a folder: ``state.json``, with its tensors in ``tensors.safetensors``.

    Raises:
        TypeError: something that is neither JSON nor a tensor.
    """
    tensors: dict[str, Tensor] = {}

    def strip(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            return {str(key): strip(entry, f"{name}.{key}") for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(entry, f"{name}.{index}") for index, entry in enumerate(value)]
        return value

    tree = strip(state, "state")
    save_file(tensors or {"empty": torch.zeros(1)}, path / "tensors.safetensors")
    (path / "state.json").write_text(json.dumps(tree), encoding="utf-8")


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote; tuples come back as lists.

    Raises:
        FileNotFoundError: not a checkpoint.
    """
    if not (path / "state.json").is_file():
        raise FileNotFoundError(f"{path} is no checkpoint: it has no state.json")
    tensors = load_file(path / "tensors.safetensors")

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value[_TENSOR]] if _TENSOR in value else {k: restore(v) for k, v in value.items()}
        return [restore(entry) for entry in value] if isinstance(value, list) else value

    state: dict[str, Any] = restore(json.loads((path / "state.json").read_text(encoding="utf-8")))
    return state


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder that takes the place of ``target``; a kill leaves the old one or the new."""
    recover_folder(target)
    fresh, old = _beside(target, "tmp"), _beside(target, "old")
    fresh.mkdir(parents=True)
    write(fresh)
    for file in fresh.rglob("*"):
        _sync(file)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Clear up after a kill in `replace_folder`: bring back the old folder if the new one had not taken its place."""
    fresh, old = _beside(target, "tmp"), _beside(target, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(target, "tmp")
    fresh.write_text(text, encoding="utf-8")
    _sync(fresh)
    os.replace(fresh, target)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
