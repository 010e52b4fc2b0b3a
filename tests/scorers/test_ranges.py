"""Scores keep to their ranges exactly: a text is never better than the same text, whatever is rounded on the way."""

from __future__ import annotations

import pytest
from text_pairs import PAIRS

from textgen_env.scorers import corpus_score, get_scorer

TEXTS = sorted({text for texts in PAIRS.references for text in texts})[::3] + ["a " * n for n in range(1, 40)]

SETTINGS = [
    ("bleu", {}),
    ("bleu", {"tokenize": "char"}),
    ("bleu", {"max_ngram_order": 7}),
    ("bleu", {"smooth_method": "add-k"}),
    ("chrf", {}),
    ("chrf", {"word_order": 2, "beta": 3}),
    ("meteor", {"gamma": 0.0, "alpha": 0.3}),
    ("rouge1", {}),
    ("rougeL", {"multi": "mean"}),
    ("rougeLsum", {}),
    ("cider", {}),
    ("cider", {"order": 3}),
    ("cider-plain", {"order": 3}),
    ("edit_distance", {}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_never_above_one_or_below_zero(name: str, settings: dict) -> None:
    scorer = get_scorer(name, **settings)
    if hasattr(scorer, "fit_references"):
        scorer.fit_references([[text] for text in TEXTS])
    scores = scorer(TEXTS, references=[[text] * 3 for text in TEXTS])
    assert max(scores) <= 1.0
    assert min(scores) >= 0.0


@pytest.mark.parametrize(("name", "most"), [("bleu", 100.0), ("chrf", 100.0), ("cider", 10.0), ("cider-plain", 10.0)])
def test_corpora_neither(name: str, most: float) -> None:
    texts = [text for text in TEXTS if len(text.split()) > 4]
    for size in range(2, 20):
        assert corpus_score(name, texts[:size], [[text] for text in texts[:size]]) <= most


def test_bleu_of_a_text_with_itself_is_one() -> None:
    assert set(get_scorer("bleu")(TEXTS, references=[[text] for text in TEXTS])) == {1.0}


@pytest.mark.parametrize("name", ["ter", "wer"])
def test_no_errors_are_zero(name: str) -> None:
    scores = get_scorer(name)(TEXTS, references=[[text] for text in TEXTS])
    assert {str(score) for score in scores} == {"0.0"}  # not "-0.0"
