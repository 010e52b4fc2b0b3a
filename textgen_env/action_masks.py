"""Which tokens an agent may choose: forbidden ones, EOS before the minimum, and the check of what was chosen.

What the reference masks as well (its nucleus, its k likeliest tokens) belongs to the KL penalty (`kl_penalty.py`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.notices import shown

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel


class ActionRules:
    """Which tokens an agent may choose.

    Args:
        model: whose vocabulary it is.
        forbidden: token ids, or tokens as the tokenizer spells them; never allowed.
        min_new_tokens: EOS is forbidden until the response has this many tokens.

    Raises:
        TypeError: a forbidden token that is neither an integer nor a text.
        ValueError: a forbidden token that does not exist, or rules that leave no token to choose.
    """

    def __init__(self, model: LanguageModel, forbidden: Sequence[int | str], min_new_tokens: int) -> None:
        self.min_new_tokens = min_new_tokens
        self._vocab_size = model.vocab_size
        self._allowed = np.ones(model.vocab_size, dtype=np.bool_)
        for token in forbidden:
            self._allowed[_token_id(model, token)] = False
        self._eos = np.array(sorted(model.eos_token_ids), dtype=np.int64)
        before_minimum = self._allowed.copy()
        before_minimum[self._eos] = False
        if not (before_minimum if min_new_tokens else self._allowed).any():
            raise ValueError(f"forbidden_tokens={shown(list(forbidden))} leave no token to choose")
        self.restrict = bool(min_new_tokens) or not self._allowed.all()

    def masks(self, response_lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (m, V): the allowed actions of rows whose responses have these lengths."""
        masks = np.tile(self._allowed, (len(response_lengths), 1))
        if self.min_new_tokens:
            masks[np.ix_(response_lengths < self.min_new_tokens, self._eos)] = False
        return masks

    def check(self, actions: Any, slots: NDArray[np.int64], masks: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """The actions as int64 (n,).

        Args:
            actions: n integers.
            slots: int64 (m,), whose actions are looked at.
            masks: bool (m, V) of these slots, or None where nothing is masked.

        Raises:
            TypeError: not integers.
            ValueError: another shape, out of range, or masked.
        """
        array = np.asarray(actions)
        if array.dtype.kind not in "iu":
            raise TypeError(f"actions must be integers, got {shown(actions)} of dtype {array.dtype}")
        chosen = array[slots]
        outside = (chosen < 0) | (chosen >= self._vocab_size)
        if outside.any():
            raise ValueError(f"action {chosen[outside][0]} is not in Discrete({self._vocab_size})")
        if masks is not None:
            forbidden = ~masks[np.arange(len(chosen)), chosen]
            if forbidden.any():
                raise ValueError(
                    f"action {chosen[forbidden][0]} is masked here: it is forbidden, an EOS before min_new_tokens="
                    f"{self.min_new_tokens}, or outside the reference's top-p set or its top-k; see action_masks()"
                )
        return array.astype(np.int64, copy=False)


def check_slots(slots: Sequence[int] | NDArray[np.int64] | None, count: int) -> NDArray[np.int64]:
    """The slots that a caller names, int64 (m,); None names all.

    Raises:
        TypeError: not integers.
        ValueError: out of range, twice the same, or no list of numbers.
    """
    if slots is None:
        return np.arange(count)
    array = np.asarray(slots)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"slots={shown(slots)} must be integers, not {array.dtype}")
    if array.ndim != 1 or len(np.unique(array)) != len(array) or ((array < 0) | (array >= count)).any():
        raise ValueError(f"slots={shown(slots)} must be different numbers from 0 to {count - 1}, in a list")
    return array.astype(np.int64)


def _token_id(model: LanguageModel, token: int | str) -> int:
    """The id of a forbidden token."""
    if isinstance(token, bool) or not (isinstance(token, str) or hasattr(token, "__index__")):
        raise TypeError(f"forbidden_tokens: {shown(token)} must be a token or its id, not {type(token).__name__}")
    token_id = model.tokenizer.get_vocab().get(token, -1) if isinstance(token, str) else operator.index(token)
    if not 0 <= token_id < model.vocab_size:
        why = ""
        if model.vocab_size <= token_id < len(model.tokenizer):
            why = f": the tokenizer has it as token {token_id}, but the model has no row for it"
        raise ValueError(f"forbidden_tokens: {shown(token)} is not one of the {model.vocab_size} tokens{why}")
    return token_id
