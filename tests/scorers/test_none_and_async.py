"""Scorers that do not apply to a text, and scorers that are `async def`."""

from __future__ import annotations

import asyncio
import math
import statistics
import threading
import time
from typing import Any

import gymnasium as gym
import pytest

import textgen_env  # noqa: F401
from textgen_env.scorers import ScorerError, call_scorer, get_scorer, score_parts
from textgen_env.scorers.combine import Affine, Clip, Normalize, Sum
from textgen_env.scorers.dense import Dense, TokenRewards
from textgen_env.scorers.penalties import EosPenalty, OverlongPenalty
from textgen_env.scorers.service import Cached, Patient

TEXTS = ["a1", "bb", "c22"]
COLUMNS: dict[str, Any] = {"prompts": ["p", "q", "r"], "finish_reasons": ["eos"] * 3, "completion_ids": [[1], [1], [1]]}


def digits(completions: list[str], **_: Any) -> list[float | None]:
    """How many digits; does not apply to texts without any."""
    return [float(sum(map(str.isdigit, text))) or None for text in completions]


def size(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


async def slow_size(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
    await asyncio.sleep(0.001)
    return [None if text == "bb" else float(len(text)) for text in completions]


class Judge:
    """Keeps to the loop of its first call, as clients of endpoints do."""

    name = "judge"

    def __init__(self) -> None:
        self.loop: Any = None

    async def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.loop = self.loop or asyncio.get_running_loop()
        assert asyncio.get_running_loop() is self.loop
        return [1.0] * len(completions)


# --- None -------------------------------------------------------------------------------------------------------------


def test_a_member_that_does_not_apply_is_left_out_of_the_sum() -> None:
    scorer = Sum({"digits": (2.0, digits), "size": size})
    assert score_parts(scorer, TEXTS, **COLUMNS) == {"digits": [2.0, 0.0, 4.0], "size": [2.0, 2.0, 3.0]}
    assert call_scorer(scorer, TEXTS, **COLUMNS) == [4.0, 2.0, 7.0]


@pytest.mark.parametrize(
    "scorer",
    [
        digits,
        Sum([digits]),
        Sum({"a": digits, "b": slow_size}),
        Affine(digits, bias=1.0),
        Clip(digits, 0.0, 1.0),
        Normalize(digits),
        EosPenalty(digits),
        OverlongPenalty(digits, 4, 2),
        Dense(digits),
        Cached(digits),
        Patient(digits),
        TokenRewards(lambda completions, completion_ids: [[1.0], None, [1.0]]),
    ],
)
@pytest.mark.parametrize("call", [call_scorer, score_parts])
def test_where_nothing_applies_the_scorer_is_named(scorer: Any, call: Any) -> None:
    name = getattr(scorer, "name", "digits")
    with pytest.raises(ScorerError, match=f"'{name}'.*got None.*row 1, prompt 'q', text 'bb'"):
        call(scorer, TEXTS, **COLUMNS)


@pytest.mark.parametrize(
    ("wrapped", "scores"),
    [
        (Affine(digits, gain=2.0, bias=1.0), [3.0, 0.0, 5.0]),
        (Clip(digits, 0.0, 1.5), [1.0, 0.0, 1.5]),
        (Clip(Sum({"d": digits, "e": digits}), 0.0, 3.0), [2.0, 0.0, 3.0]),
        (EosPenalty(digits, accept=()), [0.0, 0.0, 1.0]),
        (OverlongPenalty(digits, maximum=1, margin=1), [0.0, 0.0, 1.0]),
        (Cached(digits), [1.0, 0.0, 2.0]),
        (Patient(digits, batch_size=2), [1.0, 0.0, 2.0]),
        (Dense(digits), [1.0, 0.0, 2.0]),
    ],
)
def test_what_is_around_it_does_not_apply_either(wrapped: Any, scores: list[float]) -> None:
    both = Sum({"wrapped": wrapped, "nothing": lambda completions: [0.0] * len(completions)})
    for _ in range(2):  # the second time from the cache
        assert call_scorer(both, TEXTS, **COLUMNS) == scores


def test_statistics_are_of_texts_that_have_a_score() -> None:
    scorer = Sum({"n": Normalize(digits), "zero": lambda completions: [0.0] * len(completions)})
    std = statistics.pstdev([1.0, 2.0])
    assert call_scorer(scorer, TEXTS, **COLUMNS) == pytest.approx([(1 - 1.5) / std, 0.0, (2 - 1.5) / std])
    assert scorer.state_dict()["n"]["count"] == 2


def test_nan_is_never_a_way_to_say_it() -> None:
    with pytest.raises(ScorerError, match="'<lambda>' must return finite numbers, got nan"):
        call_scorer(Sum({"a": lambda completions: [math.nan], "b": size}), ["x"], prompts=["p"])


def test_an_environment_pays_what_applies() -> None:
    env = gym.make(
        "textgen/TextGen-v0",
        model="tiny",
        prompts=["Once"],
        scorer=Sum({"never": lambda completions: [None], "size": size, "later": slow_size}),
        max_new_tokens=1,
    )
    env.reset(seed=0)
    _, reward, _, _, info = env.step(100)
    parts = info["reward_parts"]
    assert parts["never"] == 0.0
    assert parts["size"] == parts["later"] == len(info["text"]) > 0
    assert reward == sum(parts.values())


# --- async ------------------------------------------------------------------------------------------------------------


def test_async_scorers_are_waited_for() -> None:
    assert call_scorer(slow_size, ["a", "ccc"], prompts=["", ""]) == [1.0, 3.0]
    assert call_scorer(Sum({"a": slow_size, "b": size}), TEXTS, **COLUMNS) == [4.0, 2.0, 6.0]
    judge = Judge()
    for _ in range(2):
        assert call_scorer(judge, TEXTS, **COLUMNS) == [1.0] * 3
    assert call_scorer(Patient(Cached(judge), workers=3), TEXTS, **COLUMNS) == [1.0] * 3


def test_async_parts_and_token_rewards() -> None:
    class Two:
        part_names = ("a", "b")

        async def parts(self, completions: list[str], **_: Any) -> dict[str, list[float]]:
            return {"a": [1.0] * len(completions), "b": [2.0] * len(completions)}

    async def by_token(completions: list[str], completion_ids: list[list[int]]) -> list[list[float]]:
        return [[0.5] * len(ids) for ids in completion_ids]

    assert score_parts(Two(), TEXTS, **COLUMNS) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert call_scorer(TokenRewards(by_token), TEXTS, **COLUMNS) == [0.5] * 3


def test_inside_a_running_loop() -> None:
    async def main() -> list[float]:
        return call_scorer(slow_size, ["a"], prompts=[""])  # as in a cell of a notebook

    assert asyncio.run(main()) == [1.0]


def test_an_async_scorer_may_ask_another() -> None:
    async def outer(completions: list[str], prompts: list[str]) -> list[float]:
        return [2 * score for score in call_scorer(slow_size, completions, prompts=prompts)]

    assert call_scorer(outer, ["a"], prompts=[""]) == [2.0]


def test_an_async_scorer_that_raises_names_the_text() -> None:
    async def broken(completions: list[str], **_: Any) -> list[float]:
        return [1 / len(text) for text in completions]

    with pytest.raises(ScorerError, match="'broken' raised ZeroDivisionError.*row 1, prompt 'q', text ''"):
        call_scorer(broken, ["a", ""], prompts=["p", "q"])


def test_patience_cancels_an_async_scorer() -> None:
    cancelled = threading.Event()

    async def hangs(completions: list[str], **_: Any) -> list[float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return [1.0]

    with pytest.raises(ScorerError, match="'hangs' took more than 0.05 s"):
        call_scorer(Patient(hangs, timeout=0.05, retries=0), ["a"], prompts=[""])
    assert cancelled.wait(10)


def test_requests_of_an_async_scorer_run_side_by_side() -> None:
    inside = most = 0

    async def counts(completions: list[str], **_: Any) -> list[float]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        while most < 3 and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        inside -= 1
        return [1.0]

    deadline = time.monotonic() + 10
    call_scorer(Patient(counts, workers=3, retries=0), TEXTS, **COLUMNS)
    assert most == 3


def test_by_name() -> None:
    assert get_scorer(slow_size) is slow_size
