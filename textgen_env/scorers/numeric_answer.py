r"""Reward for the right number: the last one in a solution, or the one in its \boxed{}. `number_text.py` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import regex

from textgen_env.notices import shown

from .base import usable_references
from .number_text import NUMBER, Number, tidied, value_of, values_in
from .shared_state import LRUCache

_PLACES = ("auto", "boxed", "last")
_BOX = regex.compile(r"\\(?:boxed|fbox)\s*+")
_BARE = regex.compile(r"[^\s$]++")
_MARKED = regex.compile(rf"\#{{4}}\ *(?:{NUMBER.pattern})\ ?\p{{L}}*\.?\ *(?=\n|$)", NUMBER.flags)


class NumericAnswer:
    r"""1 where the answer is the number that a reference gives, else 0; nothing but numbers is compared.

    The answer is what the last \boxed{} holds; else what follows the last "####" at the end of a line, as in GSM8K;
    else the last number of the completion. A box must hold one number, besides units and what stands before "=": of
    "3, 4", "2\sqrt{3}" or a box that is not closed there is no answer, which scores 0.

    Values are exact: "0.50" is "1/2", "1,234" is "1234", and "0.33" is not "1/3". Units and currencies do not count.
    A per cent sign on one side alone may be a unit or a hundredth: "25%" is "25" and "0.25", while "25" is not "0.25".
    A comma separates thousands, or decimals where it cannot ("3,14"; "0,125").

    Args:
        answer: "auto", as above; "boxed" (no box, no answer), or "last" (the last number, whatever is boxed).
        rel_tol, abs_tol: how far the answer may be from the right number r: the larger of rel_tol·|r| and abs_tol.
        column: the prompts' column that holds the right number: as a number, a text from which it is read like an
            answer, or a list of those of which one is enough.

    Raises:
        ValueError: unknown place, a tolerance below 0; when scoring, no such column, or no number in it.
    """

    name = "numeric_answer"

    def __init__(
        self, answer: str = "auto", rel_tol: float = 0.0, abs_tol: float = 0.0, column: str = "references"
    ) -> None:
        if answer not in _PLACES:
            raise ValueError(f"numeric_answer: answer must be one of {', '.join(_PLACES)}, got {answer!r}")
        if not (0 <= rel_tol < math.inf and 0 <= abs_tol < math.inf):
            raise ValueError(f"numeric_answer: tolerances must be at least 0, got {rel_tol=}, {abs_tol=}")
        self.answer, self.column = answer, column
        self.rel_tol, self.abs_tol = Fraction(str(rel_tol)), Fraction(str(abs_tol))
        self._wanted = LRUCache(4096)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        rows = self._right_answers(columns, len(completions))
        return [float(self._is_right(text, wanted)) for text, wanted in zip(completions, rows, strict=True)]

    def _is_right(self, text: str, wanted: Sequence[Number]) -> bool:
        answer = read_answer(text, self.answer)
        return answer is not None and any(self._equal(answer, number) for number in wanted)

    def _equal(self, answer: Number, wanted: Number) -> bool:
        if answer.percent == wanted.percent:
            return self._near(answer.value, wanted.value)
        worth = [Fraction(1, 100) if number.percent else 1 for number in (answer, wanted)]
        return self._near(answer.value, wanted.value) or self._near(answer.value * worth[0], wanted.value * worth[1])

    def _near(self, value: Fraction, wanted: Fraction) -> bool:
        return abs(value - wanted) <= max(self.abs_tol, self.rel_tol * abs(wanted))

    def _right_answers(self, columns: Mapping[str, Any], n: int) -> list[list[Number]]:
        """The numbers of each row, of which one is enough."""
        if self.column == "references":
            rows: Sequence[Any] = usable_references(columns.get("references") or [()] * n, self.name)
        elif self.column in columns:
            rows = columns[self.column]
        else:
            raise ValueError(f"numeric_answer: needs prompts with a column {self.column!r}")
        return [self._numbers(row, values) for row, values in enumerate(rows)]

    def _numbers(self, row: int, values: Any) -> list[Number]:
        several = values if isinstance(values, (list, tuple)) else [values]
        numbers = [self._number(value) for value in several]
        if not numbers or None in numbers:
            raise ValueError(f"numeric_answer: {self.column}[{row}] must hold a number, got {shown(values)}")
        return [number for number in numbers if number is not None]

    def _number(self, value: Any) -> Number | None:
        if isinstance(value, str):
            return self._wanted.get_or_make(value, lambda: read_answer(value))
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return None
        return Number(Fraction(str(value)))


def read_answer(text: str, place: str = "auto") -> Number | None:
    """The number that a text gives as its answer, or `None`. See `NumericAnswer`."""
    if place != "last" and (box := _last_box(text)) is not None:
        found = values_in(tidied(box).rpartition("=")[2])
        return value_of(found[0]) if len(found) == 1 else None
    if place == "boxed":
        return None
    tidy = tidied(text)
    marked = list(_MARKED.finditer(tidy)) if place == "auto" else []
    found = marked or values_in(tidy)
    return value_of(found[-1]) if found else None


def _last_box(text: str) -> str | None:
    r"""What the last \boxed{} of a text holds, "" where it is not closed; `None` where there is none."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    last = boxes[-1]
    if not text.startswith("{", last.end()):
        bare = _BARE.match(text, last.end())
        return bare[0] if bare else ""
    depth = 0
    for brace in regex.finditer(r"\\.|[{}]", text, pos=last.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[last.end() + 1 : brace.start()]
    return ""
