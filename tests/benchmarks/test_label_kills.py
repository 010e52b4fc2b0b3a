"""A few kills of page and trainer under load; ``python -m benchmarks.label_kills`` does fifty."""

from __future__ import annotations

from pathlib import Path

from benchmarks.label_kills import Load, Settings, check, is_right, kill
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.store import PreferenceStore


def test_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path: Path):
    (record,) = kill(Settings(kills=5, raters=2, longest=1.0), tmp_path)
    assert record["kills"] == 5
    assert record["acknowledged"] > 2
    assert is_right(record), record


def test_a_loss_would_be_found(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db")
    store.add([Pair("p", "x", "y"), Pair("q", "x", "y")])
    store.choose(1, "ann", "a")
    load = Load("", acknowledged={("ann", 1), ("bob", 2), ("eve", 2)}, undone={("eve", 2)})
    record = check(store.path, load)
    assert record["lost"] == [("bob", 2)]
    assert not is_right(record)
    store.choose(1, "bob", "b")  # a second rater, who was not asked for
    assert check(store.path, load)["pairs_with_two_raters"] == 1
