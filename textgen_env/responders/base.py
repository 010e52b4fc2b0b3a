"""What an environment that answers back is, and what it says. No responder of a kind lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from textgen_env.notices import shown

if TYPE_CHECKING:
    from textgen_env.episode import Prompt


@dataclass(frozen=True, slots=True)
class Reply:
    """What the environment does when the agent's turn is over.

    Attributes:
        text: what it writes behind the agent's turn; may be empty.
        reward: what it pays for the turn: the part "environment" of the reward of the token that ended it.
        terminated: whether the episode is over, as far as the environment is concerned.
        truncated: whether the episode is cut at the task's horizon. Like every end but a failure, it is scored.
        info: for the `info` of the step, under "reply_info"; plain values.
    """

    text: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class Unavailable(Exception):
    """What the environment needs is not there (a service, a process): nobody's fault, so no score comes of it."""


ReplyLike: TypeAlias = "Reply | str | Exception | None"


def checked(reply: Any, slot: int) -> Reply:
    """A reply, if it is one.

    Raises:
        TypeError, ValueError: it is none, or a field of it is of another type or not finite.
    """
    reply = Reply(reply) if isinstance(reply, str) else reply
    where = f"responder: respond returned {shown(reply)} for slot {slot}"
    if not isinstance(reply, Reply):
        raise TypeError(f"{where}; it must be a Reply, a text, None, or an exception where the environment failed")
    wanted = {"text": str, "reward": (int, float, np.number), "terminated": (bool, np.bool_)}
    wanted |= {"truncated": (bool, np.bool_), "info": Mapping}
    for name, kind in wanted.items():
        value = getattr(reply, name)
        if not isinstance(value, kind) or (name == "reward" and isinstance(value, bool)):  # type: ignore[arg-type]
            raise TypeError(f"{where}: {name}={shown(value)} is of the wrong type, {type(value).__name__}")
    if not isfinite(reply.reward):
        raise ValueError(f"{where}: reward={reply.reward} must be a finite number")
    if reply.terminated and reply.truncated:
        raise ValueError(f"{where}: terminated and truncated are both True; an episode ends in one way")
    return reply


class Responder(Protocol):
    """An environment that answers back, for all slots in which the agent's turn ended in the same step.

    An object may also have

    * `state_dict() -> JSON values` and `load_state_dict(state)`, without which an environment cannot be saved while an
      episode runs, and `clone_state(slot) -> JSON values` and `restore_state(slot, state)`, without which its episodes
      cannot branch;
    * `role`: whose messages its replies are where the prompt is a conversation; "user" if it does not say;
    * `tool_schemas`: JSON schemas of functions that the chat template tells the model of.
    """

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[str]:
        """Begin episodes.

        Args:
            slots: m slot numbers; whatever was known of these is over.
            prompts: m prompts, with their references and further columns (`prompt.extra`).
            seeds: m integers from the slots' generators; all that is random in an episode should come from its seed.

        Returns:
            What the environment writes behind each prompt before the agent begins; "" for nothing.
        """

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> Sequence[ReplyLike]:
        """Answer turns of the agent's.

        Args:
            slots: m different slots, in ascending order.
            texts: what the agent wrote in its turn, without special tokens.

        Returns:
            For each a `Reply`, or a text alone; None ends the episode, which is scored as if the agent had been alone;
            an exception says that the environment failed in this slot: its episode is truncated and not scored. An
            exception that is raised says so of all m.
        """


class PerText:
    """A function of one text as a responder; where it raises, that slot alone fails.

    It keeps nothing between calls, as far as we know, so that there is nothing to save, unless it says so by
    `state_dict` and `load_state_dict`.

    Args:
        function: `f(text) -> str | Reply | None`.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.function = function

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[str]:
        """Open with nothing."""
        return [""] * len(slots)

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[ReplyLike]:
        """Ask the function for each text."""
        return [self._ask(text) for text in texts]

    def _ask(self, text: str) -> Any:
        try:
            return self.function(text)
        except Exception as error:
            return error

    def state_dict(self) -> dict[str, Any]:
        """What the function keeps."""
        return self.function.state_dict() if hasattr(self.function, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the function what it kept."""
        if hasattr(self.function, "load_state_dict"):
            self.function.load_state_dict(state)

    def __repr__(self) -> str:
        return f"PerText({self.function!r})"
