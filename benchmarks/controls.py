"""Rewards that say nothing about a text, in a real reward's place: what a method gains by them, it has not learned.

What lives here: two scorers, for ``--scorer '{"name": "benchmarks.controls:Shuffled", "scorer": "bleu"}'``. What does
not: the runs that use them (``methods.py``).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from textgen_env.scorers.base import score_parts
from textgen_env.scorers.wrapper import Parts, Spec, Wrapper

MEMORY = 256


def constant(completions: Sequence[str]) -> list[float]:
    """½ for every text."""
    return [0.5] * len(completions)


class Shuffled(Wrapper):
    """True scores, each paid to some other text: as large and as varied as the reward itself, and no news.

    A text is paid what one of the last 256 texts scored, drawn with replacement, itself among them. A permutation
    among the texts of one call would still tell something: an environment asks for the scores of the responses that
    end in the same step, which are of one length, and often one alone.

    Args:
        scorer: whose scores.
        seed: of the draws.
    """

    def __init__(self, scorer: Spec, seed: int = 0) -> None:
        super().__init__(scorer)
        self._random = random.Random(seed)
        self._scores: deque[float] = deque(maxlen=MEMORY)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The one part "shuffled"."""
        return ("shuffled",)

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """The true scores are kept, and as many drawn."""
        parts = score_parts(self.scorer, completions, **columns)
        self._scores.extend(map(sum, zip(*parts.values(), strict=True)))
        return {"shuffled": [self._random.choice(self._scores) for _ in completions]}
