"""Random play and killed runs in short: that they pass, and that a fault would show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz import Settings, Violation, fuzz
from textgen_env.episode import Episodes
from textgen_env.reward import Reward

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_random_play_keeps_to_the_plain_model():
    records = list(fuzz(Settings(steps=3_000, per_env=300, seed=7, plain_forwards=0.02)))
    assert sum(record["steps"] for record in records) >= 3_000
    assert {name for record in records for name in record["ends"]} == {"eos", "stop", "length"}
    assert {record["arguments"]["autoreset_mode"] for record in records} == {"SameStep", "NextStep", "Disabled"}


def scale_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(self: Reward, *args: Any, plain: Any = Reward.parts) -> Any:
        return {name: 1.001 * values for name, values in plain(self, *args).items()}

    monkeypatch.setattr(Reward, "parts", parts)


def forget_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def append(self: Episodes, slots: Any, tokens: Any, *, by_agent: bool, plain: Any = Episodes.append) -> None:
        plain(self, slots, tokens, by_agent=by_agent)
        self.response_mask[slots, self.lengths[slots] - 1] = np.arange(len(slots)) % 2 == 0

    monkeypatch.setattr(Episodes, "append", append)


@pytest.mark.parametrize("fault", [scale_rewards, forget_the_mask])
def test_a_fault_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises(Violation, match="arguments:"):
        list(fuzz(Settings(steps=3_000, per_env=300, seed=7)))


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits():
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "10", "--updates", "6"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs that ended with other bits: 0" in done.stdout
