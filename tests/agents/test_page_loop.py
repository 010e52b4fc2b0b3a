"""People in the loop: the trainer waits for the page's choices, goes on without all of them, and both may stop."""

from __future__ import annotations

import _thread
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_run import write_completions
from starlette.testclient import TestClient
from test_rlhf import flags, judge, rewards_by_transformers

from benchmarks.robots import Rater
from textgen_env.agents import rlhf
from textgen_env.agents.label import LabelServer, LabelSettings
from textgen_env.agents.preferences import page_labeller
from textgen_env.agents.preferences.page import make_app
from textgen_env.agents.preferences.page_labeller import PageLabeller
from textgen_env.agents.preferences.pairs import Pair, read_pairs
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.rlhf import main

HOME = "http://127.0.0.1:8421"


def prefers(text: str) -> float:
    return float(judge([text])[0])


@contextmanager
def robot(
    path: Path, most: int | None = None, choose: Callable[[dict[str, str]], str] | None = None
) -> Iterator[list[int]]:
    """Somebody at the page, in a thread: judges whatever is there, as long as this lasts."""
    done, judged, failures = threading.Event(), list[int](), list[BaseException]()

    def better(sides: dict[str, str]) -> str:
        left, right = (prefers(sides[side]) for side in ("left", "right"))
        return "tie" if left == right else "left" if left > right else "right"

    def work() -> None:
        try:
            while not path.exists():
                time.sleep(0.05)
            client = TestClient(make_app(PreferenceStore(path)), base_url=HOME, follow_redirects=False)
            rater = Rater(client, "robot")
            while not done.is_set() and (most is None or len(judged) < most):
                page = rater.get()
                if page.number is None:
                    time.sleep(0.05)
                    continue
                rater.press(page, (choose or better)(page.sides))
                judged.append(page.number)
        except BaseException as error:
            failures.append(error)
            _thread.interrupt_main()  # which waits for it

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield judged
    finally:
        done.set()
        thread.join()
        assert not failures


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_completions(tmp_path / "prompts.jsonl")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PageLabeller.__init__
    monkeypatch.setattr(PageLabeller, "__init__", lambda self, *given: made(self, *given, poll_seconds=0.01))


PAGE = ["--labeller", "page", "--rounds", "2", "--labels", "24", "--responses", "2", "--initial-share", "0.6"]


def test_people_label_on_the_page_and_the_policy_learns_from_it(word_model: Path, prompts: Path, tmp_path: Path):
    """The same choices as a synthetic labeller makes of the same pairs, by way of the page."""
    folder, other = tmp_path / "run", tmp_path / "synthetic"
    with robot(folder / "preferences.db") as judged:
        main(flags(folder, word_model, prompts, *PAGE))
    main(flags(other, word_model, prompts, *PAGE[2:]))
    store = PreferenceStore(folder / "preferences.db")
    ours, theirs = (read_pairs(each / "round-1" / "pairs.jsonl") for each in (folder, other))
    by_texts = {(p.prompt, p.a, p.b): p.choice for p in theirs}
    assert {(p.prompt, p.a, p.b): p.choice for p in ours} == by_texts
    assert {p.who for p in ours} == {"robot"}
    assert len(judged) == len(store.numbered()) == len(store.opinions())
    assert {o.model for o in store.opinions().values()} == {"round-2/reward_model/last"}
    stages = json.loads((folder / "stages.json").read_text())
    assert list(stages) == ["at the start", "after round 1", "after round 2"]


def test_training_goes_on_while_some_are_still_open(word_model: Path, prompts: Path, tmp_path: Path):
    folder = tmp_path / "run"
    store_path = folder / "preferences.db"
    with robot(store_path, most=10):  # the fewest that anything is fitted to
        main(flags(folder, word_model, prompts, *PAGE, "--wait-for", "0"))
    first, second = (read_pairs(folder / f"round-{n}" / "pairs.jsonl") for n in (1, 2))
    assert 5 <= len(first) <= len(second) == 10
    assert any(p.choice is None for p in PreferenceStore(store_path).pairs())


def test_either_side_may_stop_and_go_on(
    word_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The trainer is stopped while it waits; people go on meanwhile; it goes on with what they said."""
    folder = tmp_path / "run"
    given = flags(folder, word_model, prompts, *PAGE)

    def stop_when_waiting() -> None:
        while not (folder / "preferences.db").exists() or not _pairs(folder):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)

    timer = threading.Thread(target=stop_when_waiting)
    timer.start()
    with pytest.raises(SystemExit) as end:
        main(given)
    timer.join()
    assert end.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "0 of " in said
    assert f"textgen label {folder / 'preferences.db'}" in said.replace("\n", "")
    store = PreferenceStore(folder / "preferences.db")
    asked = len(store.numbered())
    with robot(folder / "preferences.db", most=asked):
        while len(store.choices()) < asked:
            time.sleep(0.05)
    with robot(folder / "preferences.db"):
        main([*given, "--resume"])
    assert len(read_pairs(folder / "round-1" / "pairs.jsonl")) == asked  # the same pairs, asked about once
    assert len(store.said(withdrawn=True)) == len(store.numbered())
    assert (folder / "stages.json").exists()


def _pairs(folder: Path) -> int:
    try:
        return len(PreferenceStore(folder / "preferences.db").numbered())
    except (ValueError, sqlite3.OperationalError):
        return 0


def test_branches_are_asked_about_from_the_second_round_on(word_model: Path, prompts: Path, tmp_path: Path):
    folder = tmp_path / "run"
    more = ["--select", "branches", "--reward-model.members", "2"]
    main(flags(folder, word_model, prompts, *PAGE[2:], *more))
    pairs = read_pairs(folder / "round-2" / "pairs.jsonl")
    first = len(read_pairs(folder / "round-1" / "pairs.jsonl"))
    assert not any("shared" in p.columns for p in pairs[:first])
    assert all("shared" in p.columns for p in pairs[first:])
    assert len(pairs) > first
    check_replay(folder)


def check_replay(folder: Path) -> None:
    """A run that no page has seen: the page asks the last reward model, and shows what it says beside the labels."""
    server = LabelServer(LabelSettings(folder, port=0, replay=True))
    try:
        opinions = server.store.opinions()
        members = [folder / "round-2" / "reward_model" / "last" / name for name in (".", "member-1")]
        for number, pair in server.store.numbered().items():
            found = [
                rewards_by_transformers(each, [f"{pair.prompt}{text}" for text in (pair.a, pair.b)]) for each in members
            ]
            each = [a - b for a, b in found]
            assert opinions[number].difference == pytest.approx(sum(each) / 2, abs=1e-4)
            assert opinions[number].spread == pytest.approx(abs(each[0] - each[1]) / 2**0.5, abs=1e-4)
        page = make_app(server.store, title="run", replay=True)
        shown = Rater(TestClient(page, base_url=server.address.rstrip("/")), None).get("/pairs/1")
        assert "synthetic" in shown.text
        assert "Reward model" in shown.text
    finally:
        server._socket.close()


def test_branches_need_an_ensemble(word_model: Path, prompts: Path, tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        rlhf.run_program(lambda: rlhf.make_run(flags(tmp_path / "run", word_model, prompts, "--select", "branches")))
    assert end.value.code == 2


def test_what_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A share of the pairs; and something to learn from: "cannot tell" is an answer, and no preference."""
    store, pairs = PreferenceStore(tmp_path / "store.db"), [Pair(f"p{i}", "x", "y") for i in range(20)]
    lines: list[str] = []

    def answers_until(share: float) -> int:
        """How many it takes, where one comes between any two looks: eight times "cannot tell", then preferences."""
        numbers = iter(range(len(store.choices()) + 1, 21))
        monkeypatch.setattr(
            page_labeller.time,
            "sleep",
            lambda _: store.choose(n := next(numbers), "ann", "a" if n > 8 else "cannot tell"),
        )
        before = len(store.choices())
        PageLabeller(share, lines.append)(store, pairs)
        return len(store.choices()) - before

    assert answers_until(0.5) == 18  # 10 pairs would do, but 10 preferences are needed
    assert lines[0] == f"0 of 20 pairs are judged; going on at 10: textgen label {store.path}"
    assert len(lines) == 9  # with every tenth
    assert answers_until(0.9) == answers_until(0.0) == 0  # it is said already
    assert answers_until(1.0) == 2
