"""Numbered checkpoints that prove themselves when they are read: SHA-256 of every byte, number and settings.

What lives here: nested states ↔ one folder of JSON and safetensors (never a pickle), and the choice of the newest
checkpoint that can be read. What does not: what belongs into a state (each trainer's ``state_dict``), replacing folders
as a whole (``files.py``).

A checkpoint is a folder named by its update: ``tensors.safetensors``, ``state.json``, ``digest.json``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .files import recover_folder, replace_file, replace_folder
from .former_names import with_todays_names

__all__ = [
    "CheckpointError",
    "latest_checkpoint",
    "prune_checkpoints",
    "read_newest",
    "read_state",
    "recover_folder",
    "replace_file",
    "replace_folder",
    "save_checkpoint",
    "write_state",
]

KEPT = 2  # the newest, and the one before in case that the newest is damaged
_TENSOR = "__tensor__"
_FILES = ("tensors.safetensors", "state.json")


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to another run; the message names the file."""


def save_checkpoint(folder: Path, update: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/<update>`` atomically, then delete all but it and the one before.

    Args:
        folder: where the run keeps its checkpoints.
        update: its number; counts from 0.
        state: nested mappings and lists of tensors, numbers, texts, booleans and None.
    """
    target = folder / f"{update:08d}"
    replace_folder(target, lambda path: _write(path, state, update))
    prune_checkpoints(folder, update)
    return target


def prune_checkpoints(folder: Path, update: int) -> None:
    """Keep the two newest up to ``update``; later ones are such as could not be read when the run went on."""
    keep = [path for path in _numbered(folder) if int(path.name) <= update][-KEPT:]
    for path in _numbered(folder):
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return max(_numbered(folder), default=None)


def read_newest(
    folder: Path, settings: Mapping[str, Any], say: Callable[[str], None] = print
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole and of this run, and its state; None if there is none at all.

    Args:
        folder: where the run keeps its checkpoints.
        settings: what ``state["settings"]`` must be.
        say: told of each checkpoint that was passed over.

    Raises:
        CheckpointError: there are checkpoints, and none can be used; names them all.
    """
    faults = []
    for path in reversed(_numbered(folder)):
        try:
            state = read_state(path)
            _check_settings(path, state, settings)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            say(f"{fault}; going on from {path} instead")
        return path, state
    if faults:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(faults))
    return None


def _check_settings(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    theirs = state.get("settings")
    theirs = with_todays_names(theirs) if isinstance(theirs, Mapping) else {}
    other = sorted(name for name in {*theirs, *settings} if theirs.get(name) != settings.get(name))
    if other:
        pairs = ", ".join(f"{name}={theirs.get(name)!r} there, {settings.get(name)!r} here" for name in other[:3])
        raise CheckpointError(f"{path} belongs to another run ({pairs})")


def _numbered(folder: Path) -> list[Path]:
    """Oldest first."""
    if not folder.is_dir():
        return []
    numbered = (path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(numbered, key=lambda path: int(path.name))


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state into a folder: JSON, its tensors beside it, and a digest of both.

    Raises:
        TypeError: something that is neither JSON nor a tensor.
    """
    _write(path, state, None)


def _write(path: Path, state: Mapping[str, Any], update: int | None) -> None:
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
    record: dict[str, Any] = {"update": update, "sha256": {name: _sha256(path / name) for name in _FILES}}
    record["own"] = _digest_of(record)
    (path / "digest.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote; tuples come back as lists.

    Raises:
        FileNotFoundError: not a checkpoint.
        CheckpointError: a file is missing, or is not what was written; a numbered folder has another's number.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no checkpoint: there is no such folder")
    _verify(path)
    try:
        tensors = load_file(path / "tensors.safetensors")
        state = _restore(json.loads((path / "state.json").read_text(encoding="utf-8")), tensors)
    except (ValueError, KeyError, SafetensorError) as error:  # the digest was made for it, but not by `write_state`
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / 'state.json'} holds a {type(state).__name__}, not a mapping")
    return state


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[str(value[_TENSOR])]
        return {key: _restore(entry, tensors) for key, entry in value.items()}
    return [_restore(entry, tensors) for entry in value] if isinstance(value, list) else value


def _verify(path: Path) -> None:
    """Compare the files of a checkpoint with its digest."""
    try:
        record = json.loads((path / "digest.json").read_text(encoding="utf-8"))
        own, update, digests = record.pop("own"), record["update"], dict(record["sha256"])
    except OSError as error:
        raise CheckpointError(f"{path} is no whole checkpoint: digest.json: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path / 'digest.json'} is damaged: {type(error).__name__}: {error}") from error
    if own != _digest_of(record):
        raise CheckpointError(f"{path / 'digest.json'} is damaged: its own SHA-256 is not {own!r}")
    if update is not None and str(update).zfill(8) != path.name:
        raise CheckpointError(f"{path} was written as checkpoint {update!r}, not {path.name}")
    for name in _FILES:
        try:
            digest = _sha256(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name} cannot be read: {error.strerror}") from error
        if digest != digests.get(name):
            raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the one in digest.json")


def _digest_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
