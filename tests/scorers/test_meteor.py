"""METEOR against nltk, and a value from the examples of its documentation."""

from __future__ import annotations

import pytest
from nltk.translate.meteor_score import meteor_score
from text_pairs import PAIRS

from textgen_env.scorers import get_scorer
from textgen_env.scorers.words import ptb_tokenize


class NoWordNet:
    def synsets(self, word):
        return []


def test_equals_nltk() -> None:
    expected = [
        meteor_score([ptb_tokenize(other) for other in texts], ptb_tokenize(text), wordnet=NoWordNet())
        for text, texts in zip(PAIRS.completions, PAIRS.references, strict=True)
    ]
    assert get_scorer("meteor")(PAIRS.completions, references=PAIRS.references) == expected


def test_known_value() -> None:
    text = "It is a guide to action which ensures that the military always obeys the commands of the party"
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    # 13 of 18 and of 16 words match (obeys/heed do not) in 4 chunks or more; nltk's documentation says 0.6944
    assert get_scorer("meteor")([text], references=[[reference]]) == [pytest.approx(0.6944, abs=5e-5)]


def test_nothing_in_common() -> None:
    assert get_scorer("meteor")(["", "x"], references=[["a b"]] * 2) == [0.0, 0.0]
