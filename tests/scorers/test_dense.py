"""Potentials: what an episode is paid adds up to the score of its last text."""

from __future__ import annotations

import pytest

from textgen_env.scorers import ScorerError, call_scorer, score_parts
from textgen_env.scorers.combine import Sum
from textgen_env.scorers.dense import Dense, TokenRewards

IDS = [5, 9, 2]
PREFIXES = ["a", "a b", "a b c"]


def episode(scorer) -> list[dict[str, float]]:
    """The potentials of each part after each of three tokens."""
    steps = []
    for t in range(3):
        columns = {"prompts": ["p"], "references": [["a b c"]], "completion_ids": [IDS[: t + 1]]}
        parts = score_parts(scorer, [PREFIXES[t]], finish_reasons=["eos" if t == 2 else None], **columns)
        steps.append({name: values[0] for name, values in parts.items()})
    return steps


def test_any_scorer_as_a_potential() -> None:
    assert Dense("rouge1").dense
    assert [step["rouge1"] for step in episode(Dense("rouge1"))] == pytest.approx([0.5, 0.8, 1.0])


def test_terminal_members_of_a_dense_sum_wait() -> None:
    scorer = Sum({"overlap": Dense("rouge1"), "match": (2.0, "exact_match")})
    assert scorer.dense
    assert [step["match"] for step in episode(scorer)] == [0.0, 0.0, 2.0]
    assert [step["overlap"] for step in episode(scorer)] == pytest.approx([0.5, 0.8, 1.0])


def test_rows_of_a_dense_sum_are_told_apart() -> None:
    scorer = Sum({"end": "exact_match", "overlap": Dense("rouge1")})
    columns = {"prompts": ["p"] * 3, "references": [["x"], ["y"], ["z"]], "finish_reasons": [None, "eos", "length"]}
    assert score_parts(scorer, ["x", "y", "x"], **columns)["end"] == [0.0, 1.0, 0.0]


def test_token_rewards() -> None:
    def parity(completions, *, completion_ids):
        return [[1.0 if token % 2 else -0.5 for token in ids] for ids in completion_ids]

    scorer = TokenRewards(parity)
    potentials = [step["parity"] for step in episode(scorer)]
    paid = [b - a for a, b in zip([0.0, *potentials], potentials, strict=False)]
    assert paid == [1.0, 1.0, -0.5]
    assert score_parts(Sum({"tokens": (2.0, scorer)}), [""], prompts=[""], completion_ids=[IDS]) == {"tokens": [3.0]}


def test_token_rewards_must_fit_the_tokens() -> None:
    scorer = TokenRewards(lambda completions, completion_ids: [[1.0]], name="mine")
    with pytest.raises(ScorerError, match="'mine' must return one value per token: row 0 has 3 tokens, got 1"):
        call_scorer(scorer, ["abc"], prompts=["p"], completion_ids=[IDS])
