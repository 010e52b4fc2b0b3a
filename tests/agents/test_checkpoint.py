"""States survive the way to disk unchanged, and a kill leaves the old files or the new ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textgen_env.agents.training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    read_newest,
    read_state,
    recover_folder,
    replace_file,
    replace_folder,
    save_checkpoint,
    write_state,
)


def test_a_nested_state_comes_back_the_same(tmp_path: Path):
    weights = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    state = {
        "weights": {"0": weights, "transposed": weights.T},
        "numpy": np.random.default_rng(3).bit_generator.state,  # integers of 128 bits
        "torch": torch.Generator().manual_seed(5).get_state(),
        "list": [1, None, True, 0.1, {"deep": torch.tensor(2.5)}],
        "infinite": float("-inf"),
    }
    write_state(tmp_path, state)
    back = read_state(tmp_path)
    assert torch.equal(back["weights"]["transposed"], weights.T)
    assert back["weights"]["0"].dtype == torch.bfloat16
    assert back["numpy"] == state["numpy"]
    assert torch.equal(back["torch"], state["torch"])
    assert back["list"][:4] == [1, None, True, 0.1]
    assert back["list"][4]["deep"].item() == 2.5
    assert back["infinite"] == float("-inf")
    assert {path.name for path in tmp_path.iterdir()} == {"tensors.safetensors", "state.json", "digest.json"}


def test_what_is_neither_json_nor_tensor_is_refused(tmp_path: Path):
    with pytest.raises(TypeError):
        write_state(tmp_path, {"f": object()})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_state(tmp_path / "nowhere")


def test_the_two_newest_checkpoints_stay_and_half_ones_do_not_count(tmp_path: Path):
    assert latest_checkpoint(tmp_path / "none") is None
    for update in (1, 2, 10):
        save_checkpoint(tmp_path, update, {"update": update})
    (tmp_path / ".00000011.tmp").mkdir()  # a kill while the next one was being written
    (tmp_path / "00000012").write_text("a file")
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert read_state(latest) == {"update": 10}
    assert sorted(path.name for path in tmp_path.glob("0*/")) == ["00000002", "00000010"]
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 13, {"bad": object()})
    assert latest_checkpoint(tmp_path) == latest
    assert read_state(latest) == {"update": 10}


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path):
    target = tmp_path / "best"
    replace_folder(target, lambda path: replace_file(path / "a", "old"))

    def fail(path: Path) -> None:
        (path / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fail)
    assert (target / "a").read_text() == "old"
    replace_folder(target, lambda path: replace_file(path / "a", "new"))
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_the_two_renames_is_repaired(tmp_path: Path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.tmp").mkdir()
    recover_folder(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


STATE = {"updates": 4, "weights": torch.arange(8.0), "settings": {"seed": 1}}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "digest.json"])
def test_any_byte_that_changes_is_noticed(name: str, tmp_path: Path):
    path = save_checkpoint(tmp_path, 4, STATE)
    whole = (path / name).read_bytes()
    for at in range(0, len(whole), 7):
        flip(path / name, at)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            read_state(path)
        (path / name).write_bytes(whole)
    (path / name).write_bytes(whole[:-1])  # cut short
    with pytest.raises(CheckpointError, match=re.escape(str(path / name))):
        read_state(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_state(path)
    (path / name).write_bytes(whole)
    assert torch.equal(read_state(path)["weights"], torch.arange(8.0))


def test_the_digest_is_sha256_of_each_file_and_of_itself(tmp_path: Path):
    path = save_checkpoint(tmp_path, 4, STATE)
    record = json.loads((path / "digest.json").read_text())
    for name in ("tensors.safetensors", "state.json"):
        assert record["sha256"][name] == hashlib.sha256((path / name).read_bytes()).hexdigest()
    (path / "digest.json").write_text(json.dumps({**record, "update": 5}))
    path.rename(tmp_path / "00000005")  # an update count that was edited everywhere it stands
    with pytest.raises(CheckpointError, match="digest.json is damaged"):
        read_state(tmp_path / "00000005")


def test_a_checkpoint_under_another_number_is_refused(tmp_path: Path):
    save_checkpoint(tmp_path, 4, STATE).rename(tmp_path / "00000009")
    with pytest.raises(CheckpointError, match="was written as checkpoint 4, not 00000009"):
        read_state(tmp_path / "00000009")


def test_the_newest_that_can_be_read_is_used(tmp_path: Path):
    said: list[str] = []
    assert read_newest(tmp_path, {"seed": 1}, said.append) is None
    save_checkpoint(tmp_path, 4, STATE)
    newest = save_checkpoint(tmp_path, 6, {**STATE, "updates": 6})
    path, state = read_newest(tmp_path, {"seed": 1}, said.append) or (None, {})
    assert (path, state["updates"], said) == (newest, 6, [])
    flip(newest / "tensors.safetensors", -1)
    path, state = read_newest(tmp_path, {"seed": 1}, said.append) or (None, {})
    assert (path, state["updates"]) == (tmp_path / "00000004", 4)
    assert said == [
        f"{newest / 'tensors.safetensors'} is damaged: its SHA-256 is not the one in digest.json; "
        f"going on from {tmp_path / '00000004'} instead"
    ]
    (tmp_path / "00000004" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"00000006/tensors\.safetensors.*00000004/state\.json"):
        read_newest(tmp_path, {"seed": 1})


def test_a_checkpoint_of_other_settings_is_passed_over(tmp_path: Path):
    save_checkpoint(tmp_path, 4, STATE)
    save_checkpoint(tmp_path, 6, {"updates": 6, "settings": {"seed": 2}})  # copied here from another run
    said: list[str] = []
    path, _ = read_newest(tmp_path, {"seed": 1}, said.append) or (None, {})
    assert path == tmp_path / "00000004"
    assert "belongs to another run (seed=2 there, 1 here)" in said[0]


def test_tensors_that_are_no_safetensors_are_named_even_with_a_right_digest(tmp_path: Path):
    path = save_checkpoint(tmp_path, 4, STATE)
    (path / "tensors.safetensors").write_bytes(b"nonsense")
    record = json.loads((path / "digest.json").read_text())
    record["sha256"]["tensors.safetensors"] = hashlib.sha256(b"nonsense").hexdigest()
    del record["own"]
    record["own"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (path / "digest.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)


def test_names_are_on_the_disk_before_the_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The order of system calls: content, names in the new folder, then the rename, then the name of the folder."""
    calls: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_sync, real_rename = os.open, os.fsync, Path.rename

    def note_open(path: Any, *rest: Any, **more: Any) -> int:
        handle = real_open(path, *rest, **more)
        opened[handle] = str(Path(path).relative_to(tmp_path.parent))
        return handle

    def note_rename(path: Path, to: Path) -> Path:
        calls.append(f"{path.name} -> {to.name}")
        return real_rename(path, to)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(opened[handle]), real_sync(handle))[1])
    monkeypatch.setattr(Path, "rename", note_rename)
    save_checkpoint(tmp_path / "checkpoints", 4, STATE)
    base = f"{tmp_path.name}/checkpoints"
    at = calls.index(".00000004.tmp -> 00000004")
    fresh = f"{base}/.00000004.tmp"
    assert {f"{fresh}/{name}" for name in ("tensors.safetensors", "state.json", "digest.json")} | {fresh} <= {
        *calls[:at]
    }
    assert tmp_path.name in calls[:at]  # where "checkpoints" is a new name
    assert base in calls[at:]
