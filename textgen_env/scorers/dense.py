"""Rewards at every token: any scorer as a potential, and scorers that give one value per token.

A dense scorer is asked after every step with the texts so far and returns potentials Φ. The environment pays
Φ(s_{t+1}) − Φ(s_t) with Φ(s_0) = 0, so that the rewards of an episode add up to the score of its last state: shaping
that leaves the sum as it is (Ng, Harada & Russell, 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .answers import ScorerError, Scores, scorer_name
from .base import bound, call_unchecked
from .wrapper import Wrapper


class Dense(Wrapper):
    """Any scorer as a potential: each token is paid what it adds to the score of the text so far.

    The scorer sees unfinished texts too, with `None` among `finish_reasons`. It is asked at every step: use fast ones.

    Args:
        scorer: the potential.
    """

    @property
    def dense(self) -> bool:
        """Always."""
        return True


class TokenRewards:
    """Token-level rewards from a function that returns one value per token.

    `function(completions, *, completion_ids, prompts, …)` returns a list for each text, as long as its
    `completion_ids`, or `None` where it does not apply. The potential is the sum of the list. Each token is paid
    exactly its own value where that value does not depend on the tokens after it.

    Args:
        function: the callable; it is called like a scorer, at every step.
        name: name of the part and in errors (default: the function's).
    """

    dense = True

    def __init__(self, function: Callable[..., Sequence[Sequence[float]]], name: str | None = None) -> None:
        if not callable(function):
            raise TypeError(f"token_rewards: function must be a function, got {type(function).__name__} {function!r}")
        self.function = function
        self.name = name or scorer_name(function)
        self.needs_policy = bound(function).needs_policy

    def __call__(
        self, completions: Sequence[str], *, completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> Scores:
        columns = {"completion_ids": completion_ids, **columns}
        rows = call_unchecked(self.function, completions, **columns)
        if len(rows) != len(completions):
            raise ScorerError(f"scorer {self.name!r} returned {len(rows)} lists for {len(completions)} texts")
        for row, (values, ids) in enumerate(zip(rows, completion_ids, strict=True)):
            if values is not None and len(values) != len(ids):
                raise ScorerError(
                    f"scorer {self.name!r} must return one value per token: row {row} has {len(ids)} tokens, "
                    f"got {len(values)} values; text {completions[row]!r}"
                )
        return [None if values is None else float(sum(values)) for values in rows]
