"""Names, JSON and callables become scorers, without importing what is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from textgen_env.scorers import call_scorer, corpus_score, get_scorer, score_parts, scorer_names

LEXICAL = {"bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "cider", "cider-d", "meteor"}
LEXICAL |= {"exact_match", "edit_distance", "wer"}
MODELS = {"sentiment", "classifier", "spacy", "imdb-sentiment", "similarity", "fluency"}
RULES = {"length", "distinct", "repetition", "regex", "json_schema", "keywords", "vader"}


def test_names() -> None:
    assert set(scorer_names()) >= LEXICAL | MODELS | RULES


def test_the_package_imports_no_library() -> None:
    libraries = {"sacrebleu", "rouge_score", "transformers", "spacy", "nltk", "torch", "jsonschema", "rapidfuzz"}
    code = (
        "import sys, textgen_env.scorers as s; s.get_scorer('length', target=3);"
        f"print(sorted({libraries!r} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_json_round_trip() -> None:
    spec = {"sum": {"overlap": "rouge1", "brevity": [0.5, {"name": "length", "maximum": 2}]}}
    scorer = get_scorer(json.loads(json.dumps(spec)))
    parts = score_parts(scorer, ["a b c"], prompts=["p"], references=[["a b d"]])
    assert parts == {"overlap": [pytest.approx(2 / 3)], "brevity": [0.5 * 0.5]}


def test_wrappers_by_name() -> None:
    scorer = get_scorer({"name": "clip", "scorer": {"name": "affine", "scorer": "rouge1", "gain": 3}, "high": 1.5})
    assert call_scorer(scorer, ["a b c"], prompts=["p"], references=[["a b d"]]) == [1.5]


def test_a_callable_stays_itself() -> None:
    assert get_scorer(len) is len


def test_arguments_beside_a_mapping_win() -> None:
    assert get_scorer({"name": "length", "target": 3}, target=5).maximum == 5


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("bleurgh", ValueError, "unknown name 'bleurgh'; known names: .*bleu"),
        ({"weights": 1}, ValueError, "weights"),
        (3, TypeError, "int 3"),
        (None, TypeError, "None"),
    ],
)
def test_mistakes(spec, error, message) -> None:
    with pytest.raises(error, match=message):
        get_scorer(spec)


def test_arguments_do_not_go_with_a_callable() -> None:
    with pytest.raises(TypeError, match="depth"):
        get_scorer(len, depth=3)


def test_corpus_score_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown name 'length'"):
        corpus_score("length", ["a"], [["a"]])
    with pytest.raises(ValueError, match="at least one"):
        corpus_score("bleu", [], [])
    with pytest.raises(ValueError, match="1 completions and 2 lists"):
        corpus_score("bleu", ["a"], [["a"], ["b"]])


def test_missing_library_says_which_extra_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    monkeypatch.delitem(sys.modules, "textgen_env.scorers.vader", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"scorer 'vader' needs vaderSentiment.*textgen_env\[scorers\]"):
        get_scorer("vader")
