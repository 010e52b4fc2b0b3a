"""Judging runs on tasks that answer back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="the index is the extra 'tools'")

from benchmarks import dialogues
from benchmarks.dialogues import DialoguesSettings, called, measure
from textgen_env.assets import model_path


def test_called_is_what_the_environment_said() -> None:
    turns = [
        [{"role": "assistant", "content": "5"}, {"role": "environment", "content": "4"}],
        [{"role": "environment", "content": "4"}, {"role": "environment", "content": "5"}],
        [],
    ]
    assert called(["", "", ""], turns=turns, reply=["5", "5", "5"]) == [0, 1, 0]


def test_a_run_is_judged_by_the_tasks_own_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was paid; here both policies are the same, so that they meet the same luck."""
    monkeypatch.setattr(dialogues, "SAMPLES", 2)
    settings = {"env": "textgen/Lookup-v0", "model": "tiny", "seed": 1, "scorer": "benchmarks.controls:constant"}
    settings |= {
        "prompts": None,
        "max_new_tokens": None,
        "max_prompt_tokens": None,
        "temperature": 1.0,
        "eval_prompts": 16,
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "last").symlink_to(model_path("tiny"), target_is_directory=True)
    (record,) = measure(DialoguesSettings([tmp_path]))
    for judge in ("score", "called"):
        assert 0 < record[f"{judge}_before"] == record[f"{judge}_after"] < 1
        assert record[f"{judge}_before"] * 32 == round(record[f"{judge}_before"] * 32)
    assert record["score_before"] <= record["called_before"]  # nobody guesses a town
    assert record["scorer"] == "benchmarks.controls:constant"
