"""The synthetic labeller against the probabilities it promises; which pairs are chosen; pairs of a policy's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import gymnasium as gym
import pytest
import torch
from words import WORDS

from textgen_env.agents.preferences.comparisons import responses_once, sample_comparisons
from textgen_env.agents.preferences.labellers import (
    SyntheticLabeller,
    choose_at_random,
    choose_by_disagreement,
    sample_pairs,
    scores_of,
)
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def made(count: int, difference: float = 1.0) -> list[Pair]:
    """Pairs whose a is better by so much."""
    return [Pair(f"p{i}", f"x{i}", f"y{i}", columns={"scores": [difference, 0.0]}) for i in range(count)]


def share_of_a(labeller: SyntheticLabeller, pairs: list[Pair]) -> float:
    return sum(p.choice == "a" for p in labeller(pairs)) / len(pairs)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1.0),
        ({"temperature": 1.0}, 0.7310585786),  # σ(1)
        ({"temperature": 0.5}, 0.8807970780),  # σ(2)
        ({"flip": 0.1}, 0.9),
        ({"flip": 1.0}, 0.0),
        ({"temperature": 1.0, "flip": 0.5}, 0.5),
        ({"temperature": 1.0, "flip": 0.2}, 0.6386351472),  # 0.8·σ(1) + 0.2·(1 − σ(1))
    ],
)
def test_choices_have_the_promised_frequencies(settings: dict[str, float], expected: float):
    count = 4000
    error = math.sqrt(expected * (1 - expected) / count)
    assert abs(share_of_a(SyntheticLabeller(**settings), made(count)) - expected) <= 4 * error
    assert abs(share_of_a(SyntheticLabeller(**settings), made(count, -1.0)) - (1 - expected)) <= 4 * error


def test_a_label_depends_on_seed_and_pair_alone():
    pairs = made(200)
    labeller = SyntheticLabeller(temperature=2.0, seed=3)
    together = [p.choice for p in labeller(pairs)]
    assert [labeller([p])[0].choice for p in reversed(pairs)][::-1] == together
    swapped = [replace(p, a=p.b, b=p.a, columns={"scores": p.columns["scores"][::-1]}) for p in pairs]
    other_side = {"a": "b", "b": "a"}
    assert [other_side[p.choice or ""] for p in labeller(swapped)] == together
    assert [p.choice for p in SyntheticLabeller(temperature=2.0, seed=4)(pairs)] != together
    assert len(set(together)) == 2


def test_small_differences_are_ties():
    def choice(difference: float, **settings: float) -> str | None:
        return SyntheticLabeller(**settings)(made(1, difference))[0].choice

    assert [choice(d, tie=0.5) for d in (0.0, 0.49, 0.5, -0.49, -0.5)] == ["tie", "tie", "a", "tie", "b"]
    assert choice(0.0) == "tie"
    assert choice(0.0, temperature=1.0) in ("a", "b")


def test_any_scorer_can_be_the_judge():
    """It gets references, columns, conversations and how responses ended, and its scores are kept."""
    seen: dict[str, Any] = {}

    def judge(completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns)
        return [float(len(text)) for text in completions]

    chat = [{"role": "user", "content": "hi"}]
    pairs = [
        Pair("p", "xx", "y", columns={"references": ["r"], "topic": "t", "ended": [True, False]}),
        Pair(chat, "x", "yyy"),
    ]
    first, second = SyntheticLabeller(judge)(pairs)
    assert (first.choice, second.choice, first.who) == ("a", "b", "synthetic")
    assert (first.columns["scores"], second.columns["scores"]) == ([2.0, 1.0], [1.0, 3.0])
    assert seen["prompts"] == ["p", "p", "hi", "hi"]
    assert seen["references"] == [["r"], ["r"], [], []]
    assert seen["topic"] == ["t", "t", None, None]
    assert seen["finish_reasons"] == ["eos", "length", "eos", "eos"]
    assert seen["messages"] == [None, None, chat, chat]
    assert SyntheticLabeller("bleu")([pairs[0]])[0].choice == "tie"
    assert scores_of(judge, pairs).tolist() == [[2, 1], [1, 3]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be a finite number ≥ 0"),
        ({"flip": 1.5}, "flip=1.5 must be a number from 0 to 1"),
        ({"tie": math.nan}, "tie=nan must be a finite number ≥ 0"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"scorer": "no such"}, "no such"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SyntheticLabeller(**settings)


def test_a_judge_without_a_scorer_needs_scores():
    with pytest.raises(ValueError, match=r"needs the column 'scores', which pairs\[1\] has not"):
        SyntheticLabeller()([*made(1), Pair("p", "x", "y")])


# --- selection ------------------------------------------------------------------------------------------------------


def test_selection_at_random_is_even_and_without_repetition():
    pairs = made(6)
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys((p.a for p in pairs), 0)
    for _ in range(600):
        chosen = choose_at_random(pairs, 2, generator=generator)
        assert len({p.a for p in chosen}) == 2
        for p in chosen:
            counts[p.a] += 1
    assert all(abs(count - 200) < 4 * math.sqrt(600 * (1 / 3) * (2 / 3)) for count in counts.values())
    assert len(choose_at_random(pairs, 99, generator=generator)) == 6


def test_disagreement_is_of_probabilities_and_not_of_rewards():
    """σ is flat far out: 8 against 10 is agreement, −1 against 1 is not."""
    differences = torch.tensor([[8.0, -1.0, 0.1, 0.0], [10.0, 1.0, -0.1, 0.0]])
    pairs = made(4)
    chosen = choose_by_disagreement(pairs, 3, lambda given: differences)
    assert [p.a for p in chosen] == ["x1", "x2", "x0"]
    for wrong in (torch.zeros(1, 4), torch.zeros(2, 3), torch.zeros(4)):
        with pytest.raises(ValueError, match="differences must return"):
            choose_by_disagreement(pairs, 3, lambda given, wrong=wrong: wrong)


# --- pairs of a policy ----------------------------------------------------------------------------------------------


def test_sampled_pairs_are_two_different_responses_to_each_prompt(make_venv: MakeVenv, word_model: Any):
    rows = [{"prompt": "a b", "references": ["r"], "topic": "t"}, {"prompt": "c"}, {"prompt": "d e f"}]
    venv = make_venv(prompts=rows, forbidden_tokens=["<pad>", "<unk>"])  # which have no text
    model = LanguageModel(word_model)
    sampled = sample_pairs(venv, model, 7, generator=torch.Generator().manual_seed(0))
    assert sampled.dropped == 0
    counts = [sum(p.prompt == row["prompt"] for p in sampled.pairs) for row in rows]
    assert sorted(counts) == [2, 2, 3]
    for pair in sampled.pairs:
        assert pair.a != pair.b
        words = [[text.split().count("a") / max(1, len(text.split()))] for text in (pair.a, pair.b)]
        assert torch.tensor(pair.columns["scores"]).tolist() == pytest.approx([share for (share,) in words])
        assert pair.ended == tuple(len(text.split()) < 6 for text in (pair.a, pair.b))
        assert ("topic" in pair.columns) == ("references" in pair.columns) == (pair.prompt == "a b")
    again = sample_pairs(venv, model, 7, generator=torch.Generator().manual_seed(0))
    assert again == sampled


def test_equal_responses_are_drawn_again_and_then_dropped(make_venv: MakeVenv, word_model: Any):
    """Only one word of one token may be written, or its end at once: half of the draws are alike."""
    forbidden = [word for word in WORDS if word not in ("<eos>", "a")]
    model = LanguageModel(word_model)
    venv = make_venv(max_new_tokens=1, forbidden_tokens=forbidden)
    generator = torch.Generator().manual_seed(0)
    once = sample_pairs(venv, model, 60, generator=generator, attempts=1)
    often = sample_pairs(venv, model, 60, generator=generator, attempts=30)
    assert 10 < once.dropped < 50
    assert len(once.pairs) + once.dropped == 60
    assert (often.dropped, len(often.pairs)) == (0, 60)
    assert all({p.a, p.b} == {"", " a"} for p in often.pairs)
    for wrong in ({"count": 0}, {"count": 1, "attempts": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            sample_pairs(venv, model, generator=generator, **wrong)


def test_all_pairs_of_several_responses_to_a_prompt(make_venv: MakeVenv, word_model: Any):
    """Each prompt's pairs are those of its four responses that differ; scores belong to texts; the rest is cut."""
    venv = make_venv(prompts=[{"prompt": "a b"}, {"prompt": "c"}], forbidden_tokens=["<pad>", "<unk>"])
    model, count = LanguageModel(word_model), 3 * 6 - 1
    sampled = sample_comparisons(venv, model, count, 4, generator=torch.Generator().manual_seed(0))
    assert sampled.dropped == 0
    assert len(sampled.pairs) == count
    assert [len({p.prompt for p in sampled.pairs[i : i + 6]}) for i in (0, 6, 12)] == [1, 1, 1]
    assert {p.prompt for p in sampled.pairs[:12]} == {"a b", "c"}  # all prompts before any comes again
    first = sampled.pairs[:6]
    texts = list(dict.fromkeys(text for p in first for text in (p.a, p.b)))
    assert [(p.a, p.b) for p in first] == list(combinations(texts, 2))
    for pair in sampled.pairs:
        shares = [text.split().count("a") / max(1, len(text.split())) for text in (pair.a, pair.b)]
        assert pair.columns["scores"] == pytest.approx(shares)
        assert pair.ended == tuple(len(text.split()) < 6 for text in (pair.a, pair.b))
    once = responses_once(first)
    assert [(p.a, p.b) for p in once] == [(texts[0], texts[1]), (texts[2], texts[3])]
    assert responses_once([*once, replace(once[0], prompt="elsewhere")])[-1].prompt == "elsewhere"
    two = [f(venv, model, 5, generator=torch.Generator().manual_seed(3)) for f in (sample_comparisons, sample_pairs)]
    assert two[0] == two[1]


def test_responses_that_are_all_alike_make_no_pair(make_venv: MakeVenv, word_model: Any):
    """One word or none: three responses are alike for one prompt in four, or two of their three pairs differ."""
    forbidden = [word for word in WORDS if word not in ("<eos>", "a")]
    venv, generator = make_venv(max_new_tokens=1, forbidden_tokens=forbidden), torch.Generator().manual_seed(0)
    sampled = sample_comparisons(venv, LanguageModel(word_model), 180, 3, generator=generator)
    assert len(sampled.pairs) == 2 * (60 - sampled.dropped)
    assert 2 < sampled.dropped < 50
    assert all({p.a, p.b} == {"", " a"} for p in sampled.pairs)
    for count, responses, message in ((0, 3, "count=0 must be"), (1, 1, "responses=1 must be at least 2")):
        with pytest.raises(ValueError, match=message):
            sample_comparisons(venv, LanguageModel(word_model), count, responses, generator=generator)
