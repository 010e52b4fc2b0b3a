"""Scoring what the agent said last, where an environment answers back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .wrapper import Parts, Wrapper


class LastTurn(Wrapper):
    """The score of the agent's last turn alone: of its answer, not of the calls that led to it.

    Where there are no `turns`, a completion is one turn.

    Args:
        scorer: what is scored.
    """

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """The inner parts, of the last turns."""
        turns = columns.get("turns") or [None] * len(completions)
        last = [text if own is None else _last(own) for text, own in zip(completions, turns, strict=True)]
        return super().parts(last, **columns)


def _last(turns: Sequence[Mapping[str, str]]) -> str:
    own = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return own[-1] if own else ""
