"""A person at the terminal as the other side of a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from textgen_env.render import visible

if TYPE_CHECKING:
    from textgen_env.episode import Prompt

from .base import Reply, ReplyLike

END, CUT = "/end", "/cut"


class Person:
    """Shows each turn of the agent's and reads a line for a reply; control characters are made visible.

    "/end" ends the episode, which is scored; a number behind it is what the person pays for the turn: "/end 0.5".
    "/cut", and the end of the input, say that the person is gone: the episode fails.

    Args:
        ask: shows a text and returns a line, like `input`.
        tell: shows a line, like `print`.
    """

    def __init__(self, ask: Callable[[str], str] = input, tell: Callable[[str], Any] = print) -> None:
        self.ask, self.tell = ask, tell

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Show the prompts."""
        for slot, prompt in zip(slots, prompts, strict=True):
            self.tell(f"[{slot}] {visible(prompt.text)}")
        return [""] * len(slots)

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[ReplyLike]:
        """One line for each, one after the other."""
        return [self._reply(slot, text) for slot, text in zip(slots, texts, strict=True)]

    def _reply(self, slot: int, text: str) -> ReplyLike:
        self.tell(f"[{slot}] agent: {visible(text)}")
        while True:
            try:
                line = self.ask(f"[{slot}] you: ")
            except EOFError:
                return ConnectionError("the person has closed the input")
            word, _, rest = line.strip().partition(" ")
            if word == CUT:
                return ConnectionError("the person has left")
            if word != END:
                return line
            try:
                return Reply("", reward=float(rest or 0.0), terminated=True)
            except ValueError:
                self.tell(f"{END} takes a number, or nothing; {rest!r} is none")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what was said stands in the episode."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing to load."""
