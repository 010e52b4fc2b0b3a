"""The training benchmark: turns, records and tables. Programs of other libraries are not run here, ours is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.workload import PROMPTS, even_share
from benchmarks.report import keep, learning_table, read, training_table
from benchmarks.training import TrainingSettings, Worker, measure

ROOT = Path(__file__).parents[2]


def record(peer: str, round_: int, speed: float, memory: float, *, warm_up: bool = False) -> dict[str, object]:
    setting = {"dtype": "float32", "epochs": 1, "completions": 64, "new_tokens": 32, "pairing": "ours_ppo : other"}
    measured = {"tokens_per_second": speed, "peak_rss_gb": memory, "warm_up": warm_up}
    return {"benchmark": "training", "peer": peer, "round": round_, **setting, **measured}


def test_the_reward_is_the_share_of_even_ids():
    assert even_share([2, 4, 5, 7]) == 0.5
    assert even_share([]) == 0.0


def test_prompts_differ():
    assert len(set(PROMPTS)) == 64


PEAK = """
from benchmarks.peers.workload import peak_rss_gb
before = peak_rss_gb()
block = bytearray(300_000_000)
block[::4096] = b"x" * len(block[::4096])
print(peak_rss_gb() - before)
"""


def test_peak_memory_is_that_of_this_process():
    """In a process of its own: this one may have held more before."""
    run = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) == pytest.approx(0.3, abs=0.1)


def test_table_has_medians_their_ratio_and_the_range_of_rounds():
    records = [
        record("ours_ppo", -1, 1.0, 9.0, warm_up=True),  # warming up counts for nothing
        record("ours_ppo", 0, 100.0, 2.0),
        record("other", 0, 50.0, 4.0),
        record("ours_ppo", 1, 120.0, 3.0),
        record("other", 1, 30.0, 5.0),
        record("ours_ppo", 2, 110.0, 2.0),
        record("other", 2, 40.0, 4.0),
    ]
    row = training_table(records).splitlines()[-1]
    assert row == "| ours_ppo : other | float32 | 1 | 64 × 32 | 110 | 40 | 2.75 (2.00–4.00) | 3.0 | 5.0 |"


def test_learning_table_has_a_row_a_seed_and_the_means():
    numbers = ("kl_per_token", "kl_per_response", "perplexity_before", "perplexity_after", "minutes")
    rest = dict.fromkeys((*numbers, "distinct_2_before", "distinct_2_after", "score_before"), 1.0)
    records = [
        {"benchmark": "learning", "seed": seed, "score_after": score, **rest} for seed, score in ((1, 2), (2, 3))
    ]
    lines = [line.split(" | ") for line in learning_table(records).splitlines()]
    column = lines[0].index("score after")
    assert [line[column] for line in lines[2:]] == ["2.000", "3.000", "2.500"]


def test_lines_are_printed_kept_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "lines.jsonl"
    assert keep(iter([{"a": 1}, {"a": 2}]), out) == [{"a": 1}, {"a": 2}] == read([out])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"a": 1}, {"a": 2}]


def test_two_programs_take_turns():
    work = {"completions": 4, "new_tokens": 2, "micro_batch": 2, "threads": 1, "rounds": 2, "iterations": 1}
    settings = TrainingSettings({"ours_ppo": Path(sys.executable)}, model="tiny", epochs=[1], dtype=["float32"], **work)
    records = list(measure(settings))
    assert [r["round"] for r in records] == [-1, -1, 0, 0, 1, 1]
    assert [r["iteration"] for r in records] == [0, 0, 1, 1, 2, 2]
    assert all(r["tokens_per_second"] == pytest.approx(8 / r["seconds"]) for r in records)


def test_a_program_that_fails_is_quoted():
    with pytest.raises(RuntimeError, match="no_such_peer"):
        Worker(Path(sys.executable), "no_such_peer", ["--model", "x"])
