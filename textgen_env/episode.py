"""What an episode is made of: a prompt, the prefix that grows from it, and the completion that is scored.

Numpy only. Nothing here knows a language model, a reward or Gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FinishReason(str, Enum):
    """Why an episode ended: the agent's EOS token, a stop string in its text, or the length limit."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


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
        text: the decoded response, without special tokens and without the stop string that ended it.
        token_ids: the response's tokens as the agent chose them; the truth that `text` is a view of.
        finish_reason: why it ended; None while it is being written.
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step of m slots brought; every array is (m,), in the order of the rows that were stepped.

    Attributes:
        rewards: float64, the sum of the parts.
        terminated: bool.
        truncated: bool.
        reward_parts: float64 by name.
        ref_log_prob: float64, or None when no reference is on.
        endings: for each position whose episode ended, the `info` of its end.
    """

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reward_parts: dict[str, NDArray[np.float64]]
    ref_log_prob: NDArray[np.float64] | None
    endings: dict[int, dict[str, Any]]


class Prefixes:
    """The states of n episodes: right-padded token rows of width L = max_prompt_tokens + max_new_tokens.

    Appending writes one column entry per row, so that its cost does not depend on how long the rows are.

    Attributes:
        input_ids: int64 (n, L); `pad_token_id` beyond a row's length.
        attention_mask: int8 (n, L); 1 on the row's tokens.
        response_mask: int8 (n, L); 1 on the tokens that the agent wrote.
        lengths: int64 (n,); tokens in each row.
        prompt_lengths: int64 (n,); how many of them are the prompt's.
    """

    def __init__(self, rows: int, width: int, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id
        self.input_ids: NDArray[np.int64] = np.full((rows, width), pad_token_id, dtype=np.int64)
        self.attention_mask: NDArray[np.int8] = np.zeros((rows, width), dtype=np.int8)
        self.response_mask: NDArray[np.int8] = np.zeros((rows, width), dtype=np.int8)
        self.lengths: NDArray[np.int64] = np.zeros(rows, dtype=np.int64)
        self.prompt_lengths: NDArray[np.int64] = np.zeros(rows, dtype=np.int64)

    def start(self, row: int, token_ids: Sequence[int]) -> None:
        """Replace a row by a prompt's tokens."""
        length = len(token_ids)
        self.input_ids[row, :length] = token_ids
        self.input_ids[row, length:] = self.pad_token_id
        self.attention_mask[row, :length] = 1
        self.attention_mask[row, length:] = 0
        self.response_mask[row] = 0
        self.lengths[row] = self.prompt_lengths[row] = length

    def append(self, rows: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        """Append one token of the agent's to each of the given rows."""
        columns = self.lengths[rows]
        self.input_ids[rows, columns] = token_ids
        self.attention_mask[rows, columns] = 1
        self.response_mask[rows, columns] = 1
        self.lengths[rows] += 1

    def undo(self, rows: NDArray[np.int64]) -> None:
        """Take back the last `append` of the given rows."""
        self.lengths[rows] -= 1
        columns = self.lengths[rows]
        self.input_ids[rows, columns] = self.pad_token_id
        self.attention_mask[rows, columns] = 0
        self.response_mask[rows, columns] = 0

    @property
    def response_lengths(self) -> NDArray[np.int64]:
        """int64 (n,): tokens that the agent has written in each row."""
        return self.lengths - self.prompt_lengths

    def response(self, row: int) -> NDArray[np.int64]:
        """The agent's tokens in a row, int64 (t,)."""
        return self.input_ids[row, self.prompt_lengths[row] : self.lengths[row]]

    def halves(self, row: int) -> tuple[list[int], list[int]]:
        """The tokens of a row's prompt and those that follow it."""
        prompt, end = int(self.prompt_lengths[row]), int(self.lengths[row])
        return self.input_ids[row, :prompt].tolist(), self.input_ids[row, prompt:end].tolist()

    def observation(self, row: int | slice | NDArray[np.int64] = slice(None)) -> dict[str, NDArray[Any]]:
        """A copy of one row (L,), or of several (n, L), in the form of the observation space."""
        return {
            "input_ids": self.input_ids[row].copy(),
            "attention_mask": self.attention_mask[row].copy(),
            "response_mask": self.response_mask[row].copy(),
        }
