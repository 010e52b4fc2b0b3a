"""Sums, scales, clips and statistics: parts stay visible and add up."""

from __future__ import annotations

import copy
import math
import pickle
import statistics

import pytest

from textgen_env.scorers import add_parts, call_scorer, get_scorer, score_parts
from textgen_env.scorers.combine import Affine, Clip, Normalize, Sum


def size(completions):
    return [float(len(text)) for text in completions]


def vowels(completions):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


TEXTS = ["", "a", "bcd", "queue"]
COLUMNS = {"prompts": TEXTS}


def test_sum_of_named_members() -> None:
    scorer = Sum({"length": size, "vowel": (0.5, vowels)})
    assert score_parts(scorer, TEXTS, **COLUMNS) == {"length": [0, 1, 3, 5], "vowel": [0, 0.5, 0, 2]}
    assert call_scorer(scorer, TEXTS, **COLUMNS) == [0, 1.5, 3, 7]
    assert scorer.part_names == ("length", "vowel")


def test_sum_of_a_list_takes_the_scorers_names() -> None:
    assert Sum([size, [2, vowels]]).part_names == ("size", "vowels")
    with pytest.raises(ValueError, match=r"different names.*'size', 'size'"):
        Sum([size, size])


def test_nested_sums_name_parts_by_path() -> None:
    scorer = Sum({"a": size, "b": (2.0, Sum([size, vowels]))})
    assert score_parts(scorer, ["queue"], prompts=["p"]) == {"a": [5.0], "b.size": [10.0], "b.vowels": [8.0]}


@pytest.mark.parametrize("members", [[], {}, [[1, 2, 3]], [["bleu", "ter"]], [[math.inf, size]], [[True, size]]])
def test_mistaken_sums(members) -> None:
    with pytest.raises(ValueError, match="sum"):
        Sum(members)


def test_affine() -> None:
    assert score_parts(Affine(size, gain=2.0), TEXTS, **COLUMNS) == {"size": [0, 2, 6, 10]}
    scorer = Affine(Sum([size, vowels]), gain=2.0, bias=-1.0)
    assert scorer.part_names == ("size", "vowels", "bias")
    assert call_scorer(scorer, TEXTS, **COLUMNS) == [-1, 3, 5, 17]
    with pytest.raises(ValueError, match="nan"):
        Affine(size, gain=math.nan)


def test_fitted_affine_normalises_samples_of_the_reference() -> None:
    samples = ["a" * n for n in (3, 5, 8, 20)]
    scorer = Affine.fitted(Sum([size, vowels]), samples, mean=1.0, std=2.0, prompts=samples)
    scores = call_scorer(scorer, samples, prompts=samples)
    assert statistics.fmean(scores) == pytest.approx(1.0)
    assert statistics.pstdev(scores) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="2 samples must not all score the same"):
        Affine.fitted(size, ["ab", "cd"], prompts=["p", "q"])


def test_clip() -> None:
    assert score_parts(Clip(size, 1, 3), TEXTS, **COLUMNS) == {"size": [1, 1, 3, 3]}
    scorer = Clip(Sum([size, vowels]), high=4.0)
    parts = score_parts(scorer, TEXTS, **COLUMNS)
    assert parts["clip"] == [0, 0, 0, -5]
    assert add_parts(parts, 4) == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="low must not exceed high"):
        Clip(size, 2, 1)


def test_normalize_follows_the_running_statistics() -> None:
    scorer = Normalize(Sum([size, vowels]))
    seen: list[float] = []
    for batch in (["a"], ["abc", "queue"], ["b"] * 3):
        seen += [x + y for x, y in zip(size(batch), vowels(batch), strict=True)]
        spread = statistics.pstdev(seen) or 1.0
        expected = [(s - statistics.fmean(seen)) / spread for s in seen[-len(batch) :]]
        parts = score_parts(scorer, batch, prompts=batch)
        assert add_parts(parts, len(batch)) == pytest.approx(expected)
        assert tuple(parts) == scorer.part_names


def test_normalize_without_mean_and_for_unfinished_texts() -> None:
    scorer = Normalize(size, center=False)
    call_scorer(scorer, ["a", "abc"], prompts=["", ""])
    scores = call_scorer(scorer, ["ab", "abcdefgh"], prompts=["", ""], finish_reasons=[None, None])
    assert scores == [2.0, 8.0]  # the deviation of 1 and 3 is 1; unfinished texts do not count


def test_state_survives_a_checkpoint() -> None:
    scorer = Sum({"n": Normalize(size), "v": vowels})
    call_scorer(scorer, ["a", "abc"], prompts=["", ""])
    fresh = Sum({"n": Normalize(size), "v": vowels})
    fresh.load_state_dict(pickle.loads(pickle.dumps(scorer.state_dict())))
    same = copy.deepcopy(scorer)
    results = [call_scorer(s, ["abcd"], prompts=[""]) for s in (scorer, fresh, same)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    "state",
    [{}, None, {"n": {}}, {"n": {"count": 1, "mean": 0.0, "squares": 0.0}}]
    + [
        {"n": {"count": 1, "mean": 0.0, "squares": 1.0, "scorer": {}, **wrong}}
        for wrong in [{"count": "1"}, {"count": -1}, {"mean": math.nan}, {"squares": -1.0}, {"squares": None}]
    ],
)
def test_states_of_something_else_are_refused(state) -> None:
    scorer = Sum({"n": Normalize(size)})
    call_scorer(scorer, ["a", "abc"], prompts=["", ""])
    before = scorer.state_dict()
    with pytest.raises(ValueError, match="sum: a state must be|normalize: "):
        scorer.load_state_dict(state)
    assert scorer.state_dict() == before


def test_fitting_reaches_the_inmost_scorer() -> None:
    scorer = get_scorer({"name": "clip", "scorer": {"sum": {"c": {"name": "affine", "scorer": "cider"}, "b": "bleu"}}})
    scorer.fit_references([["a b c d"], ["e f g h"]])
    scores = call_scorer(scorer, ["a b c d"], prompts=["p"], references=[["a b c d"]])
    assert scores == [pytest.approx(2.0)]
