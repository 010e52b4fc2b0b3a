"""Rewards for writing under a rule that every word has to keep: acrostics and lipograms.

What lives here: rules that the first word to break them ends, so that the reward of a text that goes on is known to be
at least that of its beginning. What does not: rules about the whole text (`formats.py`, `length.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any


class Acrostic:
    """Share of a word that the initials of successive words spell before the first that is wrong, in [0, 1].

    Words are split at white space, case and accents do not matter, and signs before the first letter of a word are
    passed over. What follows once the word is spelt is free.

    Args:
        word: letters that the initials are to spell.

    Raises:
        ValueError: `word` is empty or holds something other than letters.
    """

    name = "acrostic"

    def __init__(self, word: str) -> None:
        self.letters = _letters(self.name, "word", word)

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        initials = (next(_plain(word), "") for word in text.split())
        right = takewhile(lambda pair: pair[0] == pair[1], zip(self.letters, initials, strict=False))
        return sum(1 for _ in right) / len(self.letters)


class Lipogram:
    """Share of the wanted number of words that a text has before the first with a forbidden letter, in [0, 1].

    Words are split at white space, and case and accents do not matter.

    Args:
        without: the forbidden letters.
        words: how many words are wanted.

    Raises:
        ValueError: `without` is empty or holds something other than letters, or `words` is below 1.
    """

    name = "lipogram"

    def __init__(self, without: str, words: int = 10) -> None:
        self.forbidden = set(_letters(self.name, "without", without))
        if words < 1:
            raise ValueError(f"lipogram: words must be at least 1, got {words}")
        self.words = words

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        kept = takewhile(lambda word: self.forbidden.isdisjoint(_plain(word)), text.split())
        return min(1.0, sum(1 for _ in kept) / self.words)


def _letters(scorer: str, argument: str, text: str) -> list[str]:
    letters = list(_plain(text))
    if not letters or len(letters) != len(text):
        raise ValueError(f"{scorer}: {argument} must be letters, at least one and nothing else, got {text!r}")
    return letters


def _plain(text: str) -> Iterator[str]:
    """The letters of a text, in lower case and without their accents."""
    return (letter for letter in unicodedata.normalize("NFD", text.casefold()) if letter.isalpha())
