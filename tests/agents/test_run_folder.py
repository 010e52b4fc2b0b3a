"""Whose folder it is: a new one, a run's own, or nobody's business."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from textgen_env.agents.ppo import PPOConfig, PPOSettings
from textgen_env.agents.training.checkpoint import CheckpointError
from textgen_env.agents.training.run_folder import RunFolder
from textgen_env.agents.training.run_settings import RunSettings


def settings(folder: Path, **more: Any) -> RunSettings:
    return RunSettings(output=str(folder), **more)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def begun(folder: Path, updates: int = 40, **more: Any) -> None:
    """A run that has been claimed and has saved two checkpoints."""
    run = RunFolder(settings(folder, updates=updates, **more))
    run.claim()
    for update in (2, 4):
        run.save(update, {"update": update})
    run.close()


def test_a_refused_run_leaves_no_trace(tmp_path: Path):
    run = RunFolder(settings(tmp_path / "deep" / "run"))
    assert (tmp_path / "deep" / "run" / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    run.close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    RunFolder(settings(tmp_path / "mine")).close()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["best/weights.bin", "last/notes.txt", "thesis.tex", "settings.json", ".git/config"])
def test_a_folder_with_files_that_is_no_run_is_left_alone(name: str, resume: bool, tmp_path: Path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"theme": "dark"}')
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="holds no run, but files"):
        RunFolder(settings(tmp_path, resume=resume))
    assert tree(tmp_path) == before


def test_a_file_is_no_folder_and_broken_settings_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        RunFolder(settings(tmp_path / "file"))
    begun(tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text('{"env": ')
    with pytest.raises(ValueError, match="settings.json is no JSON"):
        RunFolder(settings(tmp_path / "run", resume=True))


def test_what_a_kill_left_before_the_run_began_is_no_obstacle(tmp_path: Path):
    (tmp_path / "run.lock").write_text("process 1 on elsewhere\n")
    (tmp_path / ".tmp.settings.json").write_text('{"env"')
    RunFolder(settings(tmp_path)).close()


def test_a_run_is_gone_on_with_only_when_asked(tmp_path: Path):
    begun(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a run; add --resume"):
        RunFolder(settings(tmp_path))
    run = RunFolder(settings(tmp_path, resume=True))
    state = run.restore()
    assert state is not None
    assert state["update"] == 4
    run.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ppo": PPOConfig(lr=1e-5)}, r"resume: lr differ from those in .*settings\.json \(lr=1e-05, was 0\.0004\)"),
        ({"ppo": PPOConfig(gamma=0.9, clip=0.1)}, "resume: clip, gamma differ"),
        ({"seed": 2}, r"seed=2, was 1"),
        ({"model": "other", "eval_every": 3}, "resume: eval_every, model differ"),
    ],
)
def test_a_changed_setting_is_named(changed: dict[str, Any], message: str, tmp_path: Path):
    given = PPOSettings(output=str(tmp_path))
    run = RunFolder(given)
    run.claim()
    run.close()
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        RunFolder(replace(given, resume=True, **changed))
    assert tree(tmp_path) == before


def test_a_run_of_the_release_before_goes_on_under_the_names_of_today(tmp_path: Path):
    """As that release wrote settings and checkpoints: `kl_target` for what is `adaptive_kl_target` now."""
    given = PPOSettings(output=str(tmp_path), ppo=PPOConfig(adaptive_kl_target=0.5))
    run = RunFolder(given)
    run.claim()
    run.settings["kl_target"] = run.settings.pop("adaptive_kl_target")
    run.save(2, {"update": 2})
    run.close()
    record = tmp_path / "settings.json"
    record.write_text(record.read_text().replace('"adaptive_kl_target"', '"kl_target"'))
    run = RunFolder(replace(given, resume=True))
    assert run.restore() is not None
    run.close()
    with pytest.raises(ValueError, match=r"adaptive_kl_target=0\.7, was 0\.5"):
        RunFolder(replace(given, resume=True, ppo=PPOConfig(adaptive_kl_target=0.7)))


def test_more_updates_go_on_and_fewer_than_done_are_refused(tmp_path: Path):
    begun(tmp_path, updates=4)
    run = RunFolder(settings(tmp_path, resume=True, updates=9, save_every=1))
    assert run.restore() is not None
    run.claim()
    run.close()
    assert json.loads((tmp_path / "settings.json").read_text())["updates"] == 9
    run = RunFolder(settings(tmp_path, resume=True, updates=3))
    with pytest.raises(ValueError, match="updates=3: the run in .* has done 4 already"):
        run.restore()
    run.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000004"]


def test_checkpoints_of_another_run_and_none_at_all(tmp_path: Path):
    begun(tmp_path / "ours")
    begun(tmp_path / "theirs", seed=2)
    for update in ("00000002", "00000004"):
        (tmp_path / "theirs" / "checkpoints" / update).rename(tmp_path / update)
        for path in (tmp_path / update).iterdir():
            path.replace(tmp_path / "ours" / "checkpoints" / update / path.name)
    run = RunFolder(settings(tmp_path / "ours", resume=True))
    with pytest.raises(CheckpointError, match=r"00000004 belongs to another run \(seed=2 there, 1 here\)"):
        run.restore()
    run.close()
    (tmp_path / "theirs" / "metrics.jsonl").write_text('{"update": 3, "train/score": 0.5}\n')
    run = RunFolder(settings(tmp_path / "theirs", resume=True, seed=2))
    with pytest.raises(CheckpointError, match="is empty, but the run has done 3 updates"):
        run.restore()
    run.close()


def hold(folder: Path, connection: Any) -> None:
    run = RunFolder(settings(folder))
    run.claim()
    connection.send(os.getpid())
    connection.recv()
    os._exit(1)  # like a kill: nothing is given up by hand


def test_one_process_at_a_time(tmp_path: Path):
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", theirs))
    holder.start()
    number = ours.recv()
    for resume in (True, False):
        with pytest.raises((BlockingIOError, FileExistsError), match=f"written by process {number} on|add --resume"):
            RunFolder(settings(tmp_path / "run", resume=resume))
    ours.send("end")
    holder.join()
    RunFolder(settings(tmp_path / "run", resume=True)).close()  # a lock dies with its holder
    assert not (tmp_path / "run" / "run.lock").exists()
    again, second = RunFolder(settings(tmp_path / "run", resume=True)), None
    with pytest.raises(BlockingIOError):
        second = RunFolder(settings(tmp_path / "run", resume=True))
    assert second is None
    again.close()


def test_the_default_folder_is_the_first_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        run = RunFolder(RunSettings(seed=7), prefix="sb3-")
        names.append(str(run.path))
        run.claim()
        run.close()
    assert names == [f"runs/sb3-Sentiment-v0-seed7{end}" for end in ("", "-2", "-3")]
