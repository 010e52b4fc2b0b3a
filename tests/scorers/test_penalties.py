"""Missing EOS and running long, by hand-computed values."""

from __future__ import annotations

import pytest

from textgen_env.scorers import ScorerError, call_scorer, score_parts
from textgen_env.scorers.penalties import EosPenalty, OverlongPenalty


def one(completions):
    return [1.0] * len(completions)


TEXTS = ["a", "b", "c", "d"]


def test_eos_penalty() -> None:
    columns = {"prompts": TEXTS, "finish_reasons": ["eos", "stop", "length", None]}
    assert score_parts(EosPenalty(one, 2.0), TEXTS, **columns) == {"one": [1] * 4, "eos_penalty": [0, 0, -2, 0]}
    assert call_scorer(EosPenalty(one, 2.0, accept=["eos"]), TEXTS, **columns) == [1, -1, -1, 1]
    answered = {"prompts": TEXTS[:3], "finish_reasons": ["environment", "horizon", "length"]}
    assert call_scorer(EosPenalty(one, 2.0), TEXTS[:3], **answered) == [1, 1, -1]
    assert call_scorer(EosPenalty(one, 2.0, accept=["eos", "stop"]), TEXTS[:3], **answered) == [-1, -1, -1]
    with pytest.raises(ScorerError, match="finish_reasons"):
        call_scorer(EosPenalty(one), TEXTS, prompts=TEXTS)
    with pytest.raises(ValueError, match="-1"):
        EosPenalty(one, -1)


def test_overlong_penalty() -> None:
    """Equation 13 of DAPO with L_max 10 and L_cache 4: 0 to 6 tokens, −1/4 a token up to 10, then −1."""
    lengths = [0, 6, 7, 8, 10, 30]
    columns = {"prompts": [""] * 6, "completion_ids": [[0] * n for n in lengths]}
    parts = score_parts(OverlongPenalty(one, maximum=10, margin=4), [""] * 6, **columns)
    assert parts["overlong_penalty"] == [0, 0, -0.25, -0.5, -1, -1]
    unfinished = {**columns, "finish_reasons": [None] * 6}
    assert call_scorer(OverlongPenalty(one, maximum=10, margin=4), [""] * 6, **unfinished) == [1] * 6
    with pytest.raises(ScorerError, match="completion_ids"):
        call_scorer(OverlongPenalty(one, 10, 4), [""], prompts=[""])
    with pytest.raises(ValueError, match="margin"):
        OverlongPenalty(one, maximum=3, margin=4)
