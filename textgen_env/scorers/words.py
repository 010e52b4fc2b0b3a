"""Splitting texts into words, for the metrics that bring no tokenizer, and counting n-grams. No metric lives here."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import regex

Tokenizer = Callable[[str], list[str]]
Ngram = tuple[str, ...]

# `\w` would be shorter, but Python's leaves out the marks in which many scripts write vowels, and accents where text is
# decomposed, and regex's leaves out "½". Joiners hold the parts of a Persian or Sinhala word together.
LETTER = r"[\p{L}\p{N}\p{M}_]"
_WORD = rf"(?:[\p{{L}}\p{{N}}_]|(?=\p{{Alphabetic}})\p{{M}})(?:[\u200c\u200d]*{LETTER})*"
_JOINT = r"[-.,'/\u05f3\u05f4\u066b\u066c]"  # with Hebrew's geresh and gershayim, and Arabic's signs in numbers
_CLITIC = regex.compile(rf"(?<={LETTER})(n't|'s|'m|'d|'ll|'re|'ve)(?!{LETTER})")
_TOKEN = regex.compile(rf"n't(?!{LETTER})|'(?:s|m|d|ll|re|ve)(?!{LETTER})|{_WORD}(?:{_JOINT}{_WORD})*")
_SOFT_HYPHEN = "\u00ad"
# Scripts that put no spaces between words.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_ENDS_UNSPACED = regex.compile(rf"[{_UNSPACED}]\p{{M}}*$")
_BEGINS_UNSPACED = regex.compile(rf"[{_UNSPACED}]")


def ptb_tokenize(text: str) -> list[str]:
    """Lower-cased words in the manner of the Penn Treebank, without punctuation.

    Clitics become tokens of their own ("don't" → "do n't", "it's" → "it 's"); hyphens, points, commas, apostrophes and
    slashes inside words and numbers stay ("well-known", "3.5"); all other punctuation goes. It agrees with the Java
    tokenizer of pycocoevalcap on ordinary captions, not on every abbreviation.

    Words of any script keep their vowel signs, points and accents, and however these are encoded the word is the same
    (the tokens are in Unicode's form NFC). What is written without spaces is not split: give such texts with spaces
    between their words, or a tokenizer of their language.
    """
    text = composed(text.lower()).replace("’", "'").replace(_SOFT_HYPHEN, "")
    return _TOKEN.findall(_CLITIC.sub(r" \1", text))


def composed(text: str) -> str:
    """The text in Unicode's form NFC, so that a letter with an accent or a point is the same however it was typed."""
    return unicodedata.normalize("NFC", text)


def occurs(word: str, text: str) -> bool:
    """Whether a word or phrase stands in a text, and not as a part of a longer word."""
    # look-arounds rather than \b, so that keywords such as "C++" are found too
    before = "" if _BEGINS_UNSPACED.match(word) else rf"(?<!{LETTER})"
    after = r"(?!\p{M})" if _ENDS_UNSPACED.search(word) else rf"(?!{LETTER})"
    return word in text and regex.search(before + regex.escape(word) + after, text) is not None


_TOKENIZERS: dict[str, Tokenizer] = {"ptb": ptb_tokenize, "space": str.split}


def tokenizer_of(choice: str | Tokenizer | None, scorer: str, *further: str) -> Tokenizer:
    """The tokenizer called "ptb" or "space" (texts are tokenised already), or a function as it is.

    Raises:
        ValueError: unknown name; the message names the scorer and all names, with those that it knows by itself.
    """
    if callable(choice):
        return choice
    if not isinstance(choice, str) or choice not in _TOKENIZERS:
        names = ", ".join([*further, *_TOKENIZERS])
        raise ValueError(f"{scorer}: tokenizer must be one of {names} or a function, got {choice!r}")
    return _TOKENIZERS[choice]


def check_nltk(what: str, package: str, use: Callable[[], Any]) -> None:
    """See that data of nltk are there, by using them.

    Raises:
        FileNotFoundError: they are not; the message says how to get them.
    """
    try:
        use()
    except LookupError:
        raise FileNotFoundError(f"{what} needs data of nltk: python -m nltk.downloader {package}") from None


def ngram_counts(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    """Counts of all n-grams of 1 to `order` tokens."""
    counts: Counter[Ngram] = Counter()
    for n in range(1, order + 1):
        counts.update(zip(*(tokens[i:] for i in range(n)), strict=False))
    return counts
