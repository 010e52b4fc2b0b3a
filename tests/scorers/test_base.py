"""How scorers are called, and what becomes of their mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from textgen_env.scorers import Scorer, ScorerError, call_scorer, score_parts, scorer_name

COLUMNS = {"prompts": ["p", "q"], "references": [["r"], []], "completion_ids": [[1], [2, 3]]}


def test_one_form_and_its_relatives() -> None:
    def plain(completions):
        return [len(text) for text in completions]

    def named(texts, *, references):
        return [len(refs) for refs in references]

    def trl(prompts, completions, completion_ids, **kwargs):
        assert kwargs["references"] == [["r"], []]
        return [len(p) + len(c) + len(i) for p, c, i in zip(prompts, completions, completion_ids, strict=True)]

    def positional(completions, /, **kwargs):
        return [1 for _ in completions]

    class Instance:
        def __call__(self, completions, *, prompts, **extra):
            return [len(extra)] * len(prompts)

    for scorer, expected in [
        (plain, [2, 3]),
        (named, [1, 0]),
        (trl, [4, 6]),
        (positional, [1, 1]),
        (Instance(), [2, 2]),
    ]:
        for _ in range(2):  # the second time with the signature known
            assert call_scorer(scorer, ["ab", "abc"], **COLUMNS) == expected
    assert isinstance(Instance(), Scorer)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2]),
        np.array([[1.0], [2.0]]),
        np.array([[[1.0]], [[2.0]]], dtype=np.float16),
        [np.array([1.0]), np.array(2.0)],
        np.array([1, 2.0], dtype=object),
        torch.tensor([1.0, 2.0]),
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([[1.0]]), torch.tensor(2)],
        (1, 2.0),
        [np.float32(1), True + 1],
        range(1, 3),
    ],
)
def test_sequences_of_numbers_are_welcome(values) -> None:
    scores = call_scorer(lambda completions: values, ["a", "b"], **COLUMNS)
    assert scores == [1.0, 2.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "1 scores for 2 texts"),
        ([1.0, math.nan], "nan.*row 1, prompt 'q', text 'second'"),
        ([math.inf, 1.0], "inf.*row 0, prompt 'p', text 'first'"),
        ([None, 1.0], "got None"),
        (["1", 1.0], "got '1'"),
        (None, "must return a sequence"),
        (3.0, "must return a sequence"),
        ("12", "must return a sequence"),
        ([[1, 2], [3, 4]], r"got \[1, 2\]"),
        (np.ones((2, 2)), "must return finite numbers"),
        (np.ones((2, 0)), "must return finite numbers"),
        (np.array(3.0), "must return a sequence of 2 floats, got ndarray"),
        (torch.tensor(3.0), "must return a sequence of 2 floats, got Tensor"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "must return a sequence of 2 floats, got dict .*named parts"),
        ({}, "must return a sequence of 2 floats, got dict"),
        ({1.0, 2.0}, "must return a sequence of 2 floats, got set"),
        (b"12", "must return a sequence of 2 floats, got bytes"),
        ((x for x in [1.0, 2.0]), "must return a sequence of 2 floats, got generator"),
        ([10**400, 1.0], "must return finite numbers"),
        ([1j, 1.0], "must return finite numbers, got 1j"),
        (np.array([1j, 1.0]), "must return finite numbers"),
    ],
)
def test_bad_answers_name_scorer_prompt_and_text(values, message) -> None:
    def my_scorer(completions):
        return values

    with pytest.raises(ScorerError, match="my_scorer.*" + message):
        call_scorer(my_scorer, ["first", "second"], **COLUMNS)


class Labelled:
    """As a column of a table: what stands between brackets are labels."""

    def __init__(self, values: dict) -> None:
        self.values = values

    def __getitem__(self, label):
        return self.values[label]

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values.values())


def test_scores_are_taken_by_position() -> None:
    for labels in [("b", "a"), (1, 0), (7, 8)]:
        values = Labelled(dict(zip(labels, [1.0, 2.0], strict=True)))
        assert call_scorer(lambda completions, values=values: values, ["a", "b"], **COLUMNS) == [1.0, 2.0]


def test_columns_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    for labels in [["b", "a"], [1, 0], [7, 8]]:
        for dtype in ["float64", "Int64", object]:
            values = pd.Series([1, 2], dtype=dtype, index=labels)
            for column in [values, values.to_frame()]:
                assert call_scorer(lambda completions, column=column: column, ["a", "b"], **COLUMNS) == [1.0, 2.0]
    for wrong in [pd.Series([1.0, None]), pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), pd.Series(["1", "2"])]:
        with pytest.raises(ScorerError, match="must return finite numbers"):
            call_scorer(lambda completions, wrong=wrong: wrong, ["a", "b"], **COLUMNS)


def test_an_exception_names_the_text_to_blame() -> None:
    def my_scorer(completions, references):
        return [1 / len(texts) for texts in references]

    with pytest.raises(ScorerError, match="my_scorer.*ZeroDivisionError.*prompt 'q', text 'second'") as error:
        call_scorer(my_scorer, ["first", "second"], **COLUMNS)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["list"]])
def test_completions_must_be_texts(text) -> None:
    with pytest.raises(ScorerError, match=r"completions\[1\] must be a text"):
        call_scorer(lambda completions: [0.0] * len(completions), ["fine", text], **COLUMNS)


def test_columns_must_fit() -> None:
    with pytest.raises(ScorerError, match="1 prompts for 2 completions"):
        call_scorer(lambda completions: [0.0, 0.0], ["a", "b"], prompts=["p"])


def test_references_may_be_absent() -> None:
    assert call_scorer(lambda completions, references: [len(r) for r in references], ["a"], prompts=["p"]) == [0.0]


def test_empty_batch() -> None:
    assert call_scorer(lambda completions: [], [], prompts=[], references=[]) == []


def test_parts() -> None:
    class Two:
        part_names = ("a", "b")

        def parts(self, completions, **columns):
            return {"a": [1.0] * len(completions), "b": [2, math.nan]}

        def __call__(self, completions, **columns):
            return [3.0] * len(completions)

    assert score_parts(lambda completions: [4], ["x"], prompts=["p"], default_name="score") == {"score": [4.0]}
    with pytest.raises(ScorerError, match="'Two', part 'b'.*row 1"):
        score_parts(Two(), ["x", "y"], prompts=["p", "q"])


def test_names() -> None:
    class Thing:
        name = "thing"

        def __call__(self, completions):
            return []

    assert scorer_name(Thing()) == "thing"
    assert scorer_name(len) == "len"
    assert scorer_name(test_names) == "test_names"
