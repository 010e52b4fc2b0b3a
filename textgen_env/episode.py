"""What an episode is made of, and the state of n of them: who wrote which token, what it earned, how it ended.

Numpy only. Nothing here knows a language model, a scorer or Gymnasium.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class FinishReason(str, Enum):
    """Why an episode ended: by the agent, by a limit, or by an environment that answers back.

    Attributes:
        EOS: the agent's EOS token (and no reply followed).
        STOP: a stop string in the agent's text, or a turn string (and no reply followed).
        LENGTH: `max_new_tokens`.
        ENVIRONMENT: the environment terminated it.
        HORIZON: the environment cut it at the task's horizon.
        FAILED: the environment failed; such an episode is not scored, and nothing can be learned from it.
    """

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    ENVIRONMENT = "environment"
    HORIZON = "horizon"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, or a conversation to answer.

    Attributes:
        text: what the language model reads before its first token; not empty. Of a conversation, which the model reads
            as its chat template writes it, what the user said last: what scorers and people read.
        references: texts that a good completion resembles; may be empty.
        extra: further columns of the data set, handed to the scorer as keyword arguments.
        messages: the conversation, `{"role": …, "content": …}` each; None where the prompt is a text.
    """

    text: str
    references: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What the agent wrote after a prompt.

    Attributes:
        prompt: the prompt it answers.
        text: the decoded response, without special tokens and without the stop string that ended it; its turns joined.
        token_ids: the response's tokens as the agent chose them; the truth that `text` is a view of.
        finish_reason: why it ended; None while it is being written.
        turns: what agent and environment said by turns, `{"role": "assistant" | "environment", "content": …}`; None
            where no environment answers back.
        input_ids: the whole prefix, prompt and all; empty where nobody asks for it.
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    turns: tuple[dict[str, str], ...] | None = None
    input_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of n slots brought; every array is (n,), 0 or False in slots that were not stepped.

    Attributes:
        rewards: float64, the sum of the parts.
        terminated: bool.
        truncated: bool.
        reward_parts: float64 by name.
        ref_log_prob: float64, or None when no reference is on.
        endings: by slot, the `info` of each episode that ended.
        added: by slot, what else is in the `info`: what a reply of the environment adds to it.
    """

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reward_parts: dict[str, NDArray[np.float64]]
    ref_log_prob: NDArray[np.float64] | None
    endings: dict[int, dict[str, Any]]
    added: dict[int, Mapping[str, Any]]


class Snapshot(NamedTuple):
    """Where m playing slots stood before a step: what `Episodes.restore` cannot tell from what is there."""

    lengths: NDArray[np.int64]
    potentials: NDArray[np.float64]
    environment_rewards: NDArray[np.float64]


class Episodes:
    """The states of n episodes, one row per slot: right-padded tokens of width L, and what is known of each.

    Appending writes the new columns alone, so that its cost does not depend on how long the rows are.

    Attributes:
        input_ids: int64 (n, L); `pad_token_id` beyond a row's length.
        attention_mask: int8 (n, L); 1 on the row's tokens.
        response_mask: int8 (n, L); 1 on the tokens that the agent wrote, wherever they stand.
        lengths: int64 (n,); tokens in each row.
        prompt_lengths: int64 (n,); how many of them are the prompt's.
        prompts: what each slot's episode began with; None before its first.
        playing: bool (n,); False before a reset and after the end of an episode.
        finish_reasons: why it ended; None while it plays, before the first, and when it was cut from outside.
        handovers: the columns at which somebody stopped writing, in order: the end of the prompt, of the environment's
            opening, of the agent's first turn, of the reply, and so on by turns. Without an environment that writes,
            the end of the prompt, twice.
        environment_texts: what the environment wrote: its opening and its replies.
        potentials: float64 (n, parts); the scorer's Φ of each episode so far, by part.
        environment_rewards: float64 (n,); what the environment itself has paid in each episode so far.
        token_rewards: float64 (n, L); what each of the agent's tokens earned, NaN elsewhere.
        token_ref_log_probs, token_kls: the same for log π_ref and for the KL, in nats; NaN where unknown.
    """

    def __init__(self, slots: int, width: int, pad_token_id: int, parts: int = 1) -> None:
        self.pad_token_id = pad_token_id
        self.input_ids: NDArray[np.int64] = np.full((slots, width), pad_token_id, dtype=np.int64)
        self.attention_mask: NDArray[np.int8] = np.zeros((slots, width), dtype=np.int8)
        self.response_mask: NDArray[np.int8] = np.zeros((slots, width), dtype=np.int8)
        self.lengths: NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        self.prompt_lengths: NDArray[np.int64] = np.zeros(slots, dtype=np.int64)
        self.prompts: list[Prompt | None] = [None] * slots
        self.playing: NDArray[np.bool_] = np.zeros(slots, dtype=np.bool_)
        self.finish_reasons: list[FinishReason | None] = [None] * slots
        self.handovers: list[list[int]] = [[0, 0] for _ in range(slots)]
        self.environment_texts: list[list[str]] = [[""] for _ in range(slots)]
        self.potentials: NDArray[np.float64] = np.zeros((slots, parts))
        self.environment_rewards: NDArray[np.float64] = np.zeros(slots)
        self.token_rewards, self.token_ref_log_probs, self.token_kls = (
            np.full((slots, width), np.nan) for _ in range(3)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    # --- what changes them --------------------------------------------------------------------------------------------

    def start(
        self, slot: int, prompt: Prompt | None, token_ids: Sequence[int], opening: Sequence[int] = (), text: str = ""
    ) -> None:
        """Begin an episode: the row holds a prompt's tokens, then those of the environment's opening text."""
        self._clear(slot, 0)
        self.lengths[slot] = 0
        self._write(slot, [*token_ids, *opening], by_agent=False)
        self.prompt_lengths[slot] = len(token_ids)
        self.handovers[slot] = [len(token_ids), len(token_ids) + len(opening)]
        self.environment_texts[slot] = [text]
        self.prompts[slot], self.finish_reasons[slot] = prompt, None
        self.potentials[slot] = self.environment_rewards[slot] = 0.0
        self.playing[slot] = True

    def append(
        self, slots: NDArray[np.int64], tokens: NDArray[np.int64] | Sequence[Sequence[int]], *, by_agent: bool
    ) -> None:
        """Append tokens to distinct slots.

        Args:
            slots: int64 (m,).
            tokens: one per slot, int64 (m,), or a sequence of several for each.
            by_agent: whether the agent wrote them.
        """
        if not isinstance(tokens, np.ndarray):
            for slot, several in zip(slots.tolist(), tokens, strict=True):
                self._write(slot, several, by_agent=by_agent)
            return
        columns = self.lengths[slots]
        self.input_ids[slots, columns] = tokens
        self.attention_mask[slots, columns] = 1
        self.response_mask[slots, columns] = by_agent
        self.lengths[slots] += 1

    def reply(self, slot: int, token_ids: Sequence[int], text: str, reward: float) -> None:
        """The agent's turn is over, and the environment writes these tokens, a text, and pays; then the next begins."""
        turn_end = int(self.lengths[slot])
        self._write(slot, token_ids, by_agent=False)
        self.handovers[slot] += [turn_end, turn_end + len(token_ids)]
        self.environment_texts[slot].append(text)
        self.environment_rewards[slot] += reward

    def end(self, slot: int, reason: FinishReason) -> None:
        """End an episode."""
        self.playing[slot], self.finish_reasons[slot] = False, reason

    def snapshot(self, slots: NDArray[np.int64]) -> Snapshot:
        """What `restore` needs to take back a step of these slots, all of which play."""
        return Snapshot(self.lengths[slots], self.potentials[slots], self.environment_rewards[slots])

    def restore(self, slots: NDArray[np.int64], before: Snapshot) -> None:
        """Take back whatever happened to these slots since their snapshot, but a `start`."""
        for slot, length in zip(slots.tolist(), before.lengths.tolist(), strict=True):
            self._clear(slot, length)
            self.finish_reasons[slot] = None
            if self.handovers[slot][-1] > length:  # by a reply, since a turn has at least one token
                del self.handovers[slot][-2:], self.environment_texts[slot][-1:]
        self.lengths[slots], self.potentials[slots], self.environment_rewards[slots] = before
        self.playing[slots] = True

    def _write(self, slot: int, token_ids: Sequence[int], *, by_agent: bool) -> None:
        start = int(self.lengths[slot])
        end = start + len(token_ids)
        self.input_ids[slot, start:end] = token_ids
        self.attention_mask[slot, start:end] = 1
        self.response_mask[slot, start:end] = by_agent
        self.lengths[slot] = end

    def _clear(self, slot: int, start: int) -> None:
        """Nothing is known of the columns from `start` on."""
        self.input_ids[slot, start:] = self.pad_token_id
        self.attention_mask[slot, start:] = self.response_mask[slot, start:] = 0
        for column in self.token_columns:
            column[slot, start:] = np.nan

    # --- what they tell -----------------------------------------------------------------------------------------------

    @property
    def token_columns(self) -> tuple[NDArray[np.float64], ...]:
        """What is kept of each of the agent's tokens, (n, L): rewards, log π_ref, KL."""
        return self.token_rewards, self.token_ref_log_probs, self.token_kls

    @property
    def response_lengths(self) -> NDArray[np.int64]:
        """int64 (n,): tokens that the agent has written in each row."""
        return self.response_mask.sum(axis=1, dtype=np.int64)

    def response(self, slot: int) -> NDArray[np.int64]:
        """The agent's tokens in a row, int64 (t,)."""
        return self.input_ids[slot, self.response_mask[slot] == 1]

    def per_token(self, slot: int, column: NDArray[np.float64]) -> NDArray[np.float64]:
        """One of `token_columns` at the agent's tokens of a row, float64 (t,)."""
        return column[slot, self.response_mask[slot] == 1]

    def turns_taken(self, slot: int) -> int:
        """How many turns the agent has completed and had answered."""
        return len(self.handovers[slot]) // 2 - 1

    def present_turn(self, slot: int) -> tuple[list[int], list[int]]:
        """The tokens before the agent's present turn, and those of that turn."""
        start, end = self.handovers[slot][-1], int(self.lengths[slot])
        return self.input_ids[slot, :start].tolist(), self.input_ids[slot, start:end].tolist()

    def turns(self, slot: int) -> list[tuple[int, int]]:
        """The agent's turns, the present one too: (first column, column behind the last)."""
        ends = [*self.handovers[slot], int(self.lengths[slot])]
        return list(zip(ends[1::2], ends[2::2], strict=True))

    def observation(self, slot: int | slice | NDArray[np.int64] = slice(None)) -> dict[str, NDArray[Any]]:
        """A copy of one row (L,), or of several (n, L), in the form of the observation space."""
        return {
            "input_ids": self.input_ids[slot].copy(),
            "attention_mask": self.attention_mask[slot].copy(),
            "response_mask": self.response_mask[slot].copy(),
        }


def mask_of(handovers: Sequence[int], length: int) -> list[int]:
    """The response mask of a row of so many tokens: 1 between every second pair of handovers and at the end."""
    mask = [0] * length
    for start, end in list(pairwise([*handovers, length]))[1::2]:
        mask[start:end] = [1] * (end - start)
    return mask


def as_turns(environment: Sequence[str], agent: Sequence[str]) -> tuple[dict[str, str], ...]:
    """What was said after the prompt, in order, as messages: the environment's opening, the agent's first turn, ….

    An empty opening, and a turn that the agent has not begun, are left out.
    """

    def spoken() -> Iterator[dict[str, str]]:
        for at, (theirs, ours) in enumerate(zip(environment, agent, strict=True)):
            if theirs or at:
                yield {"role": "environment", "content": theirs}
            if ours or at + 1 < len(agent):
                yield {"role": "assistant", "content": ours}

    return tuple(spoken())
