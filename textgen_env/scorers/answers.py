"""What scorers answer: one number per text, or `None`; how it is checked, added up and reported. Calling: `base.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from textgen_env.notices import shown

Scores = list[float | None]
"""n numbers, `None` where a scorer does not apply."""


class ScorerError(RuntimeError):
    """A scorer raised, or returned something other than one finite number per text. Names scorer, prompt and text."""


def scorer_name(scorer: Callable[..., Any]) -> str:
    """The name of a scorer for errors and reward parts: its `name`, else its function's or class's name."""
    name = getattr(scorer, "name", None) or getattr(scorer, "__name__", None)
    return name if isinstance(name, str) else type(scorer).__name__


def bounded(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """A value that lies between two bounds but for rounding: 1.0000000000000004 is 1.0."""
    return min(max(float(value), low), high)


def add_parts(parts: Mapping[str, Sequence[float]], n: int) -> list[float]:
    """The n scores of named parts: their sum from left to right, starting at 0.0."""
    totals = [0.0] * n
    for values in parts.values():
        totals = [total + value for total, value in zip(totals, values, strict=True)]
    return totals


def add_applying(parts: Mapping[str, Sequence[float | None]], n: int) -> Scores:
    """Like `add_parts`, over the parts that apply; `None` where none does."""
    sums = add_parts({part: [value or 0.0 for value in values] for part, values in parts.items()}, n)
    return [total if some else None for total, some in zip(sums, applying(parts, n), strict=True)]


def applying(parts: Mapping[str, Sequence[float | None]], n: int) -> list[bool]:
    """For each of n texts, whether any part applies to it."""
    return [any(values[row] is not None for values in parts.values()) for row in range(n)]


def times(factor: float, scores: Sequence[float | None]) -> Scores:
    """Each score times a factor, where there is one."""
    return [None if score is None else factor * score for score in scores]


def checked(
    scorer: Callable[..., Any], values: Any, completions: Sequence[str], prompts: Sequence[str], part: str = ""
) -> Scores:
    """The values as a list of finite floats and `None`, or a ScorerError."""
    label = f"scorer {scorer_name(scorer)!r}" + (f", part {part!r}" if part else "")
    scores = _as_list(label, values, len(completions))
    if len(scores) != len(completions):
        raise ScorerError(
            f"{label} returned {len(scores)} scores for {len(completions)} texts" + where(0, completions, prompts)
        )
    if {*map(type, scores)} <= {float} and all(map(math.isfinite, scores)):
        return scores  # the short way for most
    return [_number(label, score, row, completions, prompts) for row, score in enumerate(scores)]


def _as_list(label: str, values: Any, n: int) -> list[Any]:
    """The scores of a list, a tuple, an array, a tensor or a column of a table, by position."""
    wanted = f"{label} must return a sequence of {n} floats, got {type(values).__name__} {shown(values)}"
    if isinstance(values, Mapping):
        raise ScorerError(f"{wanted}; named parts are for a method `parts` beside `part_names`")
    ordered = hasattr(values, "__len__") and (hasattr(values, "__iter__") or hasattr(values, "__getitem__"))
    if not ordered or isinstance(values, (str, bytes, bytearray, Set)):
        raise ScorerError(wanted)
    try:
        # what a Series of pandas has between brackets are labels
        return list(values.to_numpy() if hasattr(values, "to_numpy") else values)
    except TypeError as error:  # an array or a tensor without dimensions
        raise ScorerError(wanted) from error


def _number(label: str, value: Any, row: int, completions: Sequence[str], prompts: Sequence[str]) -> float | None:
    """One finite float, or `None`; arrays and tensors of one number are welcome, texts are not."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(_single(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: torch's, of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise ScorerError(f"{label} must return finite numbers, got {shown(value)}" + where(row, completions, prompts))
    return number


def _single(value: Any) -> Any:
    """The Python number in an array or tensor that holds one, and other things as they are."""
    return value.item() if hasattr(value, "item") else value


def applied(
    scorer: Callable[..., Any],
    parts: Mapping[str, Scores],
    completions: Sequence[str],
    prompts: Sequence[str],
) -> dict[str, list[float]]:
    """The parts with 0 for those that do not apply, or a ScorerError where none does."""
    if parts and not all(some := applying(parts, len(completions))):
        row = some.index(False)
        of = f" from all of {', '.join(parts)}" if len(parts) > 1 else ""
        raise ScorerError(
            f"scorer {scorer_name(scorer)!r} must return finite numbers, got None{of}, which says that it does not "
            f"apply, and nothing else scores this text{where(row, completions, prompts)}"
        )
    return {part: [0.0 if score is None else score for score in scores] for part, scores in parts.items()}


def where(row: int, completions: Sequence[str], prompts: Sequence[str]) -> str:
    """Which text it happened on, for the end of a message."""
    if not completions:
        return " (on an empty batch)"
    return f"; row {row}, prompt {_short(prompts[row])}, text {_short(completions[row])}"


def _short(text: Any, limit: int = 200) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else shown[:limit] + "…"
