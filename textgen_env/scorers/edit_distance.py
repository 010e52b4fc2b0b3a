"""Rewards for reproducing a reference: exact match, edit distance and word error rate. Distances are rapidfuzz's."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from .base import usable_references

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExactMatch:
    """1 where the completion equals one of its references, else 0.

    Args:
        strip: ignore white space at both ends.
        ignore_case: compare in lower case.
        ignore_punctuation: compare without ASCII punctuation.

    Raises:
        ValueError: when scoring, a text without references.
    """

    name = "exact_match"

    def __init__(self, strip: bool = True, ignore_case: bool = False, ignore_punctuation: bool = False) -> None:
        self.strip, self.ignore_case, self.ignore_punctuation = strip, ignore_case, ignore_punctuation

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        return [
            float(self._plain(text) in {self._plain(other) for other in texts})
            for text, texts in zip(completions, rows, strict=True)
        ]

    def _plain(self, text: str) -> str:
        """The text without what is to be ignored."""
        if self.ignore_punctuation:
            text = text.translate(_PUNCTUATION)
        if self.ignore_case:
            text = text.lower()
        return text.strip() if self.strip else text


class EditDistance:
    """1 − Levenshtein distance / length of the longer text, in [0, 1]; higher is better; best of several references.

    Two empty texts score 1.

    Args:
        unit: "characters" or "words" (split at white space).

    Raises:
        ValueError: unknown unit; when scoring, a text without references.
    """

    name = "edit_distance"

    def __init__(self, unit: str = "characters") -> None:
        if unit not in ("characters", "words"):
            raise ValueError(f'edit_distance: unit must be "characters" or "words", got {unit!r}')
        self.unit = unit

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        texts, others = _paired(completions, rows, str.split if self.unit == "words" else None)
        return _best(cpdist(texts, others, scorer=Levenshtein.normalized_similarity, dtype=np.float64), rows)


class WER:
    """Minus the word error rate, in (−∞, 0]: word edits over the reference's words; 0 is a perfect match.

    The best of several references counts. Words are split at white space, as jiwer does by default. Against an empty
    reference each word counts as one error.

    Args:
        ignore_case: compare in lower case.

    Raises:
        ValueError: when scoring, a text without references.
    """

    name = "wer"

    def __init__(self, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        texts, others = _paired(completions, rows, self._words)
        edits = cpdist(texts, others, scorer=Levenshtein.distance, dtype=np.int64)
        return _best(-edits / np.array([max(len(other), 1) for other in others]), rows)

    def _words(self, text: str) -> list[str]:
        return (text.lower() if self.ignore_case else text).split()


def _paired(
    completions: Sequence[str], rows: Sequence[Sequence[str]], split: Callable[[str], list[str]] | None
) -> tuple[list[Any], list[Any]]:
    """Each completion beside each of its references, as two lists of texts or of lists of words."""
    texts: Sequence[Any] = completions if split is None else [split(text) for text in completions]
    others = [*chain.from_iterable(rows)]
    repeated = [text for text, row in zip(texts, rows, strict=True) for _ in row]
    return repeated, others if split is None else [split(other) for other in others]


def _best(values: np.ndarray, rows: Sequence[Sequence[str]]) -> list[float]:
    """The largest of each row's consecutive values."""
    if not rows:
        return []
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return np.maximum.reduceat(values, starts).tolist()
