"""The space of texts that a language model reads and writes; what is done with them stands in `text_actions.py`."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "


class UnicodeText(spaces.Text):
    """Any text up to a length: every character of Unicode, for models write them all. Lone surrogates are none.

    A `gymnasium.spaces.Text` lists its characters, and the default of `Text` are letters and digits without even a
    space; here they are a range, so that a space is small, compares fast, and can still be flattened (a character is
    its code point). Samples are of printable ASCII, short ones as often as long ones.

    Args:
        max_length: the most characters.
        longest_sample: of samples.
    """

    def __init__(self, max_length: int, longest_sample: int | None = None, seed: Any = None) -> None:
        super().__init__(max_length, min_length=0, charset=PRINTABLE, seed=seed)
        self.longest_sample = max_length if longest_sample is None else min(longest_sample, max_length)

    def contains(self, x: Any) -> bool:
        """Whether it is a text that is not too long and that can be written."""
        return isinstance(x, str) and len(x) <= self.max_length and is_writable(x)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A text of printable ASCII characters.

        Args:
            mask, probability: (length, None) fix its length; characters cannot be masked.

        Raises:
            ValueError: a mask of characters.
        """
        length, characters = mask or probability or (None, None)
        if characters is not None:
            raise ValueError("UnicodeText has no mask of characters: sample(mask=(length, None)) fixes the length")
        if length is None:
            length = self.np_random.integers(self.longest_sample + 1)
        return "".join(self.np_random.choice(list(PRINTABLE), size=length))

    def __eq__(self, other: object, /) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    @property
    def character_set(self) -> Any:
        """All characters."""
        return CodePoints()

    @property
    def character_list(self) -> Any:
        """All characters, in the order of their code points."""
        return CodePoints()

    def character_index(self, char: str) -> np.int32:
        """The code point of a character."""
        return np.int32(ord(char))


class CodePoints(Sequence[str]):
    """The characters of Unicode as a sequence and a set that needs no memory."""

    def __len__(self) -> int:
        return 0x110000

    def __getitem__(self, index: Any) -> Any:
        return chr(range(len(self))[index])

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and len(value) == 1 and is_writable(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodePoints)

    def __hash__(self) -> int:
        return hash(CodePoints)


def is_writable(text: str) -> bool:
    """Whether a text has no lone surrogates, which no file, tokenizer or terminal can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
