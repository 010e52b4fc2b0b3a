"""Scorers less a penalty for how a text ended: without EOS, or after too many tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .answers import Scores, applying
from .wrapper import Parts, Spec, Wrapper

ENDED = ("eos", "stop", "environment", "horizon")


class EosPenalty(Wrapper):
    """The score less a penalty where a text did not end by itself, as the part "eos_penalty".

    A text ends by itself when its entry in `finish_reasons` is in `accept`: by default every reason but "length". Where
    the environment ended the episode, or its horizon came ("environment", "horizon"), the agent has broken nothing off.
    Unfinished texts (`None`) are not punished.

    Args:
        scorer: what is scored besides.
        penalty: what is subtracted, ≥ 0.
        accept: finish reasons that are fine.

    Raises:
        ValueError: a negative penalty; when scoring, no `finish_reasons`.
    """

    def __init__(self, scorer: Spec, penalty: float = 1.0, accept: Sequence[str] = ENDED) -> None:
        super().__init__(scorer)
        if not 0 <= penalty < math.inf:
            raise ValueError(f"eos_penalty: penalty must be at least 0, got {penalty}")
        if isinstance(accept, str):
            raise ValueError(f"eos_penalty: accept must be a list of finish reasons, got the text {accept!r}")
        self.penalty, self.accept = penalty, (None, *accept)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner parts, and "eos_penalty"."""
        return (*super().part_names, "eos_penalty")

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """The inner parts and the penalty."""
        if columns.get("finish_reasons") is None:
            raise ValueError("eos_penalty: needs finish_reasons, which were not given")
        penalties = [0.0 if reason in self.accept else -self.penalty for reason in columns["finish_reasons"]]
        return _with_penalties(super().parts(completions, **columns), "eos_penalty", penalties)


class OverlongPenalty(Wrapper):
    """The score less a penalty that grows with the tokens beyond a length, as the part "overlong_penalty".

    0 up to `maximum` − `margin` tokens, falling linearly to −`penalty` at `maximum` and staying there: the soft
    overlong punishment of DAPO (Yu et al., 2025, equation 13). Tokens are the agent's, EOS included. Unfinished texts
    are not punished.

    Args:
        scorer: what is scored besides.
        maximum: tokens at which the whole penalty is due.
        margin: tokens before that over which it grows, 0 < margin ≤ maximum.
        penalty: the whole penalty, ≥ 0.

    Raises:
        ValueError: an argument outside its range; when scoring, no `completion_ids`.
    """

    def __init__(self, scorer: Spec, maximum: int, margin: int, penalty: float = 1.0) -> None:
        super().__init__(scorer)
        if not (0 < margin <= maximum and 0 <= penalty < math.inf):
            raise ValueError(
                f"overlong_penalty: need 0 < margin <= maximum and penalty >= 0, got {margin=}, {maximum=}, {penalty=}"
            )
        self.maximum, self.margin, self.penalty = maximum, margin, penalty

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner parts, and "overlong_penalty"."""
        return (*super().part_names, "overlong_penalty")

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """The inner parts and the penalty."""
        if columns.get("completion_ids") is None:
            raise ValueError("overlong_penalty: needs completion_ids, which were not given")
        lengths = [len(ids) for ids in columns["completion_ids"]]
        reasons = columns.get("finish_reasons") or ["eos"] * len(lengths)
        penalties = [
            0.0 if reason is None else self._penalty(length) for length, reason in zip(lengths, reasons, strict=True)
        ]
        return _with_penalties(super().parts(completions, **columns), "overlong_penalty", penalties)

    def _penalty(self, length: int) -> float:
        beyond = length - (self.maximum - self.margin)
        return -self.penalty * min(max(beyond / self.margin, 0.0), 1.0)


def _with_penalties(inner: Parts, name: str, penalties: Sequence[float]) -> Parts:
    """The inner parts and one more, which applies where they do."""
    some = applying(inner, len(penalties))
    own: Scores = [penalty if applies else None for penalty, applies in zip(penalties, some, strict=True)]
    return {**inner, name: own}
