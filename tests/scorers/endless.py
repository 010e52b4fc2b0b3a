"""Scorers that do not answer, for the tests of what ends them: a process of its own imports this file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any


def spin(completions: Sequence[str], **_: Any) -> list[float]:
    """Never returns for a text "spin"; otherwise prints, and scores by length."""
    print("a scorer may print")
    while "spin" in completions:
        pass
    return [float(len(text)) for text in completions]


def backtrack(completions: Sequence[str]) -> list[float]:
    """Python's `re`, which holds all threads up while it searches."""
    return [float(re.search("^(a|aa)+$", text) is not None) for text in completions]


def crash(completions: Sequence[str]) -> list[float]:
    """Ends its process on a text "crash"."""
    if "crash" in completions:
        os._exit(7)
    return [1.0] * len(completions)


def process_id(completions: Sequence[str]) -> list[float]:
    """Where it is asked."""
    return [float(os.getpid())] * len(completions)


def sometimes(completions: Sequence[str]) -> list[float | None]:
    """Does not apply to some texts, and raises for others."""
    return [None if text == "none" else 1.0 / len(text) for text in completions]


class Fitted:
    """How many references its task has, and whether its models were loaded."""

    name = "fitted"
    count = loaded = 0

    def fit_references(self, references: Sequence[Sequence[str]]) -> None:
        self.count = len(references)

    def load_models(self) -> None:
        self.loaded = 1

    def __call__(self, completions: Sequence[str]) -> list[float]:
        return [float(self.count + 100 * self.loaded)] * len(completions)


class NotHere:
    """Can be pickled, but not be made again elsewhere."""

    name = "not_here"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ("", "no such attribute")

    def __call__(self, completions: Sequence[str]) -> list[float]:
        return [0.0] * len(completions)
