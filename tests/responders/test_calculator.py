"""The calculator beside Python's own arithmetic on rational numbers, and what it refuses."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env.responders.calculator import Calculator, evaluate

NUMBERS = st.integers(-99, 99).map(lambda n: (f"({n})", Fraction(n))) | st.sampled_from(
    [("0.5", Fraction(1, 2)), ("2.25", Fraction(9, 4)), ("1e2", Fraction(100))]
)


def joined(children: Any) -> Any:
    """Two expressions and an operator: the text, and the value or None where there is none."""

    def join(parts: Any) -> Any:
        (left, a), sign, (right, b) = parts
        text = f"({left} {sign} {right})"
        if a is None or b is None or (sign in "/%//" and b == 0):
            return text, None
        ways = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}
        ways |= {"//": lambda: Fraction(a // b), "%": lambda: a % b}
        return text, ways[sign]()

    return st.tuples(children, st.sampled_from(["+", "-", "*", "/", "//", "%"]), children).map(join)


@settings(max_examples=200, deadline=None)
@given(st.recursive(NUMBERS, joined, max_leaves=6))
def test_random_expressions(expression: tuple[str, Fraction | None]) -> None:
    text, value = expression
    if value is None:
        with pytest.raises(ValueError, match="division by zero"):
            evaluate(text)
    else:
        assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("12 + 7", "19"),
        (" 6 × (3 − 1) ÷ 4 ", "3"),
        ("1/3", "0.3333333333"),
        ("0.1 + 0.2", "0.3"),
        ("2^10", "1024"),
        ("2**-2", "0.25"),
        ("-7 // 2", "-4"),
        ("0**0", "1"),
        ("2**200", str(2**200)),
    ],
)
def test_by_hand(text: str, shown: str) -> None:
    assert Calculator()(text) == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no arithmetic expression"),
        ("2 +", "no arithmetic expression"),
        ("1/0", "division by zero"),
        ("0**-1", "division by zero"),
        ("2**0.5", "no whole number"),
        ("9**9**9", "too many digits"),
        ("(2**600) * (2**600)", "too many digits"),
        ("1e999", "too many digits"),
        ("1" * 400, "too long"),
        ("__import__('os').system('ls')", "neither a number nor arithmetic"),
        ("True + 1", "neither a number nor arithmetic"),
        ("'a' * 3", "neither a number nor arithmetic"),
        ("[1][0]", "neither a number nor arithmetic"),
        ("1 if 2 else 3", "neither a number nor arithmetic"),
        ("1j * 2", "neither a number nor arithmetic"),
        ("(" * 120 + ")" * 120, "neither a number nor arithmetic"),
        ("\0", "no arithmetic expression"),
        ("1\n2", "no arithmetic expression"),
    ],
)
def test_what_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Calculator()(text)
