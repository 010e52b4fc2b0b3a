"""Answer likelihood, choice and verdict: by hand from the plain forward's probabilities, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, random_model

from textgen_env import LanguageModel
from textgen_env.scorers import ScorerError, call_scorer, get_scorer
from textgen_env.scorers.policy_view import PolicyView

TOKENIZER = byte_tokenizer()
MODEL = random_model("llama", len(TOKENIZER), seed=3)
POLICY = LanguageModel.from_modules(MODEL, TOKENIZER)
PROMPTS, TEXTS = ["Q: ", "R"], ["mm", "nnn"]


def tokens(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def log_probs(before: str, text: str) -> list[float]:
    """Of each token of a text behind another, one prefix at a time."""
    prefix, found = [1, *tokens(before)], []
    for token in tokens(text):
        with torch.no_grad():
            logits = MODEL(torch.tensor([prefix])).logits[0, -1, : len(TOKENIZER)].double()
        found.append(float(logits.log_softmax(-1)[token]))
        prefix.append(token)
    return found


def scored(spec: Any, **columns: Any) -> list[float]:
    texts = [[1, *tokens(prompt + text), 2] for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    view = PolicyView(POLICY, texts, [True, True])
    return call_scorer(get_scorer(spec), TEXTS, prompts=PROMPTS, policy=view, **columns)


REFERENCES = [["yes", "no!"], ["ab"]]


@pytest.mark.parametrize("output", ["probability", "log_probability", "token_probability"])
@pytest.mark.parametrize("multi", ["best", "mean"])
def test_answer_likelihood(output: str, multi: str) -> None:
    spec = {"name": "answer_likelihood", "suffix": " so ", "closing": ".", "output": output, "multi": multi}
    found = scored(spec, references=REFERENCES)
    for row, before in enumerate(["Q: mm so ", "Rnnn so "]):
        values = []
        for answer in REFERENCES[row]:
            told = log_probs(before, answer + ".")
            mean = sum(map(math.exp, told)) / len(told)
            values.append({"log_probability": sum(told), "probability": math.exp(sum(told))}.get(output, mean))
        wanted = max(values) if multi == "best" else sum(values) / len(values)
        assert found[row] == pytest.approx(wanted, rel=1e-4)


CHOICES = [["a", "bcd", "é"], ["long answer", "b"]]
RIGHT = [2, "long answer"]


@pytest.mark.parametrize("norm", [None, "tokens", "characters", "bytes"])
@pytest.mark.parametrize("output", ["share", "accuracy", "probability", "log_probability"])
def test_choice(output: str, norm: str | None) -> None:
    spec = {"name": "choice", "suffix": "?", "output": output, "length_norm": norm, "answer": "right"}
    found = scored(spec, choices=CHOICES, right=RIGHT)
    for row, (before, right) in enumerate([("Q: mm?", 2), ("Rnnn?", 0)]):
        told = []
        for text in CHOICES[row]:
            lengths = {None: 1, "tokens": len(tokens(" " + text)), "characters": len(text)}
            told.append(sum(log_probs(before, " " + text)) / lengths.get(norm, len(text.encode())))
        share = math.exp(told[right]) / sum(map(math.exp, told))
        best = float(max(range(len(told)), key=lambda i: told[i]) == right)
        known = {"share": share, "accuracy": best, "probability": math.exp(told[right]), "log_probability": told[right]}
        assert found[row] == pytest.approx(known[output], rel=1e-4)


def test_the_same_choices_for_all() -> None:
    spec = {"name": "choice", "choices": ["x", "y"]}
    assert scored(spec, answer=["y", 0]) == pytest.approx(
        scored({"name": "choice"}, choices=[["x", "y"]] * 2, answer=[1, "x"])
    )


def verdict(before: str, yes: list[str], no: list[str]) -> float:
    mass = [sum(math.exp(sum(log_probs(before, word))) for word in words) for words in (yes, no)]
    return mass[0] / sum(mass)


@pytest.mark.parametrize("output", ["probability", "log_odds"])
def test_verdict_of_the_policy_itself(output: str) -> None:
    template = "{prompt}{completion}\nIs it {reference}?"
    spec = {"name": "verdict", "template": template, "positive": ["y", "ja"], "negative": "n", "output": output}
    found = scored(spec, references=REFERENCES)
    for row, before in enumerate(["Q: mm\nIs it yes?", "Rnnn\nIs it ab?"]):
        wanted = verdict(before, ["y", "ja"], ["n"])
        wanted = math.log(wanted / (1 - wanted)) if output == "log_odds" else wanted
        assert found[row] == pytest.approx(wanted, rel=1e-3)


def test_verdict_of_a_judge() -> None:
    """By text, whatever the policy's tokens are; a special token that somebody spells out is text there."""
    spec: Any = {"name": "verdict", "template": "<bos>{completion} of {prompt}:", "positive": "y", "negative": "n"}
    spec["model"] = POLICY
    scorer = get_scorer(spec)
    assert not scorer.needs_policy  # type: ignore[attr-defined]
    found = call_scorer(scorer, TEXTS, prompts=PROMPTS)
    # the template's own <bos> stands behind the one that the tokenizer puts in front
    for row, text in enumerate(["mm of Q: :", "nnn of R:"]):
        prefix = [1, 1, *tokens(text)]
        with torch.no_grad():
            told = MODEL(torch.tensor([prefix])).logits[0, -1, : len(TOKENIZER)].double().softmax(-1)
        yes, no = (float(told[tokens(word)[0]]) for word in "yn")
        assert found[row] == pytest.approx(yes / (yes + no), rel=1e-4)
    (quoted,) = call_scorer(scorer, ["<eos>"], prompts=["p"])
    plain = [1, 1, *POLICY.encode_plain("<eos>"), *tokens(" of p:")]
    assert 2 not in plain
    with torch.no_grad():
        told = MODEL(torch.tensor([plain])).logits[0, -1, : len(TOKENIZER)].double().softmax(-1)
    yes, no = (float(told[tokens(word)[0]]) for word in "yn")
    assert quoted == pytest.approx(yes / (yes + no), rel=1e-4)


REFUSED = [
    ({"name": "answer_likelihood", "output": "odds"}, "answer_likelihood: output must be one of probability, log_"),
    ({"name": "choice", "length_norm": "words"}, "choice: length_norm must be one of tokens, characters, bytes, None"),
    ({"name": "verdict", "template": "{completion}{prompt}"}, r'must begin with "\{prompt\}\{completion\}"'),
    ({"name": "verdict", "template": "{prompt}{completion}{prompt}"}, "have neither again"),
    ({"name": "verdict", "template": "{prompt}", "model": "tiny"}, r"must have \{completion\} in it"),
    ({"name": "verdict", "positive": []}, r"verdict: positive=\[\] must be a text, or several, none of them empty"),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_descriptions_that_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_scorer(spec)


MISSING: list[tuple[dict[str, Any], str]] = [
    ({"answer": [0, 0]}, "choices='choices': row 0 has None; it must have a list of two texts or more"),
    ({"choices": [["a", "b"], ["a"]], "answer": [0, 0]}, r"row 1 has \['a'\]; it must have a list of two"),
    (
        {"choices": [["a", "b"]] * 2},
        r"answer='answer': row 0 has None; it must have one of \['a', 'b'\], or",
    ),
    ({"choices": [["a", "b"]] * 2, "answer": [0, 2]}, "answer='answer': row 1 has 2"),
    ({"choices": [["a", "b"]] * 2, "answer": [True, 1]}, "answer='answer': row 0 has True"),
]


@pytest.mark.parametrize(("columns", "message"), MISSING)
def test_questions_that_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        scored("choice", **columns)
