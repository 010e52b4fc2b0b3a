"""What is wrong with a description of a scorer is said: which argument, its value, what would be right."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import mine
import pytest

import textgen_env  # noqa: F401
from textgen_env.scorers import corpus_score, get_scorer
from textgen_env.scorers.classifier import Classifier, Sentiment
from textgen_env.scorers.similarity import Similarity

RULE = {"name": "length", "target": 3}
OPTIONAL = {"json_schema": "jsonschema", "vader": "vaderSentiment"}

MALFORMED: list[tuple[Any, type[Exception], list[str]]] = [
    # what is described
    (None, TypeError, ["expected a name, a mapping or a callable", "None"]),
    (3, TypeError, ["expected a name", "int 3"]),
    (["bleu", "chrf"], TypeError, ["list ['bleu', 'chrf']", '{"sum": [...]}']),
    ([0.5, "bleu"], TypeError, ["list [0.5, 'bleu']"]),
    (mine.Longer, TypeError, ["class Longer", "Longer(…)"]),
    ("", ValueError, ["unknown name ''", "known names"]),
    ("blue", ValueError, ["unknown name 'blue'", "did you mean 'bleu'?"]),
    (" bleu", ValueError, ["unknown name ' bleu'", "did you mean 'bleu'?"]),
    ("ROUGE1", ValueError, ["unknown name 'ROUGE1'", "rouge1"]),
    ({}, ValueError, ['needs the key "name" or "sum"', "got keys []"]),
    ({"nam": "bleu"}, ValueError, ['needs the key "name" or "sum"', "['nam']"]),
    ({"name": None}, TypeError, ["name must be a text", "NoneType None"]),
    ({"name": ["bleu"]}, TypeError, ["name must be a text", "list ['bleu']"]),
    ({"name": {"name": "bleu"}}, TypeError, ["name must be a text", "dict"]),
    ({"name": "bleu", 3: 4}, TypeError, ["keys of a mapping must be texts", "got 3"]),
    ({"name": "bleu", "sum": ["chrf"]}, ValueError, ['either "sum" or "name"']),
    # names of arguments
    ({"name": "bleu", "smoothing": "exp"}, TypeError, ["'bleu'", "'smoothing'", "'exp'", "did you mean 'smooth_"]),
    ({"name": "rougeL", "stemmer": True}, TypeError, ["'rougeL'", "'stemmer'", "did you mean 'stem'?"]),
    ({"name": "length", "max": 3}, TypeError, ["'length'", "'max'", "it takes target, minimum, maximum, unit"]),
    ({"name": "vader", "label": "x"}, TypeError, ["'vader'", "'label'", "it takes none"]),
    ({"name": "sentiment", "lable": "x"}, TypeError, ["'sentiment'", "'lable'", "did you mean 'label'?"]),
    ({"name": "sentiment", "batchsize": 3}, TypeError, ["'batchsize'", "did you mean 'batch_size'?"]),
    ({"name": "similarity", "model": "x", "maxlength": 3}, TypeError, ["'maxlength'", "did you mean 'max_length'?"]),
    ({"sum": ["bleu"], "weights": [1.0]}, TypeError, ["'sum'", "'weights'", "it takes scorers"]),
    ({"name": "regex"}, TypeError, ["'regex' needs pattern"]),
    ({"name": "clip", "low": 0.0}, TypeError, ["'clip' needs scorer"]),
    ({"name": "overlong_penalty", "scorer": RULE}, TypeError, ["needs maximum and margin"]),
    ({"name": "sum"}, TypeError, ["'sum' needs scorers"]),
    # types
    ({"name": "bleu", "max_ngram_order": "4"}, TypeError, ["max_ngram_order must be an integer", "text '4'"]),
    ({"name": "bleu", "max_ngram_order": 4.0}, TypeError, ["max_ngram_order must be an integer", "number 4.0"]),
    ({"name": "bleu", "lowercase": "yes"}, TypeError, ["lowercase must be true or false", "text 'yes'"]),
    ({"name": "bleu", "tokenize": None}, TypeError, ["tokenize must be a text", "None"]),
    ({"name": "length", "target": True}, TypeError, ["target must be an integer or None", "truth value True"]),
    ({"name": "length", "target": [3]}, TypeError, ["target must be an integer or None", "list [3]"]),
    ({"name": "regex", "pattern": 3}, TypeError, ["pattern must be a text", "integer 3"]),
    ({"name": "regex", "pattern": "a", "flags": ["i"]}, TypeError, ["flags must be a text", "list ['i']"]),
    ({"name": "json_schema", "schema": ["a"]}, TypeError, ["schema must be a mapping", "list ['a']"]),
    ({"name": "json_schema", "find": "yes"}, TypeError, ["find must be true or false"]),
    ({"name": "keywords", "keywords": "cat"}, ValueError, ["keywords must be a list of texts", "text 'cat'"]),
    ({"name": "keywords", "keywords": [1]}, TypeError, ["keywords must be a list of texts", "[1]"]),
    ({"name": "clip", "scorer": RULE, "low": "0"}, TypeError, ["low must be a number", "text '0'"]),
    ({"name": "affine", "scorer": None}, TypeError, ["scorer must be a text, a mapping or a function", "None"]),
    ({"name": "eos_penalty", "scorer": RULE, "accept": "eos"}, ValueError, ["accept must be a list of texts", "'eos'"]),
    (
        {"name": "cached", "scorer": RULE, "columns": "topic"},
        ValueError,
        ["columns must be a list of texts", "'topic'"],
    ),
    ({"name": "patient", "scorer": RULE, "workers": 2.5}, TypeError, ["workers must be an integer", "2.5"]),
    ({"name": "patient", "scorer": RULE, "process": "yes"}, TypeError, ["process must be true or false"]),
    ({"name": "token_rewards", "function": "f"}, TypeError, ["function must be a function", "text 'f'"]),
    ({"name": "cider", "tokenizer": 3}, TypeError, ["tokenizer must be a text or a function", "integer 3"]),
    ({"name": "sentiment", "max_length": "512"}, TypeError, ["max_length must be an integer", "'512'"]),
    ({"name": "fluency", "condition": 1}, TypeError, ["condition must be true or false", "integer 1"]),
    # values
    ({"name": "bleu", "tokenize": "13b"}, ValueError, ["tokenize must be one of", "13a", "'13b'"]),
    ({"name": "bleu", "smooth_method": "exponential"}, ValueError, ["smooth_method must be one of", "'exponential'"]),
    ({"name": "bleu", "max_ngram_order": 0}, ValueError, ["max_ngram_order must be at least 1", "0"]),
    ({"name": "bleu", "smooth_value": -1.0}, ValueError, ["smooth_value must be at least 0", "-1.0"]),
    ({"name": "chrf", "char_order": 0}, ValueError, ["char_order >= 1", "char_order=0"]),
    ({"name": "chrf", "beta": 0}, ValueError, ["beta > 0", "beta=0"]),
    ({"name": "ter", "max_words": -1}, ValueError, ["max_words must be at least 0", "-1"]),
    ({"name": "rouge1", "measure": "f1"}, ValueError, ["measure must be one of f, precision, recall", "'f1'"]),
    ({"name": "rouge1", "multi": "max"}, ValueError, ['multi must be "best" or "mean"', "'max'"]),
    ({"name": "rouge1", "tokenizer": "words"}, ValueError, ["tokenizer must be one of rouge, ptb, space", "'words'"]),
    ({"name": "cider", "order": 0}, ValueError, ["order >= 1", "order=0"]),
    ({"name": "cider", "sigma": 0.0}, ValueError, ["sigma > 0", "sigma=0.0"]),
    ({"name": "cider", "eos": ""}, ValueError, ["eos that is a word", "eos=''"]),
    ({"name": "cider", "tokenizer": "java"}, ValueError, ["tokenizer must be one of ptb, space", "'java'"]),
    (
        {"name": "cider", "frequencies": "nowhere.json"},
        FileNotFoundError,
        ["frequencies='nowhere.json'", "no such file"],
    ),
    ({"name": "meteor", "alpha": 2.0}, ValueError, ["alpha must be at least 0 and at most 1", "2.0"]),
    ({"name": "meteor", "beta": math.nan}, ValueError, ["beta", "nan"]),
    ({"name": "length"}, ValueError, ["give either target or minimum"]),
    ({"name": "length", "minimum": 5, "maximum": 4}, ValueError, ["minimum <= maximum", "5 and 4"]),
    ({"name": "length", "target": 3, "unit": "bytes"}, ValueError, ["unit must be one of", "'bytes'"]),
    ({"name": "distinct", "n": 0}, ValueError, ["n must be at least 1", "0"]),
    ({"name": "regex", "pattern": "("}, ValueError, ["pattern '('", "does not compile"]),
    ({"name": "regex", "pattern": "a", "timeout": 0.0}, ValueError, ["timeout must be a positive number", "0.0"]),
    ({"name": "regex", "pattern": "a", "on_timeout": "zero"}, ValueError, ["on_timeout", "'zero'"]),
    ({"name": "json_schema", "schema": {"type": "thing"}}, ValueError, ["the schema is not valid", "thing"]),
    ({"name": "json_schema", "schema": "nowhere.json"}, ValueError, ["schema='nowhere.json'", "must be a JSON file"]),
    ({"name": "json_schema", "schema": '{"type": "object"}'}, ValueError, ["give a schema as a mapping, not as text"]),
    ({"name": "json_schema", "partial": 2}, ValueError, ["partial must lie in [0, 1]", "2"]),
    ({"name": "keywords", "keywords": ["a", " "]}, ValueError, ["keywords[1] must not be empty"]),
    ({"name": "affine", "scorer": RULE, "gain": math.inf}, ValueError, ["gain and bias must be finite", "inf"]),
    ({"name": "clip", "scorer": RULE, "low": 1, "high": 0}, ValueError, ["low must not exceed high", "1 and 0"]),
    ({"name": "normalize", "scorer": RULE, "epsilon": math.inf}, ValueError, ["epsilon must be positive and finite"]),
    ({"name": "eos_penalty", "scorer": RULE, "penalty": -1}, ValueError, ["penalty must be at least 0", "-1"]),
    ({"name": "cached", "scorer": RULE, "maxsize": 0}, ValueError, ["maxsize must be at least 1", "0"]),
    ({"name": "patient", "scorer": RULE, "timeout": math.inf}, ValueError, ["timeout > 0", "timeout=inf"]),
    ({"name": "patient", "scorer": RULE, "on_failure": "zero"}, ValueError, ["on_failure", "'zero'"]),
    ({"name": "sentiment", "output": "prob"}, ValueError, ["output must be one of", "'prob'"]),
    ({"name": "sentiment", "label": "good"}, ValueError, ["label must be one of", "'good'"]),
    ({"name": "sentiment", "dtype": "float8"}, ValueError, ["dtype", "'float8'"]),
    ({"name": "fluency", "max_length": 0}, ValueError, ["max_length", "0"]),
    ({"name": "similarity", "against": "refs"}, ValueError, ["against must be", "'refs'"]),
    # sums, and scorers inside others
    ({"sum": []}, ValueError, ["sum: parts need different names, at least one"]),
    ({"sum": {}}, ValueError, ["sum: parts need different names, at least one"]),
    ({"sum": "bleu"}, ValueError, ["scorers must be a mapping or a list", "text 'bleu'"]),
    ({"sum": 3}, TypeError, ["scorers must be a mapping or a list", "integer 3"]),
    ({"sum": ["bleu", "bleu"]}, ValueError, ["different names", "'bleu', 'bleu'"]),
    ({"sum": {"a": ["bleu", 0.5]}}, ValueError, ["[weight, scorer]", "['bleu', 0.5]"]),
    ({"sum": {"a": [0.5]}}, ValueError, ["[weight, scorer]", "[0.5]"]),
    ({"sum": {"a": ["0.5", "bleu"]}}, ValueError, ["[weight, scorer]", "['0.5', 'bleu']"]),
    ({"sum": {"a": [math.nan, "bleu"]}}, ValueError, ["weights must be finite", "nan"]),
    ({"sum": {"a": None}}, TypeError, ["sum, member 'a'", "expected a name", "None"]),
    ({"sum": {"a": "blue"}}, ValueError, ["sum, member 'a'", "did you mean 'bleu'?"]),
    ({"sum": ["bleu", {"name": "length", "targt": 3}]}, TypeError, ["sum, member 1", "did you mean 'target'?"]),
    ({"sum": {"": "bleu"}}, TypeError, ["names of members must be texts that are not empty", "''"]),
    ({"sum": {1: "bleu"}}, TypeError, ["names of members must be texts", "1"]),
    ({"sum": {"a": {"sum": {"b": "blue"}}}}, ValueError, ["sum, member 'a': sum, member 'b'", "'blue'"]),
    ({"name": "clip", "scorer": "blue"}, ValueError, ["did you mean 'bleu'?"]),
    ({"name": "clip", "scorer": {"name": "affine", "scorer": 3}}, TypeError, ["'affine': scorer must be", "integer 3"]),
    # one's own
    ("mine:", ValueError, ["unknown name 'mine:'", "module:attribute"]),
    ("mine:size:more", ValueError, ["unknown name", "module:attribute"]),
    ("no_such_module:size", ImportError, ["'no_such_module:size'", "cannot import no_such_module"]),
    ("mine:sise", ValueError, ["mine has no 'sise'", "did you mean 'size'?"]),
    ("mine:NUMBER", TypeError, ["mine:NUMBER must be callable", "int 3"]),
    ("mine:make_nothing", TypeError, ["must make a callable", "NoneType None"]),
    ({"name": "mine:Longer", "then": 3}, TypeError, ["'mine:Longer'", "'then'", "did you mean 'than'?"]),
    ({"name": "mine:Longer", "than": "3"}, TypeError, ["than must be an integer", "text '3'"]),
    ({"name": "mine:size", "facto": 2.0}, TypeError, ["'facto'", "did you mean 'factor'?"]),
    ({"name": "mine:longer_than_two", "than": 3}, TypeError, ["is an object", "than"]),
    ({"name": "mine:make_soft_limit", "limit": 3}, TypeError, ["needs margin"]),
]


@pytest.mark.parametrize(("spec", "error", "said"), MALFORMED, ids=[json.dumps(s, default=str) for s, *_ in MALFORMED])
def test_malformed_descriptions(spec: Any, error: type[Exception], said: list[str]) -> None:
    if isinstance(spec, dict) and isinstance(spec.get("name"), str) and spec["name"] in OPTIONAL:
        pytest.importorskip(OPTIONAL[spec["name"]])
    with pytest.raises(error) as raised:
        get_scorer(spec)
    message = str(raised.value)
    assert [part for part in said if part not in message] == [], message
    assert len(message) < 900


def test_an_environment_says_it_too() -> None:
    with pytest.raises(TypeError, match="'length' got an unexpected keyword argument 'targt'.*did you mean 'target'"):
        gym.make("textgen/TextGen-v0", model="tiny", prompts=["a"], scorer={"name": "length", "targt": 3})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"documents": 2}', '{"documents": 2, "counts": [["a", 3]]}', "\x00"]
)
def test_files_that_hold_no_frequencies(content: str, tmp_path: Path) -> None:
    path = tmp_path / "df.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"cider: frequencies='.*df.json'"):
        get_scorer("cider", frequencies=str(path))


@pytest.mark.parametrize(
    ("name", "wrong"), [("ter", "max_words"), ("bleu", "smoothing"), ("cider", "sigm"), ("chrf", "x")]
)
def test_corpora_say_it_too(name: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' got an unexpected keyword argument '{wrong}'"):
        corpus_score(name, ["a", "b"], [["a"], ["b"]], **{wrong: 1})
    with pytest.raises(TypeError, match="max_ngram_order must be an integer, got the text '4'"):
        corpus_score("bleu", ["a"], [["a"]], max_ngram_order="4")


@pytest.mark.parametrize("scorer", [Classifier, Sentiment, Similarity])
def test_signatures_show_every_argument(scorer: Any) -> None:
    parameters = inspect.signature(scorer).parameters
    assert {"model", "max_length", "batch_size", "device", "dtype", "strict"} <= set(parameters)
    assert parameters["max_length"].default == (256 if scorer is Similarity else 512)
    assert not {"kwargs", "self", "task", "role"} & set(parameters)


@pytest.mark.parametrize(("name", "settings"), [("meteor", {"synonyms": True}), ("rougeLsum", {"split": "nltk"})])
def test_data_that_are_not_there_show_at_once(name: str, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.data
    from nltk.corpus import wordnet

    if name == "meteor" and "LazyCorpusLoader" not in type(wordnet).__name__:
        pytest.skip("WordNet has been loaded")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(FileNotFoundError, match=f"{name}.*python -m nltk.downloader"):
        get_scorer(name, **settings)
