"""Citations that can be checked: whether what a text cites, by the numbers of passages, holds the answer.

Which passages there were is read from what the environment said; finding them is `responders/search.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import regex

from textgen_env.notices import shown

from .words import composed, occurs

MEASURES = ("f1", "precision", "recall")
_CITED = regex.compile(r"\[\s*([0-9]{1,9}(?:\s*[,;]\s*[0-9]{1,9})*)\s*\]")
_PASSAGE = regex.compile(r"^\[([0-9]{1,9})\][ \t]?", regex.MULTILINE)


class Citations:
    """How well a text cites the passages that were retrieved for it, in [0, 1]; higher is better.

    A passage is what the environment said from "[n]" at the beginning of a line up to the next such line, as the tool
    "search" writes it; a citation is "[n]" or "[n, m]" in the text, and counts once. A passage supports the answer if
    one of the answers occurs in it as whole words, in whatever case.

    * precision: supporting passages that are cited, over all numbers that are cited; a number that was never
      retrieved is cited wrongly.
    * recall: supporting passages that are cited, over all that were retrieved.
    * F1: their harmonic mean.

    Without any citation, and where nothing that was retrieved supports the answer, all three are 0.

    Args:
        measure: "f1", "precision" or "recall".
        answers: the column of the prompts that holds the answer, or a list of ways to put it.
        passages: the column that holds passages, where the environment does not say them: a list, numbered from 1, or
            a mapping from numbers. None: what the environment said, from the column "turns".

    Raises:
        ValueError: an unknown measure; when scoring, no such columns, or a prompt without an answer.
        TypeError: when scoring, answers or passages that are no texts.

    References:
        Gao et al., "Enabling Large Language Models to Generate Text with Citations" (2023), whose citation precision
        and recall ask a model whether a passage entails a sentence; here it is looked up.
    """

    name = "citations"

    def __init__(self, measure: str = "f1", answers: str = "references", passages: str | None = None) -> None:
        if measure not in MEASURES:
            raise ValueError(f"citations: measure must be one of {', '.join(MEASURES)}, got {shown(measure)}")
        self.measure, self.answers, self.passages = measure, answers, passages

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        source = self.passages or "turns"
        for column in (self.answers, source):
            if columns.get(column) is None:
                raise ValueError(f"citations: needs the column {column!r}, which was not given")
        read = _retrieved if self.passages is None else _given
        return [
            self._score(text, read(found, f"{source}[{row}]"), _texts(wanted, f"{self.answers}[{row}]"))
            for row, (text, found, wanted) in enumerate(
                zip(completions, columns[source], columns[self.answers], strict=True)
            )
        ]

    def _score(self, text: str, passages: Mapping[int, str], answers: Sequence[str]) -> float:
        plain = [composed(answer.lower()).strip() for answer in answers]
        supporting = {n for n, passage in passages.items() if any(occurs(a, composed(passage.lower())) for a in plain)}
        cited = {int(number) for group in _CITED.findall(text) for number in regex.findall(r"[0-9]+", group)}
        right = len(cited & supporting)
        if not right:
            return 0.0
        out_of = {"precision": len(cited), "recall": len(supporting), "f1": (len(cited) + len(supporting)) / 2}
        return right / out_of[self.measure]


def _retrieved(turns: Sequence[Mapping[str, str]], where: str) -> dict[int, str]:
    """The passages in what the environment said, by number."""
    found: dict[int, str] = {}
    for turn in turns:
        if turn["role"] == "environment":
            _, *parts = _PASSAGE.split(turn["content"])
            found |= {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}
    return found


def _given(passages: Any, where: str) -> dict[int, str]:
    if isinstance(passages, Mapping):
        numbers = list(passages)
        if not all(str(number).isdecimal() for number in numbers):
            raise TypeError(f"citations: {where}={shown(passages)} must have numbers as keys")
        return {int(n): text for n, text in zip(numbers, _texts(list(passages.values()), where), strict=True)}
    return dict(enumerate(_texts(passages, where, least=0), 1))


def _texts(value: Any, where: str, least: int = 1) -> list[str]:
    """A text, or a list of them, that are not empty."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"citations: {where}={shown(value)} must be a text or a list of texts")
    texts = [text for text in texts if text.strip()]
    if len(texts) < least:
        raise ValueError(f"citations: {where}={shown(value)} must hold a text that is not empty")
    return texts
