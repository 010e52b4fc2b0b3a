"""CIDEr-D and plain CIDEr as rewards: n-gram TF-IDF similarity to several references (Vedantam et al., 2015).

What everyone reports as "CIDEr" — the COCO server, pycocoevalcap's `Cider`, self-critical training — is the paper's
CIDEr-D, with clipped counts and a length penalty; "cider" and "cider-d" both name it. "cider-plain" is the paper's
CIDEr_n (equation 2) without them.

Document frequencies come from a fixed corpus, never from the batch being scored: they are fitted once from a task's
references, given, or loaded from a file. Java's PTB tokenizer is not needed: `words.ptb_tokenize` stands in for it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answers import bounded
from .arguments import hands_on
from .base import usable_references
from .shared_state import LRUCache
from .words import Ngram, ngram_counts, ptb_tokenize, tokenizer_of


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many of `documents` an n-gram occurs; a document is the set of references of one prompt."""

    documents: int
    counts: Mapping[Ngram, int]

    @classmethod
    def fit(
        cls,
        references: Sequence[Sequence[str | None]],
        tokenize: Callable[[str], list[str]] = ptb_tokenize,
        order: int = 4,
    ) -> DocumentFrequencies:
        """Counts over a corpus: one list of references a prompt.

        Raises:
            ValueError: fewer than two documents, with which every weight log(N/df) would be 0.
        """
        rows = usable_references(references, "cider")
        if len(rows) < 2:
            raise ValueError(
                f"cider: document frequencies need the references of at least two prompts, got {len(rows)}; "
                f"give a larger corpus by `frequencies`, a file that DocumentFrequencies.save wrote"
            )
        counts: Counter[Ngram] = Counter()
        for texts in rows:
            counts.update({ngram for text in texts for ngram in ngram_counts(tokenize(text), order)})
        return cls(len(rows), dict(counts))

    def save(self, path: str | Path) -> None:
        """Writes JSON: the number of documents, and a list of [tokens of an n-gram, count]."""
        rows = sorted(self.counts.items())
        Path(path).write_text(json.dumps({"documents": self.documents, "counts": rows}, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        try:
            stored = json.loads(Path(path).read_text("utf-8"))
            counts = {tuple(ngram): int(count) for ngram, count in stored["counts"]}
            documents = int(stored["documents"])
        except FileNotFoundError:
            raise FileNotFoundError(f"cider: frequencies={str(path)!r}: there is no such file") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"cider: frequencies={str(path)!r} must be a file that DocumentFrequencies.save wrote: "
                f"{type(error).__name__}: {error}"
            ) from error
        if documents < 1 or not all(1 <= count <= documents for count in counts.values()):
            raise ValueError(f"cider: frequencies={str(path)!r} must count between 1 and {documents} documents")
        return cls(documents, counts)


@dataclass(frozen=True)
class _Vector:
    """TF-IDF weights of a text, their norm for each order, and its length: word pairs, as pycocoevalcap counts."""

    weights: Mapping[Ngram, float]
    norms: tuple[float, ...]
    length: int


class CIDEr:
    """CIDEr-D in [0, 1], a tenth of the published scale; higher is better. Texts that say what references say score ~1.

    Ten times the reward equals `pycocoevalcap.cider.Cider` on the same tokens and document frequencies: the mean over
    n = 1…4 and over references s of exp(−(l_c − l_s)² / 2σ²) · Σ min(g_c, g_s)·g_s / (|g_c|·|g_s|). An empty text
    scores 0.

    Args:
        frequencies: `DocumentFrequencies`, or the path of a file of them. Without it `fit_references` must have been
            called, as an environment does with the references of its task.
        tokenizer: "ptb", "space" (texts are tokenised already), or a function from text to tokens.
        eos: a word that ends every reference and every finished completion, as "<eos>" in self-critical training
            (Rennie et al., 2017), so that stopping at the right place counts. Completions whose entry in
            `finish_reasons` is "length" or `None` do not get it. Default: no such word.
        order: longest n-grams.
        sigma: width of the length penalty, in words.

    Raises:
        ValueError: unknown tokenizer, an argument out of range, a file that holds no frequencies; scoring without
            frequencies or without references.
        FileNotFoundError: no such file.
    """

    name = "cider"
    clip = True

    def __init__(
        self,
        frequencies: DocumentFrequencies | str | Path | None = None,
        tokenizer: str | Callable[[str], list[str]] = "ptb",
        eos: str | None = None,
        order: int = 4,
        sigma: float = 6.0,
    ) -> None:
        self.tokenizer = tokenizer_of(tokenizer, self.name)
        if order < 1 or not 0 < sigma < math.inf or eos == "":
            raise ValueError(
                f"{self.name}: need order >= 1, sigma > 0 and an eos that is a word, got {order=}, {sigma=}, {eos=}"
            )
        self.eos, self.order, self.sigma = eos, order, sigma
        self.given = frequencies is not None
        loaded = DocumentFrequencies.load(frequencies) if isinstance(frequencies, (str, Path)) else frequencies
        self.frequencies: DocumentFrequencies | None = loaded
        self._references = LRUCache(4096)

    def fit_references(self, references: Sequence[Sequence[str | None]]) -> None:
        """Takes the document frequencies from a task's references, unless frequencies were given."""
        if not self.given:
            self.frequencies = DocumentFrequencies.fit(references, self._finished_tokens, self.order)
            self._references = LRUCache(4096)  # what is kept there depends on the frequencies

    def __call__(
        self,
        completions: Sequence[str],
        *,
        references: Sequence[Sequence[str | None]],
        finish_reasons: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float]:
        if self.frequencies is None:
            raise ValueError(f"{self.name}: no document frequencies; give `frequencies` or call `fit_references` first")
        reasons = finish_reasons or ["eos"] * len(completions)
        rows = usable_references(references, self.name)
        return [self._score(*row) for row in zip(completions, rows, reasons, strict=True)]

    def _score(self, text: str, references: tuple[str, ...], finish_reason: str | None) -> float:
        """Mean over references and orders, in [0, 1]."""
        finished = finish_reason not in (None, "length")
        candidate = self._vector(self._finished_tokens(text) if finished else self.tokenizer(text))
        others = self._references.get_or_make(
            references, lambda: [self._vector(self._finished_tokens(reference)) for reference in references]
        )
        total = sum(self._similarity(candidate, other) for other in others)
        return bounded(total / (len(references) * self.order))

    def _finished_tokens(self, text: str) -> list[str]:
        """The tokens of a text that ended by itself."""
        return [*self.tokenizer(text), self.eos] if self.eos else self.tokenizer(text)

    def _vector(self, tokens: Sequence[str]) -> _Vector:
        """TF-IDF weights tf · (log N − log max(1, df))."""
        assert self.frequencies is not None
        log_documents, frequencies = math.log(self.frequencies.documents), self.frequencies.counts
        weights, squares = {}, [0.0] * self.order
        for ngram, count in ngram_counts(tokens, self.order).items():
            weight = count * (log_documents - math.log(frequencies.get(ngram, 1)))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        return _Vector(weights, tuple(map(math.sqrt, squares)), max(len(tokens) - 1, 0))

    def _similarity(self, candidate: _Vector, other: _Vector) -> float:
        """Sum over orders of the cosine, clipped and penalised for its length."""
        dots = [0.0] * self.order
        for ngram, weight in candidate.weights.items():
            reference_weight = other.weights.get(ngram)
            if reference_weight is not None:
                clipped = min(weight, reference_weight) if self.clip else weight
                dots[len(ngram) - 1] += clipped * reference_weight
        products = (a * b for a, b in zip(candidate.norms, other.norms, strict=True))
        cosines = sum(dot / product for dot, product in zip(dots, products, strict=True) if product)
        if not self.clip:
            return cosines
        return cosines * math.exp(-((candidate.length - other.length) ** 2) / (2 * self.sigma**2))


class PlainCIDEr(CIDEr):
    """CIDEr without clipping and length penalty, in [0, 1]: the mean cosine of equation 2 (Vedantam et al., 2015).

    Arguments as for `CIDEr`; `sigma` has no effect. Repeating a reference's words is rewarded: prefer CIDEr-D.
    """

    name = "cider-plain"
    clip = False


@hands_on(CIDEr)
def corpus_cider(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean CIDEr-D on the published scale, 0–10; frequencies from `references` unless given. See `CIDEr`."""
    return _corpus(CIDEr(**kwargs), completions, references)


@hands_on(PlainCIDEr)
def corpus_plain_cider(completions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> float:
    """Mean plain CIDEr in 0–10; arguments as for `corpus_cider`."""
    return _corpus(PlainCIDEr(**kwargs), completions, references)


def _corpus(scorer: CIDEr, completions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    scorer.fit_references(references)
    scores = scorer(completions, references=references)
    return 10.0 * sum(scores) / len(scores)
