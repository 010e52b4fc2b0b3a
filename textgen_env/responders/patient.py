"""Patience with a responder that is slow or not always there: a time limit for each turn, and further attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from textgen_env.notices import shown

from .base import ReplyLike, Unavailable
from .in_time import Call, check_patience, in_time
from .registry import as_responder

if TYPE_CHECKING:
    from textgen_env.episode import Prompt


class Patient:
    """Asks a responder for one slot at a time, side by side, each with a time limit.

    A slot in which it does not answer in time fails: its episode is truncated and not scored, and the others go on.
    Python cannot end what runs in a thread: until the late answer has come, and been dropped, further episodes of that
    slot fail too, so that the responder is never asked twice at once about one slot.

    Args:
        responder: a name, a mapping, a function or an object, see `as_responder`; thread-safe between slots.
        timeout: seconds for each turn, and to begin an episode.
        retries: further attempts after a `TimeoutError`, `ConnectionError` or `Unavailable` that it raises or returns;
            a turn that it was too late with is not put to it again.
        backoff: seconds before the first of these, then twice as many, …
        workers: slots that are asked at a time.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, responder: Any, timeout: float = 30.0, retries: int = 0, backoff: float = 0.5, workers: int = 16
    ) -> None:
        if timeout is None:
            raise ValueError("patient: timeout=None must be a number of seconds > 0")
        check_patience("patient", timeout, retries, backoff, workers)
        self.responder = as_responder(responder)
        self.patience: dict[str, Any] = {"timeout": timeout, "retries": retries, "backoff": backoff, "workers": workers}
        self._late: dict[int, Call] = {}

    def __getattr__(self, name: str) -> Any:
        """What else the responder has: its role and tools, and how it is saved and branches."""
        if name.startswith("_") or name == "responder":
            raise AttributeError(name)
        return getattr(self.responder, name)

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Any]:
        """The openings of the episodes."""
        begin, rows = self.responder.reset, zip(slots, prompts, seeds, strict=True)
        return self._ask(slots, [partial(begin, [slot], [prompt], [seed]) for slot, prompt, seed in rows])

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[ReplyLike]:
        """The replies."""
        rows = zip(slots, texts, strict=True)
        return self._ask(slots, [partial(self.responder.respond, [slot], [text]) for slot, text in rows])

    def _ask(self, slots: Sequence[int], questions: Sequence[Callable[[], Any]]) -> list[Any]:
        self._late = {slot: call for slot, call in self._late.items() if call.running}
        free = [index for index, slot in enumerate(slots) if slot not in self._late]
        results: list[Any] = [Unavailable("the answer to an earlier turn has not come yet")] * len(slots)
        found, late = in_time([partial(_only, questions[index]) for index in free], **self.patience)
        for index, result in zip(free, found, strict=True):
            results[index] = result
        self._late |= {slots[free[number]]: call for number, call in late.items()}
        return results


def _only(question: Callable[[], Any]) -> Any:
    """The one answer to a question about one slot; an exception that is returned is raised, to be asked again."""
    answers = question()
    if isinstance(answers, (str, bytes, Mapping)) or not isinstance(answers, Sequence) or len(answers) != 1:
        return answers if isinstance(answers, Exception) else TypeError(f"patient: got {shown(answers)} for one slot")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]
