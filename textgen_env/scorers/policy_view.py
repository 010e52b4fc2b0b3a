"""What a scorer that sees the policy is handed: exact log-probabilities of texts that could follow each response.

What lives here: `PolicyView`. What does not: whose policy it is (`reward.py`), the forward pass
(`lm/continuations.py`), scores made of it (`likelihood.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from textgen_env.notices import shown

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel


class Continuation(NamedTuple):
    """A text that could follow, and what the policy says of it."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]  # of each token given all before it, nats

    @property
    def log_prob(self) -> float:
        """Of the whole."""
        return math.fsum(self.log_probs)


@dataclass(frozen=True)
class PolicyView:
    """A language model at the end of n texts: with the weights that it has when it is asked, without gradient.

    A text is its tokens, as they were read and written: nothing is encoded anew. What is put behind them is encoded by
    itself, without special tokens around it, so that a word may be cut into other tokens than within a longer text.

    Attributes:
        language_model: π.
        token_ids: n lists of tokens: prompt, response, and what an environment has replied.
        ended: n flags: the last token is the EOS that ended the text. It is left out where the text is to go on, unless
            `keep_end`.
        temperature: divides the logits. An environment's views have its own: π is what samples there. Masks of actions
            do not apply, since nothing of this is an action.
    """

    language_model: LanguageModel
    token_ids: Sequence[Sequence[int]]
    ended: Sequence[bool]
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, rows: Sequence[int]) -> PolicyView:
        """The view of some of the texts."""
        token_ids, ended = [self.token_ids[row] for row in rows], [self.ended[row] for row in rows]
        return PolicyView(self.language_model, token_ids, ended, self.temperature)

    def log_probs(
        self,
        continuations: Sequence[Sequence[str | Sequence[int]]],
        *,
        suffix: str | Sequence[str] = "",
        keep_end: bool = False,
        temperature: float | None = None,
    ) -> list[list[Continuation]]:
        """log π(continuation | text + suffix) of several continuations of each text.

        Each text is read once for all continuations that are single tokens, or differ in their last alone.

        Args:
            continuations: n lists of texts or lists of tokens. A text is encoded so that it reads on as it stands, with
                the space in front of it or without; what is spelled like a special token is text.
            suffix: what stands in between, one for all or n; special tokens that are spelled out in it are such.
            keep_end: leave the EOS of a text that has ended in its place, as where a suffix begins another turn.
            temperature: instead of the view's.

        Raises:
            TypeError, ValueError: not n lists of continuations, one without tokens or of tokens that there are not; or
                a text with what follows it is longer than the model's positions.
        """
        # torch, which other scorers need not load
        from textgen_env.lm.continuations import continuation_log_probs
        from textgen_env.lm.sampling import SamplingParams

        if len(continuations) != len(self):
            raise ValueError(f"continuations: {len(continuations)} lists for {len(self)} texts; there must be as many")
        suffixes = [suffix] * len(self) if isinstance(suffix, str) else suffix
        prefixes = [self._prefix(row, own, keep_end) for row, own in zip(range(len(self)), suffixes, strict=True)]
        options = [
            [self._tokens(prefixes[row], one, f"continuations[{row}][{at}]") for at, one in enumerate(several)]
            for row, several in enumerate(continuations)
        ]
        self._check_lengths(prefixes, options)
        found = continuation_log_probs(
            self.language_model.model,
            prefixes,
            options,
            SamplingParams(self.temperature if temperature is None else temperature),
            vocab_size=self.language_model.vocab_size,
        )
        return [
            [Continuation(tuple(ids), tuple(values)) for ids, values in zip(*row, strict=True)]
            for row in zip(options, found, strict=True)
        ]

    def _prefix(self, row: int, suffix: str, keep_end: bool) -> list[int]:
        token_ids = list(self.token_ids[row])
        if self.ended[row] and not keep_end:
            del token_ids[-1]
        return token_ids + (self.language_model.encode_as_is(suffix) if suffix else [])

    def _tokens(self, prefix: Sequence[int], continuation: str | Sequence[int], where: str) -> list[int]:
        model = self.language_model
        if isinstance(continuation, str):
            token_ids = model.encode_behind(prefix, continuation)
        else:
            token_ids = [int(token) for token in continuation]
        if not token_ids:
            raise ValueError(f"{where}={shown(continuation)} has no tokens; nothing is no continuation")
        if not 0 <= min(token_ids) <= max(token_ids) < model.vocab_size:
            raise ValueError(f"{where}={shown(continuation)} must hold tokens from 0 to {model.vocab_size - 1}")
        return token_ids

    def _check_lengths(self, prefixes: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> None:
        from textgen_env.lm.backbone import unwrap
        from textgen_env.lm.position_switches import text_limit

        limit = text_limit(unwrap(self.language_model.model)) or math.inf
        for row, (prefix, several) in enumerate(zip(prefixes, options, strict=True)):
            if (length := len(prefix) + max(map(len, several), default=0)) > limit:
                raise ValueError(
                    f"text {row} has {length} tokens with suffix and continuation, and {self.language_model.source!r} "
                    f"{limit} positions; shorten them (max_prompt_tokens, max_new_tokens)"
                )
