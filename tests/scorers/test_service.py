"""Caching, concurrency, time limits and failures."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from textgen_env.scorers import ScorerError, call_scorer, score_parts
from textgen_env.scorers.combine import Sum
from textgen_env.scorers.service import Cached, Patient


class Recorder:
    """Scores by length and remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, completions, **columns):
        self.batches.append(list(completions))
        return [float(len(text)) for text in completions]


def test_cache_asks_once_for_each_text() -> None:
    inner = Recorder()
    scorer = Cached(inner)
    assert call_scorer(scorer, ["a", "bb", "a"], prompts=["p", "p", "p"]) == [1, 2, 1]
    assert call_scorer(scorer, ["bb", "ccc"], prompts=["p", "p"]) == [2, 3]
    assert call_scorer(scorer, ["a"], prompts=["other"]) == [1]
    assert inner.batches == [["a", "bb"], ["ccc"], ["a"]]
    assert (scorer.hits, scorer.misses) == (2, 4)


def test_cache_tells_references_and_columns_apart() -> None:
    inner = Recorder()
    scorer = Cached(inner, columns=["finish_reasons"])
    for references, reason in [(["r"], "eos"), (["s"], "eos"), (["r"], "length"), (["r"], "eos")]:
        call_scorer(scorer, ["a"], prompts=["p"], references=[references], finish_reasons=[reason])
    assert len(inner.batches) == 3


def test_cache_forgets_the_longest_unused() -> None:
    inner = Recorder()
    scorer = Cached(inner, maxsize=2)
    for text in ["a", "b", "a", "c", "a", "b"]:
        call_scorer(scorer, [text], prompts=["p"])
    assert inner.batches == [["a"], ["b"], ["c"], ["b"]]


def test_cache_keeps_parts() -> None:
    scorer = Cached(Sum({"x": Recorder(), "y": (2.0, Recorder())}))
    for _ in range(2):
        assert score_parts(scorer, ["ab"], prompts=["p"]) == {"x": [2.0], "y": [4.0]}


def test_cache_is_thread_safe() -> None:
    scorer = Cached(Recorder(), maxsize=50)
    texts = ["x" * n for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: call_scorer(scorer, texts, prompts=texts), range(50)))
    assert all(result == list(range(100)) for result in results)


class Flaky:
    """Fails on each text as often as the text says, then answers."""

    name = "flaky"

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, completions, **columns):
        with self.lock:
            for text in completions:
                self.calls[text] = self.calls.get(text, 0) + 1
        if any(self.calls[text] <= int(text) for text in completions):
            raise ConnectionError("no answer")
        return [float(text) for text in completions]


def test_retries() -> None:
    inner = Flaky()
    scorer = Patient(inner, retries=3, backoff=0.001)
    assert call_scorer(scorer, ["0", "3", "1"], prompts=[""] * 3) == [0, 3, 1]
    assert inner.calls == {"0": 1, "3": 4, "1": 2}
    assert scorer.info() == {"failed": 0, "retried": 4}


def test_failure_raises() -> None:
    scorer = Patient(Flaky(), retries=1, backoff=0.001)
    with pytest.raises(ScorerError, match="flaky.*ConnectionError: no answer.*text '2'"):
        call_scorer(scorer, ["0", "2"], prompts=["", ""])


def test_failure_gets_a_value_and_is_counted() -> None:
    scorer = Patient(Flaky(), retries=1, backoff=0.001, on_failure=-1.0)
    assert call_scorer(scorer, ["0", "2", "1", "9"], prompts=[""] * 4) == [0, -1, 1, -1]
    assert scorer.info()["failed"] == 2
    assert Sum({"judge": scorer}).info()["judge.failed"] == 2


def test_a_bad_answer_is_a_failure() -> None:
    scorer = Patient(lambda completions: [math.nan], retries=0, on_failure=0.5)
    assert call_scorer(scorer, ["a", "b"], prompts=["", ""]) == [0.5, 0.5]


def test_time_limit() -> None:
    release = threading.Event()

    def hangs(completions):
        release.wait(20)
        return [1.0]

    scorer = Patient(hangs, timeout=0.05, retries=1, backoff=0.0)
    with pytest.raises(ScorerError, match="hangs.*more than 0.05 s; text 'a'"):
        call_scorer(scorer, ["a"], prompts=["p"])
    release.set()


def test_requests_run_side_by_side() -> None:
    together = threading.Barrier(4, timeout=10)  # broken unless four calls are inside at once

    def meets(completions):
        together.wait()
        return [1.0]

    assert call_scorer(Patient(meets, workers=4, retries=0), ["a"] * 4, prompts=[""] * 4) == [1.0] * 4


def test_never_more_than_the_workers() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def counts(completions):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return [1.0] * len(completions)

    call_scorer(Patient(counts, workers=3, batch_size=2), ["a"] * 41, prompts=[""] * 41)
    assert 1 <= most <= 3


def test_requests_keep_their_columns() -> None:
    def prompt_length(completions, *, prompts, references):
        assert len(completions) == len(prompts) == len(references)
        return [len(prompt) + len(texts) for prompt, texts in zip(prompts, references, strict=True)]

    scorer = Patient(prompt_length, batch_size=2)
    columns = {"prompts": ["a", "bb", "ccc"], "references": [[], ["x"], []]}
    assert call_scorer(scorer, ["", "", ""], **columns) == [1, 3, 3]


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"timeout": 0}, {"retries": -1}, {"on_failure": "zero"}])
def test_mistakes(arguments) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Patient(Recorder(), **arguments)
