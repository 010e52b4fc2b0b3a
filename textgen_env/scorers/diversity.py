"""Rewards against saying the same thing again: distinct n-grams, and a penalty for repeated ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

_UNITS = ("words", "tokens")


class _NgramRule:
    """Counts the n-grams of each completion, in lower-cased words or in the agent's tokens."""

    name: str

    def __init__(self, n: int, unit: str = "words") -> None:
        if n < 1:
            raise ValueError(f"{self.name}: n must be at least 1, got {n}")
        if unit not in _UNITS:
            raise ValueError(f"{self.name}: unit must be one of {', '.join(_UNITS)}, got {unit!r}")
        self.n, self.unit = n, unit

    def __call__(
        self, completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        texts: Sequence[Sequence[Hashable]]
        if self.unit == "words":
            texts = [text.lower().split() for text in completions]
        elif completion_ids is None:
            raise ValueError(f'{self.name}: unit "tokens" needs completion_ids, which were not given')
        else:
            texts = completion_ids
        return [self._score(*self._count(text)) for text in texts]

    def _count(self, units: Sequence[Hashable]) -> tuple[int, int]:
        """Different n-grams, and n-grams."""
        ngrams = list(zip(*(units[i:] for i in range(self.n)), strict=False))
        return len(set(ngrams)), len(ngrams)

    def _score(self, different: int, total: int) -> float:
        raise NotImplementedError


class Distinct(_NgramRule):
    """distinct-n in [0, 1]: different n-grams over all n-grams (Li et al., 2016); higher is better.

    A text with fewer than n words scores 0, so that silence is no way to be diverse.

    Args:
        n: length of the n-grams.
        unit: "words" (lower case, split at white space) or "tokens" of the agent.

    Raises:
        ValueError: n below 1 or unknown unit; when scoring by tokens, no `completion_ids`.
    """

    name = "distinct"

    def __init__(self, n: int = 2, unit: str = "words") -> None:
        super().__init__(n, unit)

    def _score(self, different: int, total: int) -> float:
        return different / total if total else 0.0


class Repetition(_NgramRule):
    """Minus the share of n-grams that came before in the same text, in (−1, 0]; 0 where nothing repeats.

    A text with fewer than n words repeats nothing and scores 0. Arguments as for `Distinct`.
    """

    name = "repetition"

    def __init__(self, n: int = 3, unit: str = "words") -> None:
        super().__init__(n, unit)

    def _score(self, different: int, total: int) -> float:
        return (different - total) / total if total else 0.0
