"""Playing with environments that answer back: texts as tokens, and responders that answer from a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textgen_env.responders import Reply

BOS, EOS = 1, 2  # of the byte model


def letters(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def ids(env: Any, text: str) -> list[int]:
    """Tokens of a text; "$" is EOS."""
    tokens = [[EOS] if one == "$" else env.tokenizer.encode(one, add_special_tokens=False) for one in text]
    return [token for several in tokens for token in several]


def play(env: Any, text: str) -> list[tuple[Any, ...]]:
    """What each step returned; the episode must not end before the text does."""
    return [env.step(token) for token in ids(env, text)]


def row(observation: dict[str, Any]) -> tuple[list[int], list[int]]:
    length = observation["attention_mask"].sum()
    return observation["input_ids"][:length].tolist(), observation["response_mask"][:length].tolist()


class Scripted:
    """Answers from a list, the same for every slot; notes what it was asked."""

    def __init__(self, *replies: Any, opening: str = "") -> None:
        self.replies, self.opening = list(replies), opening
        self.asked: list[tuple[int, str]] = []
        self.begun: list[tuple[int, str, int]] = []
        self.turn: dict[int, int] = {}

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.begun += [(slot, prompt.text, seed) for slot, prompt, seed in zip(slots, prompts, seeds, strict=True)]
        self.turn |= dict.fromkeys(slots, 0)
        return [self.opening] * len(slots)

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        self.asked += zip(slots, texts, strict=True)
        for slot in slots:
            self.turn[slot] += 1
        return [self.replies[self.turn[slot] - 1] for slot in slots]


class Saving(Scripted):
    """The same, with a state that can be kept."""

    def state_dict(self) -> dict[str, Any]:
        return {"turn": {str(slot): turn for slot, turn in self.turn.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turn = {int(slot): turn for slot, turn in state["turn"].items()}


def answering(text: str) -> Any:
    """Answers in each of the ways there are, as the last letter of the text says."""
    if text.endswith("!"):
        raise TimeoutError("no answer")
    ends = {"a": None, "b": Reply("over", reward=0.5, terminated=True), "c": Reply("", reward=-0.5, truncated=True)}
    return ends.get(text[-1:], Reply(f"<{text}>", info={"length": len(text)}))
