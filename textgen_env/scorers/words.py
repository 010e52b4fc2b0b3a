"""Splitting texts into words, for the metrics that bring no tokenizer, and counting n-grams. No metric lives here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

Tokenizer = Callable[[str], list[str]]
Ngram = tuple[str, ...]

_CLITIC = re.compile(r"(?<=\w)(n't|'s|'m|'d|'ll|'re|'ve)\b")
_TOKEN = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-.,'/]\w+)*")


def ptb_tokenize(text: str) -> list[str]:
    """Lower-cased words in the manner of the Penn Treebank, without punctuation.

    Clitics become tokens of their own ("don't" → "do n't", "it's" → "it 's"); hyphens, points, commas, apostrophes and
    slashes inside words and numbers stay ("well-known", "3.5"); all other punctuation goes. It agrees with the Java
    tokenizer of pycocoevalcap on ordinary captions, not on every abbreviation.
    """
    return _TOKEN.findall(_CLITIC.sub(r" \1", text.lower().replace("’", "'")))


_TOKENIZERS: dict[str, Tokenizer] = {"ptb": ptb_tokenize, "space": str.split}


def tokenizer_of(choice: str | Tokenizer, scorer: str) -> Tokenizer:
    """The tokenizer called "ptb" or "space" (texts are tokenised already), or a function as it is.

    Raises:
        ValueError: unknown name; the message names the scorer.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in _TOKENIZERS:
        raise ValueError(f"{scorer}: tokenizer must be one of {', '.join(_TOKENIZERS)} or a function, got {choice!r}")
    return _TOKENIZERS[choice]


def ngram_counts(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    """Counts of all n-grams of 1 to `order` tokens."""
    counts: Counter[Ngram] = Counter()
    for n in range(1, order + 1):
        counts.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    return counts
