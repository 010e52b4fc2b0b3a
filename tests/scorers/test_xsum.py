"""Metrics on fetched news: the first 25 words of 250 articles against their one-line summaries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from textgen_env.assets import prompt_path
from textgen_env.scorers import get_scorer
from textgen_env.scorers.words import ptb_tokenize

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def news() -> tuple[list[str], list[list[str]]]:
    try:
        lines = prompt_path("xsum").read_text("utf-8").splitlines()[:250]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    rows = [json.loads(line) for line in lines]
    return [" ".join(row["prompt"].split()[:25]) for row in rows], [row["references"] for row in rows]


def test_bleu_and_chrf(news) -> None:
    texts, references = news
    for name, metric in [("bleu", sacrebleu.BLEU(effective_order=True)), ("chrf", sacrebleu.CHRF())]:
        expected = [metric.sentence_score(t, r).score / 100 for t, r in zip(texts, references, strict=True)]
        assert get_scorer(name)(texts, references=references) == expected


def test_rouge(news) -> None:
    texts, references = news
    oracle = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    results = [oracle.score_multi(r, t) for t, r in zip(texts, references, strict=True)]
    for name in oracle.rouge_types:
        assert get_scorer(name)(texts, references=references) == [result[name].fmeasure for result in results]


def test_cider(news) -> None:
    pycoco = pytest.importorskip("pycocoevalcap.cider.cider")
    texts, references = news
    scorer = get_scorer("cider")
    scorer.fit_references(references)
    truths = {i: [" ".join(ptb_tokenize(other)) for other in others] for i, others in enumerate(references)}
    _, expected = pycoco.Cider().compute_score(truths, {i: [" ".join(ptb_tokenize(t))] for i, t in enumerate(texts)})
    assert np.array(scorer(texts, references=references)) * 10 == pytest.approx(expected, abs=1e-9)
