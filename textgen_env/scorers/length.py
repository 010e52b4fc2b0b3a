"""Reward for the length of a completion: a target, or bounds. Penalties for running out of room: `penalties.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNITS = ("words", "characters", "tokens")


class Length:
    """How well a completion keeps to a length, in [0, 1]: 1 inside the bounds, falling linearly outside.

    Below `minimum` the reward is n / minimum; above `maximum` it is 1 − (n − maximum) / maximum, and 0 from twice the
    maximum on. `target=t` stands for `minimum=t, maximum=t`.

    Args:
        target: the length that is wanted; excludes the other two.
        minimum, maximum: bounds; either may be left out.
        unit: "words" (split at white space), "characters", or "tokens" of the agent, EOS included.

    Raises:
        ValueError: no bound at all, bounds that contradict each other, or an unknown unit; when scoring by tokens, no
            `completion_ids`.
    """

    name = "length"

    def __init__(
        self,
        target: int | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
        unit: str = "words",
    ) -> None:
        if unit not in _UNITS:
            raise ValueError(f"length: unit must be one of {', '.join(_UNITS)}, got {unit!r}")
        if (target is None) == (minimum is None and maximum is None):
            raise ValueError(
                f"length: give either target or minimum and/or maximum, got {target=}, {minimum=}, {maximum=}"
            )
        self.minimum = target if target is not None else minimum or 0
        self.maximum = target if target is not None else maximum
        if self.minimum < 0 or (self.maximum is not None and self.maximum < max(self.minimum, 1)):
            raise ValueError(
                f"length: need 0 <= minimum <= maximum and maximum >= 1, got {self.minimum} and {self.maximum}"
            )
        self.unit = unit

    def __call__(
        self, completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        if self.unit == "characters":
            lengths = [len(text) for text in completions]
        elif self.unit == "words":
            lengths = [len(text.split()) for text in completions]
        elif completion_ids is None:
            raise ValueError('length: unit "tokens" needs completion_ids, which were not given')
        else:
            lengths = [len(ids) for ids in completion_ids]
        return [self._score(length) for length in lengths]

    def _score(self, length: int) -> float:
        if length < self.minimum:
            return length / self.minimum
        if self.maximum is not None and length > self.maximum:
            return max(0.0, 1.0 - (length - self.maximum) / self.maximum)
        return 1.0
