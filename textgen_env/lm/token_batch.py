"""Texts as a rectangle of tokens: ids, which of them are there, and which of them the agent wrote.

What lives here: `TokenBatch`, how one is made of texts or tokens, and how some of its rows are taken. What does not:
what a model says of the tokens (`log_probs.py`), or an environment (rewards, scores).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel


class _Tensors(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


class TokenBatch(_Tensors):
    """B texts of at most T tokens, right-padded; a named tuple, so that torch moves and scatters it.

    Attributes:
        input_ids: (B, T) int64; whatever stands at padding is never read.
        attention_mask: (B, T), 1 for real tokens, then 0 for padding.
        response_mask: (B, T), 1 where the agent wrote the token; nothing precedes column 0, which is 0.

    Raises:
        ValueError: shapes differ, the padding is not on the right, or response_mask marks padding or column 0.
    """

    __slots__ = ()

    def __new__(cls, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> TokenBatch:
        """Check the three tensors."""
        _check(input_ids, attention_mask, response_mask)
        return super().__new__(cls, input_ids, attention_mask, response_mask)

    @classmethod
    def of(cls, *batch: Tensor) -> TokenBatch:
        """A batch as it is (`of(*batch)`, or the batch alone), or one of three tensors."""
        if len(batch) == 1 and isinstance(batch[0], TokenBatch):
            return batch[0]
        return cls(*batch)

    @classmethod
    def from_tokens(
        cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_token_id: int = 0
    ) -> TokenBatch:
        """Each prompt's tokens with those of its response behind them.

        Args:
            prompts: B lists of tokens, none of them empty.
            responses: B lists of tokens.
            pad_token_id: what rows are filled with.

        Raises:
            ValueError: there are none, or their numbers differ, or a prompt is empty.
        """
        if len(prompts) != len(responses) or not len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses; there must be as many, and some")
        if empty := [row for row, prompt in enumerate(prompts) if not len(prompt)]:
            raise ValueError(f"prompts[{empty[0]}] has no token; a response needs one before it")
        starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
        ends = starts + torch.tensor([len(response) for response in responses])[:, None]
        columns = torch.arange(int(ends.max()))
        ids = torch.full((len(prompts), len(columns)), pad_token_id)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[row, : int(ends[row])] = torch.tensor([*prompt, *response])
        return cls(ids, (columns < ends).long(), ((columns >= starts) & (columns < ends)).long())

    @classmethod
    def from_texts(
        cls,
        language_model: LanguageModel,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        end: bool = True,
    ) -> TokenBatch:
        """Texts to continue, encoded as an environment encodes them, and their continuations.

        Args:
            language_model: whose tokens.
            prompts: B texts.
            responses: B texts.
            end: put the EOS token behind each response, which is then one of its tokens.

        Raises:
            ValueError: see `from_tokens`; or a response is to end, and the model knows no EOS token.
        """
        behind = [language_model.end_token_id] if end else []
        return cls.from_tokens(
            [language_model.encode(prompt) for prompt in prompts],
            [language_model.encode_as_is(response) + behind for response in responses],
            language_model.pad_token_id,
        )

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each text, prompt and response."""
        return self.attention_mask.sum(dim=1)

    @property
    def response_lengths(self) -> Tensor:
        """(B,) tokens of each text that the agent wrote."""
        return self.response_mask.sum(dim=1)

    def rows(self, rows: Tensor) -> TokenBatch:
        """Some of the texts, (b,) indices, cut to the longest of them: (b, t) each."""
        return TokenBatch._make(self.cut(rows, *self))  # checked already

    def cut(self, rows: Tensor, *grids: Tensor) -> list[Tensor]:
        """Those rows of (B, T) tensors, cut to the longest of the texts: (b, t) each."""
        width = int(self.lengths[rows].max())
        return [grid[rows, :width] for grid in grids]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on ``device``."""
        return TokenBatch._make(tensor.to(device) for tensor in self)


def _check(input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor) -> None:
    if not input_ids.shape == attention_mask.shape == response_mask.shape or input_ids.dim() != 2:
        shapes = f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)}, {tuple(response_mask.shape)}"
        raise ValueError(f"input_ids, attention_mask, response_mask: expected one shape (B, T), got {shapes}")
    if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("attention_mask: expected right padding (ones, then zeros), got a one after a zero")
    if (response_mask.bool() & ~attention_mask.bool()).any():
        raise ValueError("response_mask: marks positions that attention_mask calls padding")
    if response_mask[:, :1].any():
        raise ValueError("response_mask: column 0 is marked, but no state precedes the first token")
