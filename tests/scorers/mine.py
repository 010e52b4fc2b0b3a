"""Scorers of a user's own, which tests name by module and attribute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Longer:
    """1 where a text has more than `than` characters."""

    name = "longer"

    def __init__(self, than: int = 3) -> None:
        self.than = than

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [float(len(text) > self.than) for text in completions]

    @classmethod
    def than_ten(cls) -> Longer:
        return cls(10)


def size(completions: Sequence[str], factor: float = 1.0) -> list[float]:
    return [factor * len(text) for text in completions]


def trl_form(prompts: list[str], completions: list[str], target: int = 0, **kwargs: Any) -> list[float]:
    return [-abs(len(text) - target) * 1.0 for text in completions]


def any_name(texts: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in texts]


async def judged(completions: Sequence[str], **_: Any) -> list[float]:
    return [0.5 for _ in completions]


def make_longer(than: int = 3) -> Longer:
    return Longer(than)


class SoftLimit:
    """1 up to limit + margin."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [float(len(text) <= self.most) for text in completions]


def make_soft_limit(limit: int, margin: int) -> Callable[..., list[float]]:
    """As TRL's `get_soft_overlong_punishment`: all of its arguments are needed."""
    return SoftLimit(limit + margin)


def make_nothing() -> None:
    return None


longer_than_two = Longer(2)
NUMBER = 3
