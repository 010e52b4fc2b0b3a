"""Reward by reasoning-gym's own judgement of an answer. Where questions come from is `reasoning_tasks.py`'s affair."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from textgen_env.notices import shown
from textgen_env.reasoning_tasks import COLUMN, PREFIX, dataset_of


class ReasoningGym:
    """What `score_answer` of the prompt's data set says of the answer, from 0 to 1.

    Data sets judge as they see fit: some by equality with the one right answer, some by checking the answer, many with
    a little for answers that are nearly right. An answer that a data set's judge cannot read, and raises at, scores 0.

    Args:
        tag: the answer is what stands in the last <tag>…</tag> of the text, and none (0) if there is no such place;
            None: the whole text, without white space around it.

    Raises:
        ValueError: a tag that is none; when scoring, prompts that are not of reasoning-gym.
    """

    name = "reasoning-gym"

    def __init__(self, tag: str | None = None) -> None:
        if tag is not None and not (isinstance(tag, str) and re.fullmatch(r"\w+", tag)):
            raise ValueError(f"reasoning-gym: tag={shown(tag)} must be one word, such as 'answer', or None")
        self._place = None if tag is None else re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL)

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        addresses = columns.get(COLUMN) or [None] * len(completions)
        return [self._score(*one) for one in zip(completions, addresses, strict=True)]

    def _score(self, text: str, address: Any) -> float:
        if not isinstance(address, Mapping) or not {"dataset", "index"} <= address.keys():
            raise ValueError(
                f"reasoning-gym: a prompt has no column {COLUMN!r} that says which question it is; take prompts="
                f'"{PREFIX}basic_arithmetic" or the like'
            )
        made = dataset_of(address)
        entry = made[int(address["index"])]
        try:
            return float(made.score_answer(self._answer(text), entry))
        except Exception:  # it is a function of the answer, which is nothing like one
            return 0.0

    def _answer(self, text: str) -> str | None:
        if self._place is None:
            return text.strip()
        found = self._place.findall(text)
        return found[-1].strip() if found else None
