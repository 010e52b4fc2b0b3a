"""The store of preferences: who gets which pair, and that nothing acknowledged is lost, however a process ends."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textgen_env.agents.preferences.pairs import Pair, read_pairs, write_pairs
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.preferences.store_records import Opinion, left_side

PAIRS = [Pair(f"p{i}", "x", "y", columns={"row": i}) for i in range(4)]
NOON = 1769860800.0  # 2026-01-31T12:00:00Z


class Clock:
    """A time that stands still until it is moved."""

    now = NOON

    def __call__(self) -> float:
        return self.now


def test_what_is_said_comes_back_with_name_and_time(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db", clock=Clock())
    assert store.add(PAIRS) == [1, 2, 3, 4]
    task = store.next_task("ann")
    assert task is not None
    assert (task.number, task.pair) == (1, PAIRS[0])
    store.choose(1, "ann", "tie", seconds=2.5)
    store.choose(3, "bob", "b")
    said = {"when": "2026-01-31T12:00:00Z"}
    first = replace(PAIRS[0], choice="tie", who="ann", seconds=2.5, **said)
    third = replace(PAIRS[2], choice="b", who="bob", **said)
    again = PreferenceStore(tmp_path / "store.db")
    assert again.pairs() == [first, PAIRS[1], third, PAIRS[3]]
    assert again.counts() == {"ann": 1, "bob": 1}
    store.choose(1, "ann", "a")  # thought better of it
    assert [p.choice for p in again.pairs()] == ["a", None, "b", None]


def test_no_two_raters_get_the_same_pair_at_once(tmp_path: Path):
    clock = Clock()
    store = PreferenceStore(tmp_path / "store.db", lease_seconds=60, clock=clock)
    store.add(PAIRS)

    def number(who: str) -> int | None:
        task = store.next_task(who)
        return task and task.number

    assert [number(who) for who in ("ann", "bob", "ann", "eve", "bob")] == [1, 2, 1, 3, 2]  # each keeps theirs
    clock.now += 30
    store.choose(2, "bob", "a")
    assert number("bob") == 4
    assert number("dan") is None
    clock.now += 31  # ann and eve took too long
    assert number("dan") == 1
    store.choose(1, "ann", "b")  # late, and counts
    assert number("dan") == 3  # of the first, enough has been heard
    store.choose(3, "dan", "b")
    assert [number(who) for who in ("ann", "dan", "bob", "eve")] == [None, None, 4, None]


def test_overlap_asks_several_raters_but_none_twice(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db", overlap=2, clock=Clock())
    store.add(PAIRS[:1])
    assert [store.next_task(who) is not None for who in ("ann", "bob", "eve")] == [True, True, False]
    store.choose(1, "ann", "a")
    store.choose(1, "bob", "cannot tell")
    assert [store.next_task(who) for who in ("ann", "bob", "eve")] == [None] * 3
    assert [(p.who, p.choice) for p in store.pairs()] == [("ann", "a"), ("bob", "cannot tell")]


hostile = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(hostile, hostile, hostile, hostile), min_size=1, max_size=3))
def test_any_text_comes_back_and_files_go_round(tmp_path: Path, texts: list[tuple[str, str, str, str]]):
    """Out to a file and into another store, twice: the same choices of the same pairs, once."""
    wanted = []
    for number, (prompt, a, b, who) in enumerate(texts):
        pair = Pair(f"{number}.{prompt}", f"a{a}", f"b{b}", columns={"note": who})
        wanted += [replace(pair, choice="a", who=f"1{who}"), replace(pair, choice="tie", who=f"2{who}", seconds=1.0)]
    for name in ("one.db", "two.db"):
        (tmp_path / name).unlink(missing_ok=True)
    one, two = (PreferenceStore(tmp_path / name) for name in ("one.db", "two.db"))
    one.add(wanted)
    write_pairs(tmp_path / "out.jsonl", one.pairs())
    assert read_pairs(tmp_path / "out.jsonl") == wanted
    for _ in range(2):
        two.add(read_pairs(tmp_path / "out.jsonl"))
    assert two.pairs() == wanted


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((9, "ann", "a"), "number=9: there is no such pair"),
        ((1, "ann", "left"), "choice='left' must be one of a, b, tie, cannot tell"),
        ((1, " ", "a"), "who=' ' must name a rater"),
        ((1, None, "a"), "who=None must name a rater"),
    ],
)
def test_a_wrong_choice_is_refused_and_nothing_written(tmp_path: Path, said: tuple[Any, ...], message: str):
    store = PreferenceStore(tmp_path / "store.db")
    store.add(PAIRS)
    with pytest.raises(ValueError, match=message):
        store.choose(*said)
    with pytest.raises(ValueError, match="seconds=-1 must be a finite number"):
        store.choose(1, "ann", "a", seconds=-1)
    assert store.pairs() == PAIRS


def test_pairs_are_added_all_or_none(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db")
    with pytest.raises(ValueError, match=r"pairs\[1\] has the choice 'a'; who made it must be named"):
        store.add([PAIRS[0], replace(PAIRS[1], choice="a")])
    assert store.pairs() == []


def test_other_files_are_refused_and_left_alone(tmp_path: Path):
    text, other, newer = (tmp_path / name for name in ("text.db", "other.db", "newer.db"))
    text.write_text("no database, but long enough to be read as one\n" * 50)
    for path, statement in ((other, "CREATE TABLE mine (x)"), (newer, "PRAGMA user_version = 7")):
        database = sqlite3.connect(path)
        database.execute(statement)
        database.close()
    before = text.read_bytes()
    for path, message in ((text, "is no store of preferences"), (other, "'mine'"), (newer, "holds version 7")):
        with pytest.raises(ValueError, match=message):
            PreferenceStore(path)
    assert text.read_bytes() == before
    for wrong in ({"overlap": 0}, {"lease_seconds": 0}):
        with pytest.raises(ValueError, match="must be at least 1, and lease_seconds"):
            PreferenceStore(tmp_path / "new.db", **wrong)


RATER = """
import sys
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.preferences.store_records import Opinion, left_side
path, who = sys.argv[1:]
store = PreferenceStore(path)
print("ready", flush=True)
while (task := store.next_task(who)) is not None:
    store.choose(task.number, who, "a" if task.number % 2 else "b", seconds=1.0)
    print(task.number, flush=True)
"""


def rater(path: Path, who: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RATER, str(path), who], stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path: Path):
    """Three raters at once, killed again and again; then they finish."""
    path, luck = tmp_path / "store.db", random.Random(0)
    PreferenceStore(path).add([Pair(f"p{i}", "x", "y") for i in range(3000)])
    acknowledged: set[tuple[str, int]] = set()
    kills = 0
    for _ in range(3):
        processes = {who: rater(path, who) for who in ("ann", "bob", "eve")}
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for who, process in processes.items():
            time.sleep(luck.uniform(0.02, 0.3))
            process.send_signal(signal.SIGKILL)
            said = process.communicate()[0]
            kills += process.returncode == -signal.SIGKILL
            whole = said[: said.rfind("\n") + 1].split()  # the last line may be cut
            acknowledged |= {(who, int(number)) for number in whole}
    rows = PreferenceStore(path).pairs()
    found = {(p.who, number) for number, p in enumerate(rows, 1) if p.choice is not None}
    assert kills == 9
    assert len(acknowledged) > 20
    assert acknowledged <= found
    assert len(found - acknowledged) <= kills  # written, and killed before it could be said
    assert len(rows) == 3000  # no pair has two choices
    assert all(p.choice in (None, "a" if number % 2 else "b") for number, p in enumerate(rows, 1))
    store = PreferenceStore(path)
    for who in ("ann", "bob", "eve"):  # each comes back to what they held
        task = store.next_task(who)
        assert task is not None
        store.choose(task.number, who, "tie")
    assert len(store.pairs()) == 3000


def test_a_new_store_is_made_once_however_many_begin_it(tmp_path: Path):
    path = tmp_path / "store.db"
    processes = [rater(path, f"r{i}") for i in range(4)]
    for process in processes:
        assert process.communicate()[0] == "ready\n"
        assert process.returncode == 0
    assert PreferenceStore(path).pairs() == []


# --- what people do on a page -----------------------------------------------------------------------------------------


def test_undo_asks_again_and_keeps_the_history(tmp_path: Path):
    clock = Clock()
    store = PreferenceStore(tmp_path / "store.db", clock=clock)
    store.add(PAIRS)
    for choice in ("a", "tie"):
        task = store.next_task("ann")
        assert task is not None
        store.choose(task.number, "ann", choice)
        clock.now += 1
    assert store.undo("ann", 1) is None  # the last choice was of another pair: a request that came twice
    assert store.undo("ann", 2) == 2
    assert store.undo("ann", 2) is None
    assert store.counts() == {"ann": 1}
    held, other = store.next_task("ann"), store.next_task("bob")
    assert held is not None
    assert other is not None
    assert (held.number, other.number) == (2, 3)  # nobody else gets what was taken back
    clock.now += 1
    store.choose(2, "ann", "b")
    history = [(s.number, s.pair.choice, s.withdrawn) for s in store.said(who="ann", withdrawn=True)]
    assert history == [(1, "a", None), (2, "tie", "2026-01-31T12:00:02Z"), (2, "b", None)]
    assert [p.choice for p in store.pairs()] == ["a", "b", None, None]
    assert [store.undo("ann") for _ in range(3)] == [2, 1, None]


def test_the_same_choice_twice_is_one_and_another_is_added(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db", clock=Clock())
    store.add(PAIRS)
    for choice in ("a", "a", "b", "b"):
        store.choose(1, "ann", choice)
    assert [(s.pair.choice, s.withdrawn is None) for s in store.said(withdrawn=True)] == [("a", False), ("b", True)]


def test_a_skipped_pair_goes_to_others_and_comes_back_last(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db", clock=Clock())
    store.add(PAIRS[:3])

    def number(who: str) -> int | None:
        task = store.next_task(who)
        return task and task.number

    assert number("ann") == 1
    store.skip(1, "ann")
    assert number("ann") == 2
    assert number("bob") == 1  # at once
    assert store.undo("ann") == 1
    assert (number("ann"), number("bob")) == (2, 1)  # bob has it by now
    assert store.task_again(1, "ann") is None
    store.choose(1, "bob", "a")
    for skipped in (2, 3, 2, 3, 2):  # round and round
        assert number("ann") == skipped
        store.skip(skipped, "ann")
    assert number("ann") == 3
    assert store.counts() == {"bob": 1}
    assert [p.choice for p in store.pairs()] == ["a", None, None]  # a skip is no label


def test_what_belongs_to_a_choice_stays_with_it(tmp_path: Path):
    """Strength, comment and the side: per rater, not per pair; and out to a file and back."""
    store = PreferenceStore(tmp_path / "store.db", overlap=2, clock=Clock())
    store.add(PAIRS[:1])
    store.choose(1, "ann", "a", strength=4, comment="warmer", left="b")
    store.choose(1, "bob", "tie", strength=4, left="a")
    rows = store.pairs()
    assert [dict(p.columns) for p in rows] == [
        {"row": 0, "strength": 4.0, "comment": "warmer", "left": "b"},
        {"row": 0, "left": "a"},  # a tie has no strength
    ]
    assert [p.strength for p in rows] == [4, 0]
    other = PreferenceStore(tmp_path / "other.db")
    assert other.add(rows) == [1, 1]
    assert other.pairs() == rows
    with pytest.raises(ValueError, match="strength=-1"):
        store.choose(1, "ann", "a", strength=-1)


def test_seconds_run_from_when_a_pair_was_given(tmp_path: Path):
    clock = Clock()
    store = PreferenceStore(tmp_path / "store.db", lease_seconds=60, clock=clock)
    store.add(PAIRS)
    store.next_task("ann")
    clock.now += 20
    task = store.next_task("ann")  # a reload
    assert task is not None
    assert task.elapsed == 20
    clock.now += 5
    store.choose(task.number, "ann", "a")
    assert store.pairs()[0].seconds == 25
    store.next_task("ann")
    clock.now += 61  # it was no longer theirs, and is given anew
    task = store.next_task("ann")
    assert task is not None
    assert task.elapsed == 0


def test_sides_are_even_and_stay(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db")
    store.add(PAIRS)
    task = store.next_task("ann")
    assert task is not None
    assert task == replace(store.next_task("ann") or task, elapsed=task.elapsed)
    for who in ("ann", "bob"):
        left = [left_side(number, who) for number in range(1, 2001)]
        assert abs(left.count("a") - 1000) < 4 * 500**0.5  # four standard deviations
    same = sum(left_side(number, "ann") == left_side(number, "bob") for number in range(1, 2001))
    assert abs(same - 1000) < 4 * 500**0.5  # one rater's order tells nothing of another's


def test_progress_and_opinions(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db", overlap=2, clock=Clock())
    store.add(PAIRS)
    store.choose(1, "ann", "a")
    store.choose(1, "bob", "b")
    store.choose(2, "ann", "cannot tell")
    store.skip(3, "ann")
    progress = store.progress("ann")
    assert (progress.pairs, progress.answered, progress.own) == (4, 1, 2)
    assert progress.last is not None
    assert (progress.last.number, progress.last.skipped) == (3, True)
    store.put_opinions({1: Opinion("m", 1.0, 0.5), 2: Opinion("m", 0.0)})
    store.put_opinions({1: Opinion("n", -1.0)})  # in place of all
    assert store.opinions() == {1: Opinion("n", -1.0)}
    assert store.opinions()[1].probability == pytest.approx(0.2689414)  # σ(−1)
    with pytest.raises(sqlite3.IntegrityError):
        store.put_opinions({9: Opinion("n", 0.0)})
    assert store.opinions() == {1: Opinion("n", -1.0)}


VERSION_1 = """
CREATE TABLE pairs (id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
                    columns TEXT NOT NULL);
CREATE INDEX texts ON pairs (a, b);
CREATE TABLE choices (pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL, choice TEXT NOT NULL,
                      "when" TEXT, seconds REAL, PRIMARY KEY (pair, who));
CREATE TABLE leases (pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL, expires REAL NOT NULL,
                     PRIMARY KEY (pair, who));
INSERT INTO pairs VALUES (1, '"p0"', 'x', 'y', '{"row": 0}'), (2, '"p1"', 'x', 'y', '{"row": 1}');
INSERT INTO choices VALUES (1, 'ann', 'b', '2026-01-31T12:00:00Z', 2.5);
INSERT INTO leases VALUES (2, 'bob', 9e9);
PRAGMA user_version = 1;
"""


def test_a_store_of_version_1_is_read_on(tmp_path: Path):
    path = tmp_path / "store.db"
    database = sqlite3.connect(path)
    database.executescript(VERSION_1)
    database.close()
    store = PreferenceStore(path, clock=Clock())
    said = replace(PAIRS[0], choice="b", who="ann", when="2026-01-31T12:00:00Z", seconds=2.5)
    assert store.pairs() == [said, PAIRS[1]]
    store.choose(2, "ann", "a")
    assert [s.number for s in PreferenceStore(path).said()] == [1, 2]
