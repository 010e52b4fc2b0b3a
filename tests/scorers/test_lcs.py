"""Bit-parallel common subsequences against the plain table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import lcs_ind

from textgen_env.scorers.lcs import lcs_indices, lcs_length

tokens = st.lists(st.sampled_from(["a", "b", "ab", "97", "é"]), max_size=70)  # rapidfuzz: more than a machine word


def table_length(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(tokens, tokens)
def test_length(a: list[str], b: list[str]) -> None:
    assert lcs_length(a, b) == table_length(a, b)


@given(tokens, tokens)
def test_indices_are_those_of_rouge_score(a: list[str], b: list[str]) -> None:
    assert lcs_indices(a, b) == lcs_ind(a, b)


def test_ten_thousand_tokens() -> None:
    a = [str(i % 997) for i in range(10_000)]
    b = [str(i % 991) for i in range(10_000)]
    assert len(lcs_indices(a, b)) == lcs_length(a, b)
