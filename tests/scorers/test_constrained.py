"""Acrostics and lipograms, with scores counted by hand."""

from __future__ import annotations

import pytest

from textgen_env.scorers import get_scorer


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The owl naps.", 1.0),  # t, o, n
        ("the Owl “Naps” and more", 1.0),  # what follows is free
        ("Tea or milk", 2 / 3),
        ("Tea", 1 / 3),
        ("A tea or nothing", 0.0),  # the first word is wrong
        ("Té ôter Ñandú", 1.0),  # without accents
        ("t - n", 1 / 3),  # a word without letters has no right initial
        ("", 0.0),
    ],
)
def test_an_acrostic_counts_initials_up_to_the_first_that_is_wrong(text: str, score: float):
    assert get_scorer("acrostic", word="Ton")([text]) == pytest.approx([score])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("A dog and a cat sit", 1.0),
        ("A dog and a cat", 1.0),
        ("A dog and the cat", 3 / 5),
        ("A dog and crème brûlée", 3 / 5),
        ("Every dog", 0.0),
        ("A dog", 2 / 5),
        ("", 0.0),
    ],
)
def test_a_lipogram_counts_words_before_the_first_that_breaks_it(text: str, score: float):
    assert get_scorer("lipogram", without="E", words=5)([text]) == pytest.approx([score])


def test_every_forbidden_letter_counts():
    assert get_scorer("lipogram", without="ez", words=4)(["a b c z", "a e", "a b c d"]) == [0.75, 0.25, 1.0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("acrostic", {"word": ""}, "acrostic: word must be letters, at least one and nothing else, got ''"),
        ("acrostic", {"word": "to be"}, "got 'to be'"),
        ("lipogram", {"without": "e!"}, "lipogram: without must be letters"),
        ("lipogram", {"without": "e", "words": 0}, "lipogram: words must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(name: str, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        get_scorer(name, **arguments)
