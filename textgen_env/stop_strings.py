"""Texts that end an episode or a turn, and the text that is left of a response once they are cut off.

A stop string is looked for in the response's text. Special tokens have no text, so that one which names special tokens
("<|im_end|>", "<bos>") is looked for among the tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel


class SpecialStop(NamedTuple):
    """A stop string taken apart at the first special token in it."""

    head: str  # the text before that token
    token: int
    rest: str  # the special token and all that follows, as the decoder writes it when special tokens are kept


class StopStrings:
    """Texts that end an episode once the response contains one; the response's text is cut before it.

    The text of a response is what it adds to the prompt: a stop string that begins in the prompt is none. Where the
    environment answers back, "prompt" is all that was written before the agent's present turn.

    Args:
        texts: the stop strings; none may be empty.
        model: whose tokens responses are made of.
        argument: where the texts come from, for errors.

    Raises:
        ValueError: a stop string is a token that the model has no row for.
    """

    def __init__(self, texts: Sequence[str], model: LanguageModel, argument: str = "stop_strings") -> None:
        self._texts = tuple(texts)
        self._model = model
        vocabulary = model.tokenizer.get_vocab() if texts else {}
        for text in self._texts:
            if vocabulary.get(text, 0) >= model.vocab_size:
                raise ValueError(
                    f"{argument}: {text!r} is token {vocabulary[text]} of the tokenizer, but {model.source!r} has "
                    f"{model.vocab_size} tokens and can never write it; call model.resize_token_embeddings first"
                )
        special = model.token_text.special_tokens if texts else {}
        self._special = tuple(found for text in self._texts if (found := _special_stop(text, special)))
        # A token with text has at least one byte, so a stop string lies within its number of bytes in such tokens; a
        # few more, because a character that spans two tokens is garbled where the window cuts it.
        self._window = max((len(text.encode()) for text in self._texts), default=0) + 4

    def __bool__(self) -> bool:
        return bool(self._texts)

    def reached(self, prompt: Sequence[int], response: Sequence[int]) -> bool:
        """Whether the last token completed a stop string. Decodes a window of the tail, not the whole response.

        Args:
            prompt, response: token ids.
        """
        start = self._window_start(response)
        text = self._model.token_text.continuation([*prompt, *response[:start]], response[start:])
        if any(stop in text for stop in self._texts):
            return True
        return any(self._at(stop, prompt, response, start) is not None for stop in self._special)

    def text(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text of a response before its first stop string.

        Args:
            prompt, response: token ids.
        """
        whole = self._model.token_text.continuation(prompt, response)
        cuts = [whole[:at] for at in map(whole.find, self._texts) if at >= 0]
        cuts += [before for stop in self._special if (before := self._at(stop, prompt, response, 0)) is not None]
        return min(cuts, key=len, default=whole)

    def _window_start(self, response: Sequence[int]) -> int:
        """Where the last tokens begin that a stop string may lie in; special tokens do not count."""
        text = self._model.token_text
        if not text.is_local:
            return 0
        start, left = len(response), self._window
        while start and left:
            start -= 1
            left -= response[start] not in text.special_tokens
        return start

    def _at(self, stop: SpecialStop, prompt: Sequence[int], response: Sequence[int], start: int) -> str | None:
        """The response's text before a stop string at a special token from `start` on; None where there is none."""
        for at, token in enumerate(response[start:], start=start):
            if token == stop.token and self._keeping_special(response[at:]).startswith(stop.rest):
                before = self._model.token_text.continuation(prompt, response[:at])
                if before.endswith(stop.head):
                    return before.removesuffix(stop.head)
        return None

    def _keeping_special(self, token_ids: Sequence[int]) -> str:
        return str(self._model.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def _special_stop(text: str, special: dict[int, str]) -> SpecialStop | None:
    """The stop string at its first special token (the longest there), or None where it names none."""
    places = [(text.find(token), -len(token), id_) for id_, token in special.items() if token and token in text]
    if not places:
        return None
    at, _, id_ = min(places)
    return SpecialStop(text[:at], id_, text[at:])
