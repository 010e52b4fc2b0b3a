"""What a store of preferences gives out: tasks, what was said, opinions of a reward model, progress.

What lives here: these records. What does not: where they come from (``store.py``), a pair and its choice
(``pairs.py``).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal

from .pairs import Pair

OWN = ("strength", "comment", "left")
"""Columns of a pair that belong to a choice: how much better, a free comment, and which response stood on the left."""


@dataclass(frozen=True)
class Said:
    """A choice, or a skip, and its pair.

    Attributes:
        number: of the pair.
        pair: with the choice, and in its columns what of `OWN` was said; without a choice where it was skipped.
        withdrawn: when it was taken back or replaced, as ``pair.when`` has it; None while it stands.
    """

    number: int
    pair: Pair
    withdrawn: str | None = None

    @property
    def skipped(self) -> bool:
        """The rater left it for later, or for others."""
        return self.pair.choice is None


@dataclass(frozen=True)
class Task:
    """A pair that a rater is asked about.

    Attributes:
        number: of the pair, in the store.
        pair: without what others say of it.
        left: which response is to stand on the left.
        elapsed: seconds since the pair was given to them.
    """

    number: int
    pair: Pair
    left: Literal["a", "b"] = "a"
    elapsed: float = 0.0


@dataclass(frozen=True)
class Opinion:
    """What a reward model thinks of a pair: r_a − r_b, and its standard deviation over the members of an ensemble."""

    model: str
    difference: float
    spread: float | None = None

    @property
    def probability(self) -> float:
        """P(a ≻ b) = σ(r_a − r_b)."""
        return 0.5 * (1 + math.tanh(0.5 * self.difference))


@dataclass(frozen=True)
class Progress:
    """How far the labelling is.

    Attributes:
        pairs: in the store.
        answered: pairs with as many choices as are asked for.
        own: choices of one rater.
        last: what that rater did last, a choice or a skip, as far as it stands.
    """

    pairs: int
    answered: int
    own: int
    last: Said | None


def left_side(number: int, who: str) -> Literal["a", "b"]:
    """Which response of a pair a rater sees on the left: even odds, and the same each time they see it."""
    digest = hashlib.blake2b(json.dumps([number, who]).encode(), digest_size=1).digest()
    return "b" if digest[0] & 1 else "a"
