"""METEOR as a reward, by nltk: matches of words and stems, weighted towards recall, penalised where scattered.

Synonyms need nltk's WordNet corpus, which has to be downloaded, so they are off by default. METEOR 1.5, with paraphrase
tables, exists in Java alone and is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score

from .answers import bounded
from .base import usable_references
from .shared_state import LRUCache
from .words import check_nltk, tokenizer_of


class _Stemmer:
    """Porter stems, each computed once. The words stay a matter of this process."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=2**16)(PorterStemmer().stem)


class _NoSynonyms:
    """In place of WordNet: no word has synonyms."""

    @staticmethod
    def synsets(_: str) -> list[Any]:
        return []


_STEMMER = _Stemmer()


class METEOR:
    """METEOR in [0, 1]; higher is better (Lavie & Agarwal, 2007; best of several references).

    Equals `nltk.translate.meteor_score.meteor_score` on the same tokens, without synonyms unless `synonyms` is on. A
    text without a matching word scores 0.

    Args:
        alpha, beta, gamma: weight of recall, and shape and weight of the penalty for fragments.
        synonyms: also match WordNet synonyms; `nltk.download("wordnet")` must have been run.
        tokenizer: "ptb", "space", or a function from text to tokens.

    Raises:
        ValueError: unknown tokenizer, or a number out of range; when scoring, a text without references.
        FileNotFoundError: `synonyms`, and WordNet is not there.
    """

    name = "meteor"

    def __init__(
        self,
        alpha: float = 0.9,
        beta: float = 3.0,
        gamma: float = 0.5,
        synonyms: bool = False,
        tokenizer: str | Callable[[str], list[str]] = "ptb",
    ) -> None:
        for argument, value, most in [("alpha", alpha, 1.0), ("beta", beta, math.inf), ("gamma", gamma, 1.0)]:
            if not 0.0 <= value <= most or math.isinf(value):
                raise ValueError(f"meteor: {argument} must be at least 0 and at most {most}, got {value}")
        if synonyms:
            check_nltk("meteor: synonyms", "wordnet", lambda: wordnet.ensure_loaded())
        self.settings = {"alpha": alpha, "beta": beta, "gamma": gamma}
        self.synonyms = synonyms
        self.tokenizer = tokenizer_of(tokenizer, self.name)
        self._references = LRUCache(4096)

    def __call__(
        self, completions: Sequence[str], *, references: Sequence[Sequence[str | None]], **_: Any
    ) -> list[float]:
        rows = usable_references(references, self.name)
        return [self._score(text, texts) for text, texts in zip(completions, rows, strict=True)]

    def _score(self, text: str, references: tuple[str, ...]) -> float:
        others = self._references.get_or_make(references, lambda: [self.tokenizer(other) for other in references])
        thesaurus = wordnet if self.synonyms else _NoSynonyms
        score = meteor_score(others, self.tokenizer(text), stemmer=_STEMMER, wordnet=thesaurus, **self.settings)
        return bounded(score)
