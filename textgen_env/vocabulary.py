"""Rules over tokens: which actions are allowed, which texts stop an episode, how a prompt is cut, equal vocabularies.

Small pure pieces that the engine is put together from; none of them keeps anything about an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.messages import shown

if TYPE_CHECKING:
    from textgen_env.language_model import LanguageModel


def tokenize_prompt(model: LanguageModel, text: str, max_tokens: int) -> tuple[list[int], int]:
    """The tokens of a prompt, at most `max_tokens`, and how many were cut off.

    A longer prompt loses its left part, since the words next to the response matter most; a BOS token stays in front,
    without which many models are lost.

    Raises:
        ValueError: the text has no tokens.
    """
    token_ids = model.encode(text)
    if not token_ids:
        raise ValueError(f"the prompt {text!r} has no tokens under the tokenizer of {model.source!r}")
    excess = max(0, len(token_ids) - max_tokens)
    has_bos = token_ids[0] == model.bos_token_id and max_tokens > 1
    return (token_ids[:1] + token_ids[1 + excess :] if has_bos else token_ids[excess:]), excess


def same_vocabulary(model: LanguageModel, reference: LanguageModel, role: str = "reference") -> None:
    """Check that two models give every token the same id; `role` is what the second one is to the environment.

    Raises:
        ValueError: they do not, so that log π and log π_ref would speak of different tokens.
    """
    if model is reference:
        return
    ours, theirs = model.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    if model.vocab_size == reference.vocab_size and ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise ValueError(
        f"{role}={reference.source!r} has another vocabulary ({reference.vocab_size} actions) than "
        f"model={model.source!r} ({model.vocab_size}); first differing tokens: {differing[:3]}. "
        "A KL penalty needs one vocabulary"
    )


def fits_positions(model: LanguageModel, max_prompt_tokens: int, max_new_tokens: int) -> None:
    """Check that a model can read the longest prefix there may be.

    Raises:
        ValueError: it has fewer positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_prompt_tokens + max_new_tokens > positions:
        raise ValueError(
            f"max_prompt_tokens={max_prompt_tokens} + max_new_tokens={max_new_tokens} exceed the {positions} positions "
            f"of {model.source!r}, which has to read whole texts for the KL; shorten one of them"
        )


class ActionRules:
    """Which tokens an agent may choose.

    Args:
        model: whose vocabulary it is.
        forbidden: token ids, or tokens as the tokenizer spells them; never allowed.
        min_new_tokens: EOS is forbidden until the response has this many tokens.

    Raises:
        ValueError: a forbidden token that does not exist, or rules that leave no token to choose.
    """

    def __init__(self, model: LanguageModel, forbidden: Sequence[int | str], min_new_tokens: int) -> None:
        self.min_new_tokens = min_new_tokens
        self._vocab_size = model.vocab_size
        self._allowed = np.ones(model.vocab_size, dtype=np.bool_)
        for token in forbidden:
            self._allowed[self._token_id(model, token)] = False
        self._eos = np.array(sorted(model.eos_token_ids), dtype=np.int64)
        before_minimum = self._allowed.copy()
        before_minimum[self._eos] = False
        if not (before_minimum if min_new_tokens else self._allowed).any():
            raise ValueError(f"forbidden_tokens={shown(list(forbidden))} leave no token to choose")
        self.restrict = bool(min_new_tokens) or not self._allowed.all()

    def _token_id(self, model: LanguageModel, token: int | str) -> int:
        token_id = model.tokenizer.get_vocab().get(token, -1) if isinstance(token, str) else int(token)
        if not 0 <= token_id < self._vocab_size:
            raise ValueError(f"forbidden_tokens: {shown(token)} is not one of the {self._vocab_size} tokens")
        return token_id

    def masks(self, response_lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (m, V): the allowed actions of rows whose responses have these lengths."""
        masks = np.tile(self._allowed, (len(response_lengths), 1))
        if self.min_new_tokens:
            masks[np.ix_(response_lengths < self.min_new_tokens, self._eos)] = False
        return masks

    def check(self, actions: Any, masks: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """The actions as int64 (m,).

        Args:
            actions: m integers.
            masks: bool (m, V), or None where nothing is masked.

        Raises:
            TypeError: not integers.
            ValueError: another shape, out of range, or masked.
        """
        array = np.asarray(actions)
        if array.dtype.kind not in "iu":
            raise TypeError(f"actions must be integers, got {shown(actions)} of dtype {array.dtype}")
        outside = (array < 0) | (array >= self._vocab_size)
        if outside.any():
            raise ValueError(f"action {array[outside][0]} is not in Discrete({self._vocab_size})")
        array = array.astype(np.int64, copy=False)
        if masks is not None:
            forbidden = ~masks[np.arange(len(array)), array]
            if forbidden.any():
                raise ValueError(
                    f"action {array[forbidden][0]} is masked here: it is forbidden, an EOS before min_new_tokens="
                    f"{self.min_new_tokens}, or outside the reference's top-p set; see action_masks()"
                )
        return array


class StopStrings:
    """Texts that end an episode once the response contains one; the response's text is cut before it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        # A token holds at least one byte, so a stop string lies within its number of bytes in tokens; a few more,
        # because a character that spans two tokens is garbled where the window cuts it.
        self._window = max((len(text.encode()) for text in texts), default=0) + 4

    def __bool__(self) -> bool:
        return bool(self._texts)

    def reached(self, model: LanguageModel, response: NDArray[np.int64]) -> bool:
        """Whether the last token completed a stop string. Decodes a window of the tail, not the whole response."""
        tail = model.decode(response[-self._window :].tolist())
        return any(text in tail for text in self._texts)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        found = [at for at in (text.find(stop) for stop in self._texts) if at >= 0]
        return text[: min(found)] if found else text
