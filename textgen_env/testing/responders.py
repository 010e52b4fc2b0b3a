"""What any responder must do, whatever it answers. How its replies become tokens is tested by the package itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from textgen_env.episode import Prompt
from textgen_env.responders import Reply, as_responder
from textgen_env.responders.base import checked


class ResponderContract:
    """Promises of a responder. Override `make_responder`, and `prompts` and `texts` for what it is to be told."""

    slots: Sequence[int] = (0, 2, 5)
    texts: Sequence[str] = ("hello", "", "two words", "ünï 日本 🙂 {}", " \n ", "<eos>")

    def make_responder(self) -> Any:
        """A fresh responder; each call the same."""
        raise NotImplementedError

    def prompts(self) -> list[Prompt]:
        """A prompt for each of `slots`."""
        return [Prompt("Once upon a time"), Prompt("Say:"), Prompt("Calculate 2 + 3.")]

    def begin(self, responder: Any, at: Sequence[int]) -> list[str]:
        """Reset the slots at these places: their openings, checked."""
        prompts = self.prompts()
        slots, seeds = [self.slots[i] for i in at], [17 + i for i in at]
        openings = list(responder.reset(slots, [prompts[i] for i in at], seeds))
        assert len(openings) == len(at)
        assert all(isinstance(text, str) for text in openings)
        return openings

    def ask(self, responder: Any, at: Sequence[int], text: str) -> list[Reply | None]:
        """Tell the slots at these places a text: the replies, checked."""
        slots = [self.slots[i] for i in at]
        replies = list(responder.respond(slots, [text] * len(at)))
        assert len(replies) == len(at)
        return [None if one is None else checked(one, slot) for slot, one in zip(slots, replies, strict=True)]

    def play(self, responder: Any, at: Sequence[int]) -> list[list[Any]]:
        """What the slots at these places hear when they are told all texts, up to where their episode ends."""
        heard: list[list[Any]] = [[opening] for opening in self.begin(responder, at)]
        running = list(at)
        for text in self.texts:
            for i, reply in zip(running, self.ask(responder, running, text), strict=True):
                heard[list(at).index(i)].append(reply)
            running = [i for i in running if not _over(heard[list(at).index(i)][-1])]
        return heard

    def fresh(self) -> Any:
        """A fresh responder as an environment uses it."""
        return as_responder(self.make_responder())

    def test_one_reply_per_slot(self) -> None:
        self.play(self.fresh(), range(len(self.slots)))

    def test_same_seeds_same_replies(self) -> None:
        everywhere = range(len(self.slots))
        responder = self.fresh()
        first = self.play(responder, everywhere)
        assert self.play(self.fresh(), everywhere) == first
        assert self.play(responder, everywhere) == first, "reset leaves something of the episode before"

    def test_slots_do_not_hear_of_each_other(self) -> None:
        together = self.play(self.fresh(), range(len(self.slots)))
        responder = self.fresh()
        assert [self.play(responder, [i])[0] for i in range(len(self.slots))] == together

    def test_a_reset_leaves_other_slots_alone(self) -> None:
        alone, disturbed = self.fresh(), self.fresh()
        self.begin(alone, [0])
        self.begin(disturbed, [0, 1])
        for text in self.texts:
            replies = [self.ask(responder, [0], text)[0] for responder in (alone, disturbed)]
            assert replies[0] == replies[1]
            if _over(replies[0]):
                break
            self.begin(disturbed, [1])

    def test_a_saved_state_goes_on(self) -> None:
        responder, other = self.fresh(), self.fresh()
        if not hasattr(responder, "state_dict"):
            return  # the environment refuses to save running episodes
        everywhere = range(len(self.slots))
        self.begin(responder, everywhere)
        running = [
            i
            for i, reply in zip(everywhere, self.ask(responder, everywhere, self.texts[0]), strict=True)
            if not _over(reply)
        ]
        other.load_state_dict(json.loads(json.dumps(responder.state_dict(), allow_nan=False)))
        assert self.ask(other, running, self.texts[-1]) == self.ask(responder, running, self.texts[-1])


def _over(reply: Any) -> bool:
    """Whether an episode ends with this reply."""
    return reply is None or reply.terminated or reply.truncated
