"""CIDEr against pycocoevalcap, and against a direct transcription of the paper's equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from text_pairs import PAIRS

from textgen_env.scorers import corpus_score, get_scorer
from textgen_env.scorers.cider import CIDEr, DocumentFrequencies
from textgen_env.scorers.words import ptb_tokenize

pycoco = pytest.importorskip("pycocoevalcap.cider.cider")


@pytest.fixture(scope="module")
def tokenised():
    """Completions and references as pycocoevalcap takes them: tokens joined by spaces."""
    completions = [" ".join(ptb_tokenize(text)) for text in PAIRS.completions]
    return completions, [[" ".join(ptb_tokenize(text)) for text in texts] for texts in PAIRS.references]


def coco_scores(completions: list[str], references: list[list[str]]) -> np.ndarray:
    """pycocoevalcap's score of each text; its document frequencies are those of `references`."""
    truths = dict(enumerate(references))
    return pycoco.Cider().compute_score(truths, {i: [text] for i, text in enumerate(completions)})[1]


def paper_cider(candidate: str, references: list[str], corpus: list[list[str]], sigma: float | None) -> float:
    """Mean over n of CIDEr_n (equation 2), or of CIDEr-D_n where `sigma` is given; without the factor 10."""

    def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for n in range(1, 5):
        vocabulary = sorted({g for text in [candidate, *references] for g in ngrams(text, n)})
        documents = [{g for text in texts for g in ngrams(text, n)} for texts in corpus]
        df = [sum(g in document for document in documents) for g in vocabulary]
        idf = np.array([math.log(len(corpus) / max(1, count)) for count in df])
        c = np.array([ngrams(candidate, n).count(g) for g in vocabulary]) * idf
        for reference in references:
            r = np.array([ngrams(reference, n).count(g) for g in vocabulary]) * idf
            norm = np.linalg.norm(c) * np.linalg.norm(r)
            if norm == 0:
                continue
            if sigma is None:
                total += c @ r / norm
            else:
                delta = len(candidate.split()) - len(reference.split())
                total += np.minimum(c, r) @ r / norm * math.exp(-(delta**2) / (2 * sigma**2))
    return total / (4 * len(references))


@pytest.mark.parametrize("name", ["cider", "cider-d"])
def test_equals_pycocoevalcap(tokenised, name) -> None:
    completions, references = tokenised
    scorer = get_scorer(name, tokenizer="space")
    scorer.fit_references(references)
    expected = coco_scores(completions, references)
    for _ in range(2):
        scores = scorer(completions, references=references)
        assert np.array(scores) * 10 == pytest.approx(expected, abs=1e-9)
    assert corpus_score(name, completions, references, tokenizer="space") == pytest.approx(expected.mean(), abs=1e-9)


@pytest.mark.parametrize(("name", "sigma"), [("cider-d", 6.0), ("cider-plain", None)])
def test_equals_the_paper(tokenised, name, sigma) -> None:
    completions, references = (part[:40] for part in tokenised)
    scorer = get_scorer(name, tokenizer="space")
    scorer.fit_references(references)
    scores = scorer(completions, references=references)
    expected = [paper_cider(c, r, references, sigma) for c, r in zip(completions, references, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-9)


def test_frequencies_come_from_the_corpus_not_from_the_batch(tokenised) -> None:
    completions, references = tokenised
    scorer = get_scorer("cider", tokenizer="space")
    scorer.fit_references(references)
    together = scorer(completions, references=references)
    alone = [scorer([c], references=[r])[0] for c, r in zip(completions, references, strict=True)]
    assert alone == together
    assert max(alone) > 0


def test_saved_and_loaded(tokenised, tmp_path) -> None:
    completions, references = tokenised
    fitted = get_scorer("cider", tokenizer="space")
    fitted.fit_references(references)
    fitted.frequencies.save(tmp_path / "df.json")
    loaded = get_scorer({"name": "cider", "tokenizer": "space", "frequencies": str(tmp_path / "df.json")})
    loaded.fit_references(references[:2])  # given frequencies stay
    assert loaded.frequencies == fitted.frequencies
    assert loaded(completions, references=references) == fitted(completions, references=references)


def test_eos_word(tokenised) -> None:
    """As in self-critical training: a word at the end of references and of completions that ended by themselves."""
    completions, references = (part[:100] for part in tokenised)
    ended = [text + " <eos>" for text in completions]
    references_ended = [[text + " <eos>" for text in texts] for texts in references]
    scorer = get_scorer("cider", tokenizer="space", eos="<eos>")
    scorer.fit_references(references)
    reasons = ["eos", "length"] * 50
    scores = scorer(completions, references=references, finish_reasons=reasons)
    mixed = [ended[i] if reason == "eos" else completions[i] for i, reason in enumerate(reasons)]
    assert np.array(scores) * 10 == pytest.approx(coco_scores(mixed, references_ended), abs=1e-9)
    assert scorer(completions, references=references)[0] == scores[0]  # without reasons all have ended


def test_a_copy_of_the_only_reference_scores_one() -> None:
    scorer = get_scorer("cider")
    scorer.fit_references([["a red bus on the road"], ["two dogs in a park"], ["some food"]])
    assert scorer(["A red bus, on the road.", ""], references=[["a red bus on the road"]] * 2) == [
        pytest.approx(1.0),
        0.0,
    ]


def test_errors() -> None:
    with pytest.raises(ValueError, match="fit_references"):
        get_scorer("cider")(["a"], references=[["a"]])
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        get_scorer("cider").fit_references([["a"]])
    with pytest.raises(ValueError, match="tokenizer"):
        get_scorer("cider", tokenizer="java")
    scorer = CIDEr(DocumentFrequencies(5, {("a",): 1}))
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        scorer(["a", "b"], references=[["a"], [None]])


def test_ptb_tokens() -> None:
    text = "Don't say it's a well-known 3.5% thing: they'll (maybe) go... I can't! The cats’ tails, the dog’s 1/2."
    expected = "do n't say it 's a well-known 3.5 thing they 'll maybe go i ca n't the cats tails the dog 's 1/2"
    assert ptb_tokenize(text) == expected.split()
