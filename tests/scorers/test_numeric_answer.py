r"""Numeric answers: pairs that graders of GSM8K and MATH agree on, and some on which they are known to fail."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest

from textgen_env.scorers import ScorerError, call_scorer, get_scorer
from textgen_env.scorers.numeric_answer import read_answer

VALUES = [
    # signs
    ("42", "42"),
    ("The answer is -5.", "-5"),
    ("−5", "-5"),
    ("x=-5", "-5"),
    ("(−7)", "-7"),
    ("+7", "7"),
    ("5-3", "3"),
    ("5 - 3 = 2", "2"),
    ("- 5 apples", "5"),
    # separators and decimals
    ("7,425,000", "7425000"),
    ("1,234.50", "2469/2"),
    ("1\u00a0000", "1000"),
    ("1'234'567", "1234567"),
    ("10 000 in all", "10000"),
    ("1 234 567.5", "2469135/2"),
    ("2024 365", "365"),
    ("1 250/500", "3/2"),
    ("12,34,567", "1234567"),
    ("1.234,5", "2469/2"),
    ("2,74", "137/50"),
    ("0,125", "1/8"),
    ("1,234", "1234"),
    (".5", "1/2"),
    ("7.", "7"),
    ("[1,2,3]", "3"),
    ("It is 1.2.3 of 7", "7"),
    (r"\boxed{14{,}916}", "14916"),
    (r"14\,916", "14916"),
    # fractions
    ("3/4", "3/4"),
    ("3 / 4", "3/4"),
    ("1 3/4", "7/4"),
    ("2½", "5/2"),
    ("½", "1/2"),
    (r"\frac{10}{9}", "10/9"),
    (r"-\dfrac{3}{4}", "-3/4"),
    (r"\frac{-3}{4}", "-3/4"),
    (r"\tfrac34", "3/4"),
    (r"$k = 2\frac{1}{2}$", "5/2"),
    ("on 3/4/2024", "2024"),
    # scientific notation and powers
    ("1.5e3", "1500"),
    ("1E-2", "1/100"),
    (r"1.5 \times 10^{3}", "1500"),
    ("1.5 × 10³", "1500"),
    ("2*10^-2", "1/50"),
    ("2^{10}", "1024"),
    ("10**3", "1000"),
    ("1.2 million", "1200000"),
    # units, currencies, words
    ("$18", "18"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    (r"\$1,200.50", "2401/2"),
    ("US$5 or 4 €", "4"),
    ("60 km/h", "60"),
    ("5 m^2", "5"),
    ("5 m²", "5"),
    ("about 9 H2O", "9"),
    ("x_2 = 9", "9"),
    (r"90^\circ", "90"),
    (r"\frac{1}{3} \text{meters}", "1/3"),
    # other scripts
    ("उत्तर ४२ है", "42"),
    ("٤٢٫٥", "85/2"),
    ("４２", "42"),
    # where the answer stands
    ("First 3, then 4.", "4"),
    ("**42**", "42"),
    (r"so \boxed{7}, not 8", "7"),
    (r"\boxed{1} no, \boxed{2}", "2"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed 5 and 6", "5"),
    (r"\fbox{5}", "5"),
    (r"\boxed{x = 5\text{ m}^2}", "5"),
    (r"\boxed{\text{The answer is } 12}", "12"),
    ("2 + 2 = 4\n#### 72\nas I said 3 times", "72"),
    ("#### $1,234", "1234"),
    ("#### 72 dollars", "72"),
    ("#### 3. Count them\nThere are 8", "8"),  # a heading in Markdown
]

NO_VALUES = [
    "",
    "no number",
    "H2O",
    "x^2",
    r"\boxed{}",
    r"\boxed{x}",
    r"\boxed{12",
    r"12 \boxed{unknown}",
    r"\boxed{3, 4}",
    r"\boxed{12\text{ and }13}",
    r"\boxed{2x+3}",
    r"\boxed{2\sqrt{3}}",
    r"x = 2\sqrt{3}",
    r"\sqrt{2}",
    r"\sqrt[3]{8}",
    "2π",
    r"\frac{\pi}{2}",
    r"\frac{\sqrt{3}}{2}",
    r"\sqrt{\frac{1}{2}}",
    "1/0",
    "0^-1",
    "9" * 5000,
    "9^999999999",
    "1e999999999",
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_numbers_are_read_exactly(text: str, value: str) -> None:
    answer = read_answer(text)
    assert answer is not None
    assert answer.value == Fraction(value)
    assert not answer.percent
    assert get_scorer("numeric_answer")([text], references=[[value]]) == [1.0]


@pytest.mark.parametrize("text", NO_VALUES)
def test_what_is_no_number_scores_nothing(text: str) -> None:
    assert read_answer(text) is None
    assert get_scorer("numeric_answer")([text], references=[["2", "3", "8", "12", "13", "0"]]) == [0.0]


@pytest.mark.parametrize(
    ("text", "right", "score"),
    [
        ("28%", "28%", 1),
        ("28 percent", r"28\%", 1),
        ("28 pct", "28%", 1),
        ("28", "28%", 1),
        ("28%", "28", 1),
        ("0.28", "28%", 1),
        ("28%", "0.28", 1),
        ("7/25", "28 per cent", 1),
        ("28", "0.28", 0),
        ("0.28", "28", 0),
        ("28%", "0.28%", 0),
        (r"$\boxed{28}$ percent", "28%", 1),
    ],
)
def test_per_cent(text: str, right: str, score: float) -> None:
    assert get_scorer("numeric_answer")([text], references=[[right]]) == [score]


def test_tolerance() -> None:
    texts = ["3.14", "3.1416", "22/7", "3", "-3.14"]
    for settings, expected in [
        ({}, [0, 0, 0, 0, 0]),
        ({"abs_tol": 0.002}, [1, 1, 1, 0, 0]),
        ({"rel_tol": 1e-4}, [0, 1, 0, 0, 0]),
        ({"rel_tol": 0.05}, [1, 1, 1, 1, 0]),
        ({"rel_tol": 1e-4, "abs_tol": 0.002}, [1, 1, 1, 0, 0]),
    ]:
        scorer = get_scorer("numeric_answer", **settings)
        assert scorer(texts, references=[["3.14159"]] * 5) == expected
    # the bounds themselves are within, exactly
    assert get_scorer("numeric_answer", abs_tol=0.1)(["0.3", "0.31"], references=[["0.2"]] * 2) == [1, 0]


def test_places() -> None:
    text = [r"\boxed{7} of 8"]
    assert get_scorer("numeric_answer", answer="last")(text, references=[["8"]]) == [1]
    assert get_scorer("numeric_answer", answer="boxed")(text, references=[["7"]]) == [1]
    assert get_scorer("numeric_answer", answer="boxed")(["7"], references=[["7"]]) == [0]


@pytest.mark.parametrize("right", [72, 72.0, "72", "She sold 48 + 24 = 72.\n#### 72", [1, "72"], ["72"], (71, 72)])
def test_columns(right: Any) -> None:
    assert get_scorer("numeric_answer", column="answer")(["#### 72"], answer=[right]) == [1.0]


def test_mistakes() -> None:
    scorer = get_scorer("numeric_answer")
    with pytest.raises(ScorerError, match=r"references\[1\] must hold a number, got .'none'"):
        call_scorer(scorer, ["1", "2"], prompts=["", ""], references=[["1"], ["none"]])
    with pytest.raises(ScorerError, match=r"references\[0\] is empty"):
        call_scorer(scorer, ["1"], prompts=[""])
    by_column = get_scorer("numeric_answer", column="answer")
    with pytest.raises(ScorerError, match="column 'answer'"):
        call_scorer(by_column, ["1"], prompts=[""])
    for wrong in [None, True, math.nan, [], "x", {}]:
        with pytest.raises(ScorerError, match=r"answer\[0\] must hold a number"):
            call_scorer(by_column, ["1"], prompts=[""], answer=[wrong])
    for settings in [{"answer": "first"}, {"rel_tol": -1.0}, {"abs_tol": math.inf}]:
        with pytest.raises(ValueError, match=next(iter(settings))):
            get_scorer("numeric_answer", **settings)


def test_any_text_is_read_in_time() -> None:
    pieces = ["1 ", "1,", "1/", "(", "\\boxed{", "\\frac", "\\frac{1}", "1 1/", " ", "a ^", "{", "-", "1.1", "\\sqrt{"]
    pieces += ["\\text{", "#### ", "#### 1 ", "1,234", "$", "½", "²", "\n", "9", "e9", "^2", "%", "\\", "\u0665"]
    for piece in pieces:
        read_answer(piece * 20_000 + "1")
    rng = random.Random(0)
    for _ in range(3_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        answer = read_answer(text)
        assert answer is None or isinstance(answer.value, Fraction)
