"""Agreement of raters, against numbers by hand and from Krippendorff's own example."""

from __future__ import annotations

import math

import pytest

from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.raters import disputed_pairs, krippendorff_alpha, summarize_raters
from textgen_env.agents.preferences.store_records import Opinion, Said


def said(table: dict[str, list[str | None]], left: str = "a") -> list[Said]:
    """Choices of raters, pair by pair; None: not asked."""
    return [
        Said(number, Pair(f"p{number}", "x", "y", choice, who, seconds=number, columns={"left": left}))  # type: ignore
        for who, choices in table.items()
        for number, choice in enumerate(choices, 1)
        if choice is not None
    ]


def test_alpha_of_two_raters_by_hand():
    """Krippendorff (2011), "Computing Krippendorff's alpha-reliability", A: two observers, ten units, .095."""
    meg, owen = "abaaaaaaba", "bbbaabaaaa"  # 0 1 0 0 0 0 0 0 1 0 and 1 1 1 0 0 1 0 0 0 0 there
    assert krippendorff_alpha(said({"Meg": list(meg), "Owen": list(owen)})) == pytest.approx(0.095, abs=5e-4)


def test_alpha_with_ties_and_gaps_by_enumeration():
    """1 − D_o/D_e from all pairs of judgements of one pair, and of all."""
    table: dict[str, list[str | None]] = {
        "ann": ["a", "tie", "b", None, "a", "cannot tell"],
        "bob": ["a", "b", "b", "a", None, "a"],
        "eve": ["b", "tie", "b", "a", None, "a"],
    }
    units = [[row[i] for row in table.values() if row[i] in ("a", "b", "tie")] for i in range(6)]
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    observed = sum(
        sum(u[i] != u[j] for i in range(len(u)) for j in range(len(u)) if i != j) / (len(u) - 1) for u in units
    ) / len(values)
    n = len(values)
    expected = sum(values[i] != values[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    assert krippendorff_alpha(said(table)) == pytest.approx(1 - observed / expected)


@pytest.mark.parametrize("table", [{}, {"ann": ["a", "b"]}, {"ann": ["a", "a"], "bob": ["a", "a"]}])
def test_alpha_is_unknown_where_nothing_can_be_said(table: dict[str, list[str | None]]):
    assert krippendorff_alpha(said(table)) is None


def test_raters_in_numbers():
    table: dict[str, list[str | None]] = {"ann": ["a", "b", "tie", "cannot tell", "a"], "bob": ["b"]}
    opinions = {1: Opinion("m", 2.0), 2: Opinion("m", 1.0), 3: Opinion("m", 1.0), 4: Opinion("m", 1.0)}
    ann, bob = summarize_raters([*said(table), Said(9, Pair("p9", "x", "y", None, "ann"))], opinions)  # a skip
    assert (ann.who, ann.choices, ann.ties, ann.cannot_tell, ann.median_seconds) == ("ann", 5, 1, 1, 3)
    assert ann.left_share == pytest.approx(2 / 3)  # a, b, a
    assert ann.agreement == pytest.approx((1 + 0 + 0.5) / 3)
    assert ann.agreement_error == pytest.approx(math.sqrt(0.25) / math.sqrt(3))  # of 1, 0, ½
    assert (bob.agreement, bob.agreement_error) == (0, None)
    assert summarize_raters(said({"ann": ["tie"]}), {})[0].agreement is None


def test_disputed_pairs():
    table: dict[str, list[str | None]] = {
        "ann": ["a", "a", "b", "tie", "cannot tell", "a"],
        "bob": ["b", "a", None, "tie", "a", "tie"],
    }
    opinions = {number: Opinion("m", r) for number, r in {1: -9.0, 2: -0.1, 3: 2.0, 4: 5.0, 5: 1.0}.items()}
    assert disputed_pairs(said(table), opinions) == ([1, 6], [3, 2])  # the surest first; a tie is on nobody's side
