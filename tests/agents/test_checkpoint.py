"""States survive the way to disk unchanged, and a kill leaves the old files or the new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from textgen_env.agents.checkpoint import (
    latest_checkpoint,
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
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_what_is_neither_json_nor_tensor_is_refused(tmp_path: Path):
    with pytest.raises(TypeError):
        write_state(tmp_path, {"f": object()})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_state(tmp_path / "nowhere")


def test_only_the_newest_checkpoint_stays_and_half_ones_do_not_count(tmp_path: Path):
    assert latest_checkpoint(tmp_path / "none") is None
    for update in (1, 2, 10):
        save_checkpoint(tmp_path, update, {"update": update})
    (tmp_path / ".00000011.tmp").mkdir()  # a kill while the next one was being written
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert read_state(latest) == {"update": 10}
    assert [path.name for path in tmp_path.glob("0*")] == ["00000010"]
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 12, {"bad": object()})
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
