"""BLEU, chrF and TER against sacrebleu's own `sentence_score` and `corpus_score`."""

from __future__ import annotations

import ast
import inspect

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International
from text_pairs import PAIRS

from textgen_env.scorers import corpus_score, get_scorer, sacrebleu_metrics


@pytest.mark.parametrize(
    ("name", "arguments", "metric", "sign"),
    [
        ("bleu", {}, sacrebleu.BLEU(effective_order=True), 1),
        (
            "bleu",
            {"tokenize": "intl", "lowercase": True},
            sacrebleu.BLEU(True, tokenize="intl", effective_order=True),
            1,
        ),
        ("bleu", {"tokenize": "char"}, sacrebleu.BLEU(tokenize="char", effective_order=True), 1),
        ("bleu", {"tokenize": "zh"}, sacrebleu.BLEU(tokenize="zh", effective_order=True), 1),
        ("bleu", {"tokenize": "none"}, sacrebleu.BLEU(tokenize="none", effective_order=True), 1),
        (
            "bleu",
            {"smooth_method": "floor", "smooth_value": 0.2, "max_ngram_order": 3},
            sacrebleu.BLEU(smooth_method="floor", smooth_value=0.2, max_ngram_order=3, effective_order=True),
            1,
        ),
        ("bleu", {"smooth_method": "add-k"}, sacrebleu.BLEU(smooth_method="add-k", effective_order=True), 1),
        ("chrf", {}, sacrebleu.CHRF(), 1),
        ("chrf", {"word_order": 2, "lowercase": True}, sacrebleu.CHRF(word_order=2, lowercase=True), 1),
        ("ter", {}, sacrebleu.TER(), -1),
        ("ter", {"normalized": True, "case_sensitive": True}, sacrebleu.TER(normalized=True, case_sensitive=True), -1),
    ],
)
def test_rewards_equal_sentence_score(name, arguments, metric, sign) -> None:
    scorer = get_scorer(name, **arguments)
    references = PAIRS.first_references() if name == "ter" else PAIRS.references  # TER takes its time
    expected = [
        min(sign * metric.sentence_score(text, texts).score / 100, 1.0)  # sacrebleu's BLEU can be 1.0000000000000004
        for text, texts in zip(PAIRS.completions, references, strict=True)
    ]
    for _ in range(2):  # the second time from remembered references
        assert scorer(PAIRS.completions, references=references) == expected


TEXT = st.text(st.sampled_from("abAB İé. ,-\n\t中"), max_size=30)


@given(
    TEXT, st.lists(TEXT, min_size=1, max_size=3), st.sampled_from(["13a", "intl", "char", "zh", "none"]), st.booleans()
)
def test_any_text_has_sacrebleus_value(text: str, references: list[str], tokenize: str, lowercase: bool) -> None:
    metric = sacrebleu.BLEU(lowercase, tokenize=tokenize, effective_order=True, force=True)
    (value,) = get_scorer("bleu", tokenize=tokenize, lowercase=lowercase)([text], references=[references])
    assert value == pytest.approx(metric.sentence_score(text, references).score / 100, abs=1e-12)
    assert 0 <= value <= 1


def test_one_tokenizer_serves_all_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of sacrebleu's are models of many megabytes."""
    made = []
    init = TokenizerV14International.__init__
    monkeypatch.setattr(TokenizerV14International, "__init__", lambda self: (made.append(self), init(self))[1])
    scorer = get_scorer("bleu", tokenize="intl")
    scorer(PAIRS.completions[:20], references=PAIRS.references[:20])
    assert len(made) == 1


def test_only_what_sacrebleu_documents_is_used() -> None:
    tree = ast.parse(inspect.getsource(sacrebleu_metrics))
    private = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert {ast.unparse(node.value) for node in private} <= {"self", "super()"}


def test_ter_with_several_references() -> None:
    completions, references = PAIRS.completions[:25], PAIRS.references[:25]
    metric = sacrebleu.TER()
    expected = [-metric.sentence_score(c, r).score / 100 for c, r in zip(completions, references, strict=True)]
    assert get_scorer("ter")(completions, references=references) == expected


@pytest.mark.parametrize(
    ("name", "metric"), [("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF()), ("ter", sacrebleu.TER())]
)
def test_corpus_score_equals_sacrebleu(name, metric) -> None:
    first = [[texts[0] for texts in PAIRS.references]]
    expected = metric.corpus_score(PAIRS.completions, first).score
    assert corpus_score(name, PAIRS.completions, PAIRS.first_references()) == expected


def test_corpus_score_with_different_numbers_of_references() -> None:
    completions = ["the cat sat", "a dog ran off"]
    streams = [["the cat sat down", "the dog ran off"], ["a cat sat", None]]
    expected = sacrebleu.CHRF().corpus_score(completions, streams).score
    assert corpus_score("chrf", completions, [["the cat sat down", "a cat sat"], ["the dog ran off"]]) == expected


def test_effective_order_rewards_short_texts() -> None:
    assert get_scorer("bleu")(["yes indeed"], references=[["yes indeed"]]) == [pytest.approx(1.0)]
    assert get_scorer("bleu", effective_order=False)(["yes indeed"], references=[["yes indeed"]])[0] < 0.1


def test_empty_text() -> None:
    assert get_scorer("bleu")(["", " \n"], references=[["a b"]] * 2) == [0.0, 0.0]
    assert get_scorer("chrf")(["", " \n"], references=[["a b"]] * 2) == [0.0, 0.0]
    assert get_scorer("ter")(["", " \n"], references=[["a b"]] * 2) == [-1.0, -1.0]
    assert get_scorer("ter")(["a", ""], references=[[""]] * 2) == [-1.0, 0.0]


def test_ter_of_long_texts_is_their_edit_rate() -> None:
    reference = " ".join(f"w{i}" for i in range(1000))
    shifted = " ".join(f"w{i}" for i in [*range(500, 1000), *range(500)])
    # without shifts, the 500 words before the common half are deleted and inserted again behind it
    assert get_scorer("ter")([shifted], references=[[reference]]) == [-1.0]
    assert get_scorer("ter")([reference + " x"], references=[[reference]]) == [-1 / 1000]


@pytest.mark.parametrize("arguments", [{"tokenize": "klingon"}, {"smooth_method": "sandpaper"}])
def test_unknown_settings_are_named(arguments) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments.values()))):
        get_scorer("bleu", **arguments)
