"""The text of tokens that follow other tokens: what decoding the whole has beyond decoding what came before.

Tokens have no text of their own: decoders strip the space in front of a text, join bytes to characters and pieces to
words. So nothing here decodes a token alone. Loading tokenizers and cutting prompts live elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not one yet
# Decoders for which a token's text depends on few tokens before it: pieces are joined, and only the first is special.
LOCAL_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder", "Replace"}
CONTEXT = 4  # tokens after which a byte decoder that starts within a character has found the next one
MAX_CONTEXT = 32  # where no good place to start is found within so many tokens, the whole is decoded


class TokenText:
    """Decodes with one tokenizer; special tokens have no text.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a whole sequence of tokens; spaces are left alone."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def continuation(self, before: Sequence[int], after: Sequence[int]) -> str:
        """The text that `after` adds to `before`: decode(before + after) without what it shares with decode(before).

        Nearly always the second is a prefix of the first. It is not where `before` ends within a character: that
        character then belongs to `after`, which completes it.

        Args:
            before, after: token ids.
        """
        if not after:
            return ""
        context = self._context(before)
        shared = self.decode(context)
        if len(context) < len(before) and not shared:  # a leading space is stripped, perhaps from what comes after
            context, shared = before, self.decode(before)
        whole = self.decode([*context, *after])
        return whole[len(shared) if whole.startswith(shared) else _in_common(shared, whole) :]

    def pieces(self, before: Sequence[int], after: Sequence[int]) -> list[str]:
        """The text that each token of `after` adds; joined, they are `continuation(before, after)`.

        A character that several tokens write appears at the last of them, and "" at the others.
        """
        pieces, start = [], 0  # tokens from `start` on have not been written out yet
        for end in range(1, len(after) + 1):
            text = self.continuation([*before, *after[:start]], after[start:end])
            if text.endswith(REPLACEMENT) and end < len(after):
                text = ""  # the bytes of a character that may be completed
            elif text:
                start = end
            pieces.append(text)
        text = self.continuation(before, after)
        return pieces if "".join(pieces) == text else self._exact_pieces(before, after, text)

    def shown_pieces(self, before: Sequence[int], after: Sequence[int]) -> list[str]:
        """`pieces` for people: special tokens, which have no text, appear as they are written."""
        pieces = self.pieces(before, after)
        return [piece or self.special_tokens.get(token, "") for token, piece in zip(after, pieces, strict=True)]

    def _exact_pieces(self, before: Sequence[int], after: Sequence[int], text: str) -> list[str]:
        """Pieces where a later token changes the text of earlier ones: each has what is final by then."""
        ends = [0]
        for end in range(1, len(after)):
            written = self.continuation(before, after[:end]).rstrip(REPLACEMENT)
            ends.append(max(ends[-1], _in_common(written, text)))
        ends.append(len(text))
        return [text[start:end] for start, end in pairwise(ends)]

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """The tokens that have no text, by id, as they are written in prompts and templates."""
        added = {id_ for id_, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special}
        ids = sorted(added | set(self.tokenizer.all_special_ids))
        return {id_: str(self.tokenizer.convert_ids_to_tokens(id_)) for id_ in ids if self.decode([id_]) == ""}

    @cached_property
    def is_local(self) -> bool:
        """Whether what a token adds is known to depend on few tokens before it."""
        kind = type(self.tokenizer)
        decoding = [getattr(getattr(kind, name, None), "__module__", "") for name in ("decode", "_decode")]
        if not all(module.startswith("transformers.tokenization_utils") for module in decoding):
            return False  # a tokenizer that decodes in its own way
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        decoder = json.loads(backend.to_str())["decoder"] if hasattr(backend, "to_str") else None
        return decoder is not None and all(map(_is_local, decoder.get("decoders", [decoder])))

    @cached_property
    def _byte_tokens(self) -> frozenset[int]:
        """Tokens that stand for one byte, as SentencePiece spells them: <0x41>. A run of them is decoded as one."""
        spelt = {f"<0x{byte:02X}>" for byte in range(256)}
        return frozenset(id_ for token, id_ in self.tokenizer.get_vocab().items() if token in spelt)

    def _context(self, before: Sequence[int]) -> Sequence[int]:
        """The last tokens of `before` that decide what follows."""
        if len(before) <= CONTEXT or not self.is_local:
            return before
        visible = 0
        for start in range(len(before) - 1, max(-1, len(before) - 1 - MAX_CONTEXT), -1):
            if before[start] in self.special_tokens:
                continue
            visible += 1
            if visible >= CONTEXT and before[start] not in self._byte_tokens:
                return before[start:]
        return before


def _in_common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _is_local(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Replace":
        return bool(decoder["content"]) and "String" in decoder["pattern"]
    return decoder["type"] in LOCAL_DECODERS
