"""Exact match and edit distances against a plain dynamic programme."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgen_env.scorers import get_scorer


def distance(a, b) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


texts = st.text(alphabet="ab é\n", max_size=30)


@given(texts, texts)
def test_edit_distance(text: str, reference: str) -> None:
    longer = max(len(text), len(reference))
    expected = 1.0 if longer == 0 else 1 - distance(text, reference) / longer
    assert get_scorer("edit_distance")([text], references=[[reference]]) == [pytest.approx(expected)]


@given(texts, texts)
def test_word_error_rate(text: str, reference: str) -> None:
    words, others = text.split(), reference.split()
    expected = -distance(words, others) / max(len(others), 1)
    assert get_scorer("wer")([text], references=[[reference]]) == [pytest.approx(expected)]


def test_best_of_several_references() -> None:
    references = [["a b c d", "a b", "x"]]
    assert get_scorer("wer")(["a b c"], references=references) == [-1 / 4]
    assert get_scorer("wer", ignore_case=True)(["A b"], references=references) == [0.0]
    assert get_scorer("edit_distance", unit="words")(["a b c"], references=references) == [3 / 4]


def test_exact_match() -> None:
    references = [["Paris", "the city of Paris"]] * 4
    completions = [" Paris\n", "paris", "Paris.", ""]
    assert get_scorer("exact_match")(completions, references=references) == [1, 0, 0, 0]
    assert get_scorer("exact_match", strip=False)(completions, references=references) == [0, 0, 0, 0]
    lenient = get_scorer("exact_match", ignore_case=True, ignore_punctuation=True)
    assert lenient(completions, references=references) == [1, 1, 1, 0]


def test_unknown_unit() -> None:
    with pytest.raises(ValueError, match="'bytes'"):
        get_scorer("edit_distance", unit="bytes")
