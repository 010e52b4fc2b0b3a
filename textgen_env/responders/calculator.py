"""A calculator: exact arithmetic on what a text says, within bounds. Nothing is executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MOST_CHARACTERS = 256
MOST_BITS = 1024  # of a numerator or denominator: numbers of 300 digits

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})
_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Calculator:
    """The tool "calculator": `+ - * / // % **` and brackets, on rational numbers.

    Raises:
        ValueError: when called, what is no such expression, division by zero, or numbers beyond 300 digits.
    """

    description = "Works out an arithmetic expression."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "for instance 2 * (3 + 4)"}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    def __call__(self, expression: str) -> str:
        return _shown(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of an arithmetic expression.

    Raises:
        ValueError: see `Calculator`.
    """
    text = expression.strip().translate(_SIGNS)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"an expression of {len(text)} characters is too long; the most is {MOST_CHARACTERS}")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is no arithmetic expression") from None
    return _value(tree.body)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        if node.value == float("inf"):  # so many digits that Python gave up
            raise ValueError("a number has too many digits")
        return _bounded(Fraction(str(node.value)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            try:
                return _bounded(_BINARY[type(node.op)](left, right))
            except ZeroDivisionError:
                raise ValueError("division by zero") from None
    raise ValueError(f"{ast.unparse(node)!r} is neither a number nor arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError(f"{_shown(exponent)} is no whole number, which an exponent must be")
    if base == 0 and exponent < 0:
        raise ValueError("division by zero")
    if abs(exponent) * _bits(base) > MOST_BITS and abs(base) != 1 and base != 0:
        raise ValueError("the result has too many digits")
    return base**exponent.numerator


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MOST_BITS:
        raise ValueError("the result has too many digits")
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _shown(value: Fraction) -> str:
    """A whole number with all its digits, any other with ten."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"
