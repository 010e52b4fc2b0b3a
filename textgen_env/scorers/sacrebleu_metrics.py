"""Sentence BLEU, chrF and TER as rewards, and their corpus-level values: thin wrappers around sacrebleu.

Everything is counted and computed by sacrebleu, through its public interface. What is added here: references are
prepared once and remembered, since a task asks for the same references in every epoch; scales; and what to do with very
long texts under TER.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein
from sacrebleu import metrics

from .answers import bounded
from .arguments import hands_on
from .base import usable_references
from .shared_state import LRUCache


class _SacrebleuScorer:
    """One number per text from a metric of sacrebleu, made once for each set of references.

    A metric that is made with references prepares them once, and compares with them whatever `corpus_score` is given;
    of a single text that is its `sentence_score`.

    Args:
        kind: the class of the metric.
        settings: its arguments.
        cache_size: sets of references that are remembered.
    """

    name: str

    def __init__(self, kind: Callable[..., Any], settings: dict[str, Any], cache_size: int = 4096) -> None:
        self.kind, self.settings = kind, settings
        self.metric = kind(**settings)
        self._prepared = LRUCache(cache_size)

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        return [self._score(text, texts) for text, texts in zip(completions, rows, strict=True)]

    def _score(self, text: str, references: tuple[str, ...]) -> float:
        """The reward of one text."""
        return bounded(self._published(text, references) / 100.0)

    def _published(self, text: str, references: tuple[str, ...]) -> float:
        """The metric as sacrebleu prints it."""
        prepared = self._prepared.get_or_make(references, lambda: self._prepare(references))
        return float(prepared.corpus_score([text], None).score)

    def _prepare(self, references: tuple[str, ...]) -> Any:
        """The metric of these references."""
        return self.kind(**self.settings, references=[[text] for text in references])


class BLEU(_SacrebleuScorer):
    """Sentence BLEU with effective order, in [0, 1]; higher is better (Papineni et al., 2002; sacrebleu).

    Equals `sacrebleu.BLEU(effective_order=True).sentence_score(...).score / 100`. Without effective order a text of
    fewer than four tokens would score 0 whatever it says. An empty text scores 0.

    Args:
        tokenize: any tokenizer of sacrebleu: "13a", "intl", "char", "zh", "none", "ja-mecab" …
        lowercase: ignore case.
        smooth_method: "exp", "floor", "add-k" or "none".
        smooth_value: the value for "floor" and "add-k".
        max_ngram_order: longest n-grams.
        effective_order: leave out orders longer than the text.

    Raises:
        ValueError: unknown tokenizer or smoothing method; when scoring, a text without references.
    """

    name = "bleu"

    def __init__(
        self,
        tokenize: str = "13a",
        lowercase: bool = False,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        max_ngram_order: int = 4,
        effective_order: bool = True,
    ) -> None:
        settings = _bleu_settings(tokenize, lowercase, smooth_method, smooth_value, max_ngram_order, effective_order)
        super().__init__(metrics.BLEU, settings)

    def _published(self, text: str, references: tuple[str, ...]) -> float:
        return super()._published(self._tokenized(text), references)

    def _prepare(self, references: tuple[str, ...]) -> Any:
        """One tokenizer, which may be a large model, serves all references: they come as its tokens."""
        tokens = [[self._tokenized(text)] for text in references]
        return metrics.BLEU(**{**self.settings, "tokenize": "none", "lowercase": False}, references=tokens)

    def _tokenized(self, text: str) -> str:
        return self.metric.tokenizer((text.lower() if self.metric.lowercase else text).rstrip())


class ChrF(_SacrebleuScorer):
    """Sentence chrF in [0, 1]; higher is better (Popović, 2015; sacrebleu). `word_order=2` gives chrF++.

    An empty text scores 0. The arguments are those of `sacrebleu.CHRF`.
    """

    name = "chrf"

    def __init__(
        self,
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
    ) -> None:
        if char_order < 1 or word_order < 0 or beta <= 0:
            raise ValueError(
                f"chrf: need char_order >= 1, word_order >= 0 and beta > 0, got {char_order=}, {word_order=}, {beta=}"
            )
        super().__init__(
            metrics.CHRF,
            {
                "char_order": char_order,
                "word_order": word_order,
                "beta": beta,
                "lowercase": lowercase,
                "whitespace": whitespace,
                "eps_smoothing": eps_smoothing,
            },
        )


class TER(_SacrebleuScorer):
    """Minus the translation edit rate: in (−∞, 0], 0 is a perfect match (Snover et al., 2006; sacrebleu).

    Equals `−sacrebleu.TER(...).sentence_score(...).score / 100`. An empty text against a reference scores −1.

    Tercom's search for shifts takes hours on texts of 10,000 words, so texts or references beyond `max_words` words are
    scored by their edit distance without shifts, which is an upper bound of TER (a lower bound of the reward).

    Args:
        normalized, no_punct, asian_support, case_sensitive: as in `sacrebleu.TER`.
        max_words: longest text, in words, for which shifts are searched.
    """

    name = "ter"

    def __init__(
        self,
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        case_sensitive: bool = False,
        max_words: int = 400,
    ) -> None:
        if max_words < 0:
            raise ValueError(f"ter: max_words must be at least 0, got {max_words}")
        super().__init__(
            metrics.TER,
            {
                "normalized": normalized,
                "no_punct": no_punct,
                "asian_support": asian_support,
                "case_sensitive": case_sensitive,
            },
        )
        self.max_words = max_words

    def _score(self, text: str, references: tuple[str, ...]) -> float:
        if max(len(t.split()) for t in (text, *references)) > self.max_words:
            return 0.0 - self._without_shifts(text, references)
        return 0.0 - self._published(text, references) / 100.0

    def _without_shifts(self, text: str, references: tuple[str, ...]) -> float:
        """Fewest word edits to a reference over the mean reference length, as in TER but for shifts."""
        words, *others = (self.metric.tokenizer(one.rstrip()).split() for one in (text, *references))
        edits = min(Levenshtein.distance(words, other) for other in others)
        mean_length = sum(map(len, others)) / len(others)
        return edits / mean_length if mean_length else float(edits > 0)


@hands_on(BLEU, effective_order=False)
def corpus_bleu(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Corpus BLEU in [0, 100], without effective order unless asked for. Arguments as for `BLEU`."""
    settings = {"tokenize": "13a", "lowercase": False, "smooth_method": "exp", "smooth_value": None}
    settings |= {"max_ngram_order": 4, "effective_order": False}
    return _corpus(metrics.BLEU(**_bleu_settings(**{**settings, **kwargs})), completions, references)


@hands_on(ChrF)
def corpus_chrf(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Corpus chrF in [0, 100]. Arguments as for `ChrF`."""
    return _corpus(metrics.CHRF(**kwargs), completions, references)


@hands_on(TER, "max_words")
def corpus_ter(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Corpus TER in [0, ∞) per cent; lower is better. Arguments as for `sacrebleu.TER`."""
    return _corpus(metrics.TER(**kwargs), completions, references, math.inf)


def _corpus(metric: Any, completions: Sequence[str], references: Sequence[Sequence[str]], high: float = 100.0) -> float:
    """`corpus_score` of sacrebleu, whose references come as streams, filled up with `None`; no more than `high`."""
    rows = usable_references(references, "corpus_score")
    longest = max(map(len, rows))
    streams = [[row[i] if i < len(row) else None for row in rows] for i in range(longest)]
    return bounded(metric.corpus_score(list(completions), streams).score, high=high)


def _bleu_settings(
    tokenize: str,
    lowercase: bool,
    smooth_method: str,
    smooth_value: float | None,
    max_ngram_order: int,
    effective_order: bool,
) -> dict[str, Any]:
    """The arguments of sacrebleu's BLEU, checked by name."""
    if tokenize not in metrics.BLEU.TOKENIZERS:
        raise ValueError(f"bleu: tokenize must be one of {', '.join(metrics.BLEU.TOKENIZERS)}, got {tokenize!r}")
    if smooth_method not in metrics.BLEU.SMOOTH_DEFAULTS:
        choices = ", ".join(metrics.BLEU.SMOOTH_DEFAULTS)
        raise ValueError(f"bleu: smooth_method must be one of {choices}, got {smooth_method!r}")
    if max_ngram_order < 1:
        raise ValueError(f"bleu: max_ngram_order must be at least 1, got {max_ngram_order}")
    if smooth_value is not None and not 0 <= smooth_value < math.inf:
        raise ValueError(f"bleu: smooth_value must be at least 0, got {smooth_value}")
    return {
        "tokenize": tokenize,
        "lowercase": lowercase,
        "smooth_method": smooth_method,
        "smooth_value": smooth_value,
        "max_ngram_order": max_ngram_order,
        "effective_order": effective_order,
        "force": True,  # no warnings about text that looks tokenised
    }
