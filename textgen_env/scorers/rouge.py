"""ROUGE-1, -2, -L and -Lsum as rewards, and their corpus means. Tokens, stemming and formulas are those of rouge-score.

Equal to rouge-score, and not a wrapper around it for the sake of dense ROUGE, which scores a prefix per slot and step:
tokenised references are remembered, words are stemmed once, and longest common subsequences come from `lcs` instead of
a table of lists. On one core that is 20,000 to 37,000 short texts per second against 2,000 to 3,000, and up to twice as
many where the references come again (`python -m benchmarks.scorers`). Where rouge-score sees no words, in scripts other
than the Latin, those of `words` count. Nothing else than ROUGE lives here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import regex
from nltk import sent_tokenize
from nltk.stem.porter import PorterStemmer
from rouge_score.scoring import fmeasure

from .arguments import hands_on
from .base import usable_references
from .lcs import lcs_indices, lcs_length
from .shared_state import LRUCache
from .words import check_nltk, ptb_tokenize, tokenizer_of

_STEMMER = PorterStemmer()
_WORD = re.compile(r"[a-z0-9]+")
_LETTER, _LATIN_LETTER = regex.compile(r"\p{L}"), regex.compile(r"\p{Latin}")
_MEASURES = ("f", "precision", "recall")

Tokens = list[str]


@lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    """The Porter stem; like ROUGE-1.5.5, words of up to three letters stay as they are."""
    return _STEMMER.stem(word) if len(word) > 3 else word


def tokenize(text: str, stem: bool = True) -> Tokens:
    """Lower-cased runs of a–z and 0–9, Porter-stemmed: the tokens of `rouge_score.tokenize`."""
    words = _ascii_words(text)
    return [_stem(word) for word in words] if stem else words


def _ascii_words(text: str) -> Tokens:
    return _WORD.findall(text.lower())


def _words_like(reference: str) -> Callable[[str], Tokens]:
    """What splits texts into words: as rouge-score does, unless the reference is mostly in a script that it ignores."""
    if reference.isascii():
        return _ascii_words
    letters, latin = len(_LETTER.findall(reference)), len(_LATIN_LETTER.findall(reference))
    return ptb_tokenize if letters > 2 * latin else _ascii_words


class Rouge:
    """One ROUGE value per text in [0, 1]; higher is better (Lin, 2004).

    An empty text, or one without words, scores 0. With several references the best or the mean of the single values is
    taken.

    Args:
        stem: Porter stemming, as `-m` of ROUGE-1.5.5 and `use_stemmer=True` of rouge-score.
        measure: "f", "precision" or "recall". The best of several references is chosen by this measure.
        multi: "best" or "mean" over the references.
        tokenizer: "rouge" (the runs of a–z and 0–9 that rouge-score counts), "ptb", "space", or a function from text to
            tokens. Default: "ptb" for references mostly written in another script than the Latin, else "rouge".

    Raises:
        ValueError: unknown measure, multi or tokenizer; when scoring, a text without references.
    """

    name: str

    def __init__(
        self,
        stem: bool = True,
        measure: str = "f",
        multi: str = "best",
        tokenizer: str | Callable[[str], Tokens] | None = None,
    ) -> None:
        if measure not in _MEASURES:
            raise ValueError(f"{self.name}: measure must be one of {', '.join(_MEASURES)}, got {measure!r}")
        if multi not in ("best", "mean"):
            raise ValueError(f'{self.name}: multi must be "best" or "mean", got {multi!r}')
        self.stem, self.measure, self.multi = stem, measure, multi
        self.tokenizer: Callable[[str], Tokens] | None = _ascii_words if tokenizer == "rouge" else None
        if tokenizer not in (None, "rouge"):
            self.tokenizer = tokenizer_of(tokenizer, self.name, "rouge")
        self._references = LRUCache(4096)

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        return [self._score(text, texts) for text, texts in zip(completions, rows, strict=True)]

    def _score(self, text: str, references: tuple[str, ...]) -> float:
        prepare = lru_cache(partial(self._prepare, text))  # once for all references that are split alike
        values = []
        for reference in references:
            split, kept = self._references.get_or_make(reference, partial(self._keep, reference))
            values.append(self._measure(*self._match(kept, prepare(split))))
        return max(values) if self.multi == "best" else sum(values) / len(values)

    def _keep(self, reference: str) -> tuple[Callable[[str], Tokens], Any]:
        """How a reference and what is compared with it are split, and what is kept of it."""
        split = self.tokenizer or _words_like(reference)
        return split, self._prepare(reference, split)

    def _measure(self, hits: int, reference_total: int, total: int) -> float:
        precision, recall = hits / max(total, 1), hits / max(reference_total, 1)
        if self.measure == "f":
            return float(fmeasure(precision, recall))
        return precision if self.measure == "precision" else recall

    def _tokens(self, text: str, split: Callable[[str], Tokens]) -> Tokens:
        words = split(text)
        return [_stem(word) for word in words] if self.stem else words

    def _prepare(self, text: str, split: Callable[[str], Tokens]) -> Any:
        """What is kept of a text."""
        return self._tokens(text, split)

    def _match(self, reference: Any, candidate: Any) -> tuple[int, int, int]:
        """Common units, units of the reference, units of the candidate."""
        raise NotImplementedError


class _RougeN(Rouge):
    """Overlap of n-grams with clipped counts."""

    order: int

    def _prepare(self, text: str, split: Callable[[str], Tokens]) -> tuple[Counter[Any], int]:
        tokens = self._tokens(text, split)
        if self.order == 1:
            return Counter(tokens), len(tokens)
        ngrams = Counter(zip(*(tokens[i:] for i in range(self.order)), strict=False))
        return ngrams, max(len(tokens) - self.order + 1, 0)

    def _match(self, reference: Any, candidate: Any) -> tuple[int, int, int]:
        (counts, total), (other_counts, other_total) = reference, candidate
        hits = sum(min(count, counts[ngram]) for ngram, count in other_counts.items() if ngram in counts)
        return hits, total, other_total


class Rouge1(_RougeN):
    """ROUGE-1: overlap of words. Arguments and range: see `Rouge`."""

    name, order = "rouge1", 1


class Rouge2(_RougeN):
    """ROUGE-2: overlap of word pairs. Arguments and range: see `Rouge`."""

    name, order = "rouge2", 2


class RougeL(Rouge):
    """ROUGE-L: longest common subsequence of whole texts. Arguments and range: see `Rouge`."""

    name = "rougeL"

    def _match(self, reference: Any, candidate: Any) -> tuple[int, int, int]:
        return lcs_length(reference, candidate), len(reference), len(candidate)


class RougeLsum(Rouge):
    """ROUGE-Lsum: union of sentence-wise longest common subsequences (Lin, 2004, section 3.2). Range: see `Rouge`.

    Args:
        stem, measure, multi, tokenizer: see `Rouge`.
        split: "newline" (a sentence a line, as rouge-score does) or "nltk" (`nltk.sent_tokenize`, which needs the punkt
            data of nltk).
    """

    name = "rougeLsum"

    def __init__(
        self,
        stem: bool = True,
        measure: str = "f",
        multi: str = "best",
        split: str = "newline",
        tokenizer: str | Callable[[str], Tokens] | None = None,
    ) -> None:
        if split not in ("newline", "nltk"):
            raise ValueError(f'rougeLsum: split must be "newline" or "nltk", got {split!r}')
        if split == "nltk":
            check_nltk('rougeLsum: split="nltk"', "punkt_tab", partial(sent_tokenize, ""))
        super().__init__(stem, measure, multi, tokenizer)
        self.split = split

    def _prepare(self, text: str, split: Callable[[str], Tokens]) -> list[Tokens]:
        sentences = sent_tokenize(text) if self.split == "nltk" else text.split("\n")
        return [self._tokens(sentence, split) for sentence in sentences if sentence]

    def _match(self, reference: list[Tokens], candidate: list[Tokens]) -> tuple[int, int, int]:
        left = Counter(token for sentence in candidate for token in sentence)
        left_reference = Counter(token for sentence in reference for token in sentence)
        totals = left_reference.total(), left.total()
        hits = 0
        for sentence in reference:
            union = sorted(set().union(*(lcs_indices(sentence, other) for other in candidate)))
            for token in (sentence[i] for i in union):
                if left[token] > 0 and left_reference[token] > 0:  # each token is counted once, as in ROUGE-1.5.5
                    hits += 1
                    left[token] -= 1
                    left_reference[token] -= 1
        return hits, *totals


def _corpus(scorer: Rouge, completions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    values = scorer(completions, references=references)
    return sum(values) / len(values)


@hands_on(Rouge1)
def corpus_rouge1(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean ROUGE-1 in [0, 1]. Arguments as for `Rouge1`."""
    return _corpus(Rouge1(**kwargs), completions, references)


@hands_on(Rouge2)
def corpus_rouge2(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean ROUGE-2 in [0, 1]. Arguments as for `Rouge2`."""
    return _corpus(Rouge2(**kwargs), completions, references)


@hands_on(RougeL)
def corpus_rougeL(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean ROUGE-L in [0, 1]. Arguments as for `RougeL`."""
    return _corpus(RougeL(**kwargs), completions, references)


@hands_on(RougeLsum)
def corpus_rougeLsum(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean ROUGE-Lsum in [0, 1]. Arguments as for `RougeLsum`."""
    return _corpus(RougeLsum(**kwargs), completions, references)
