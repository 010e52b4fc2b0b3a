"""A user who says what a column of the prompt says, line by line, whatever is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textgen_env.notices import shown

if TYPE_CHECKING:
    from textgen_env.episode import Prompt


class Script:
    """Answers each turn with the next line of the prompt's script; after the last one the episode ends, and is scored.

    Args:
        column: of the prompts, a list of texts.
        template: how a line is said; "{text}" stands for it.

    Raises:
        ValueError: a template without "{text}"; when an episode begins, a prompt without such a column.
    """

    def __init__(self, column: str = "script", template: str = "{text}") -> None:
        if not isinstance(template, str) or "{text}" not in template:
            raise ValueError(f"script: template={shown(template)} must be a text with '{{text}}' in it")
        self.column, self.template = column, template
        self._left: dict[int, list[str]] = {}

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Open with nothing."""
        self._left |= {slot: self._lines(prompt) for slot, prompt in zip(slots, prompts, strict=True)}
        return [""] * len(slots)

    def _lines(self, prompt: Prompt) -> list[str]:
        lines = prompt.extra.get(self.column)
        if (
            not isinstance(lines, Sequence)
            or isinstance(lines, str)
            or not all(isinstance(line, str) for line in lines)
        ):
            raise ValueError(
                f"script: the prompt {shown(prompt.text)} must have a column {self.column!r} with a list of texts, got "
                f"{shown(lines)}"
            )
        return list(lines)

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[str | None]:
        """The next line of each."""
        return [
            self.template.replace("{text}", self._left[slot].pop(0)) if self._left[slot] else None for slot in slots
        ]

    def state_dict(self) -> dict[str, Any]:
        """The lines that are left, by slot."""
        return {str(slot): list(lines) for slot, lines in self._left.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with these."""
        self._left = {int(slot): list(lines) for slot, lines in state.items()}

    def clone_state(self, slot: int) -> list[str]:
        """The lines that are left."""
        return list(self._left[slot])

    def restore_state(self, slot: int, state: Sequence[str]) -> None:
        """Go on with these."""
        self._left[slot] = list(state)
