"""What a setting of a run may be: one table of rules for each group of settings, checked when the group is made.

What lives here: the rules, and `check`, which applies them. What does not: the settings and their meaning
(``run_settings.py``, ``policy.py``, each algorithm's own file).
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What one setting may be: ``wanted`` says it in words, ``right`` decides, ``read`` refuses other types."""

    wanted: str
    right: Callable[[Any], bool]
    read: Callable[[Any], Any]
    optional: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        """The value as plain Python.

        Raises:
            TypeError: the wrong type.
            ValueError: out of range, NaN or infinite.
        """
        if value is None and self.optional:
            return None
        wanted = f"{self.wanted}, or None" if self.optional else self.wanted
        try:
            plain = self.read(value)
        except TypeError:
            raise TypeError(f"{name}={value!r} must be {wanted}, not {type(value).__name__}") from None
        if not self.right(plain):
            raise ValueError(f"{name}={value!r} must be {wanted}")
        return plain


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    try:
        as_float = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf
    return value if type(value) is int else as_float


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


def whole(least: int, most: int | None = None) -> Rule:
    """An integer in [least, most]."""
    wanted = f"a whole number ≥ {least}" if most is None else f"a whole number from {least} to {most}"
    return Rule(wanted, lambda x: least <= x and (most is None or x <= most), _integer)


def number(wanted: str, right: Callable[[float], bool]) -> Rule:
    """A finite number with a property."""
    return Rule(wanted, lambda x: math.isfinite(x) and right(x), _number)


def choice(*names: str) -> Rule:
    """One of some texts."""
    return Rule(" or ".join(f'"{name}"' for name in names), lambda x: x in names, _exactly(str))


def optional(rule: Rule) -> Rule:
    """The same, or None."""
    return replace(rule, optional=True)


INTEGER = Rule("a whole number", lambda _: True, _integer)
COUNT = whole(1)
COUNT_OR_ZERO = whole(0)
SEED = whole(0, 2**32 - 1)  # what numpy's global generator takes, which SB3 seeds
POSITIVE = number("a finite number > 0", lambda x: x > 0)
NOT_NEGATIVE = number("a finite number ≥ 0", lambda x: x >= 0)
SHARE = number("a number from 0 to 1", lambda x: 0 <= x <= 1)
MASS = number("a number above 0 and up to 1", lambda x: 0 < x <= 1)
FLAG = Rule("True or False", lambda _: True, _exactly(bool))
TEXT = Rule("a text that is not empty", bool, _exactly(str))


def check(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Apply each rule to the attribute of its name, which becomes plain Python (no numpy scalars).

    Raises:
        TypeError, ValueError: what was given, and what would be right.
    """
    for name, rule in rules.items():
        setattr(settings, name, rule(name, getattr(settings, name)))
