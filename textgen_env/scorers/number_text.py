r"""Reading numbers in text: as people, LaTeX and programs write them, exactly. Which one is the answer, says
`numeric_answer.py`.

Signs, thousands separators, decimals, fractions ("3/4", "\frac{3}{4}", "1 3/4", "½"), scientific notation ("1.5e3",
"1.5 × 10^3"), powers ("2^{10}"), per cent, "5 million", currencies and units, and digits of all scripts. What only
looks like a number is none: "H2O", the exponent in "5 m^2", the 2 in "x_2", roots and π.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import regex

MOST_DIGITS = 1000  # longer ones, and powers beyond, are no numbers: exact arithmetic has its price
_SYMBOL = "\ufffc"  # stands for what has a value but is not written as a number

_SUPERSCRIPTS = {ord(sign): plain for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True)}
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"}
_VULGAR |= {"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10"}
_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_UNSIGNED = r"""
    \d{1,3}(?:,\d{3})++(?![\d,])(?:\.\d++)?      # 1,234,567.89
  | \d{1,3}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d++)?   # 12,34,567
  | \d{1,3}(?:\.\d{3})++,\d++                    # 1.234,5
  | (?<!\d,)\d++,\d++(?!,?\d)                    # 3,14
  | \d++(?:\.\d++)?+
  | \.\d++
"""
NUMBER = regex.compile(
    rf"""
    (?<![\p{{L}}\d_]|\d\.)                       # not inside a word or a version
    (?P<sign>(?<![\p{{L}}\d)\]}}%])[-+])?+
    (?: (?P<whole>\d++)\ +(?=\d++\ ?/) )?+       # 1 3/4
    (?P<body>{_UNSIGNED})
    (?: \ ?/\ ?(?P<under>\d++(?:\.\d++)?)(?!\ ?/\ ?\d) )?+
    (?: [eE](?P<exponent>[-+]?\d++)(?!\w) | \ ?\*\ ?10\^(?P<ten>[-+]?\d++) | \^(?P<power>[-+]?\d++) )?+
    (?: \ ?(?P<word>thousand|million|billion|trillion)\b )?+
    (?: \ ?(?P<percent>%|percent(?:age)?\b|per\ cent\b|pct\b) )?+
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_VALUE = regex.compile(rf"{_SYMBOL}|(?:{NUMBER.pattern})\ ?{_SYMBOL}?", regex.VERBOSE | regex.IGNORECASE)

_SIGNED, _PLAIN = regex.compile(r" ?[-+]?\d++(?:\.\d++)? ?"), regex.compile(r" ?\d++(?:\.\d++)? ?")
Rewrite = tuple[Any, str | Callable[[Any], str]]


def _fraction(match: Any) -> str:
    over, under = match[1] or match[2], match[3] or match[4]
    return f"{over.strip()}/{under.strip()}" if _SIGNED.fullmatch(over) and _PLAIN.fullmatch(under) else _SYMBOL


def _compiled(*rewrites: tuple[str, str | Callable[[Any], str]]) -> list[Rewrite]:
    return [(regex.compile(pattern), replacement) for pattern, replacement in rewrites]


_REWRITES = _compiled(
    (r"(?![0-9])\p{Nd}", lambda match: str(unicodedata.decimal(match[0]))),
    (r"[−－﹣‒–]", "-"),
    (r"٫", "."),
    (r"[٪％]|\\%", "%"),
    (r"(?<=\d)(?:\{,\}|\\[,!;:]|[\u00a0\u202f\u2009٬'’_])(?=\d{3}(?!\d))", ","),
    (r"\\(?:left|right|displaystyle|[bB]ig[lr]?)\b", ""),
    (r"[^\S\n]++|\\[,;:! ]|\\q?quad\b|~", " "),
    (r"  ++", " "),
    (r"(?<![\w.,])[1-9]\d{0,2}(?: \d{3})++(?!\d| ?/)", lambda match: match[0].replace(" ", ",")),
    (r"(?<!\d)(\d++)/(\d++)/(\d++)(?!\d)", r"\1 ; \2 ; \3"),  # a date
    (r"[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅑⅒]", lambda match: f" {_VULGAR[match[0]]}"),
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]++", lambda match: f"^{match[0].translate(_SUPERSCRIPTS)}"),
    (r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox|operatorname) ?\{([^{}]*+)\}", r" \1 "),
    (r"\^ ?\{? ?\\circ ?\}?|\\degree\b|°", " "),
    (r"\^ ?\{ ?([-+]?\d++) ?\}", r"^\1"),
    (r"(?<=\d)\*\*(?=[-+]?\d)", "^"),
    (r"\*\*|__", ""),  # bold, in Markdown
    (r"×|\\times\b|\\cdot\b|(?<=\d ?)(?:[·⋅x])(?= ?10\^)", "*"),
    (r"\\(?:approx|simeq|equiv)\b|[≈≡]", "="),
    (r"(?<=\d)\\[dtc]?frac\b", r" \\frac"),  # "2\frac{1}{2}"
    (r"[π∞]|\\(?:pi|infty)\b", _SYMBOL),
)
_INNERMOST = _compiled(
    (r"\\sqrt ?(?:\[[^\[\]]*+\])? ?(?:\{[^{}]*+\}|\d)|√ ?\(?(?:\d++(?:\.\d++)?)?", _SYMBOL),
    (r"\\[dtc]?frac ?(?:\{([^{}]*+)\}|(\d)) ?(?:\{([^{}]*+)\}|(\d))", _fraction),
)
_LATER = _compiled(
    (r"\\(?:[dtc]?frac|sqrt)", _SYMBOL),
    (r"(?<=[\p{L})}] ?)\^ ?[-+]?\d++", " "),  # the exponent of a unit or a variable
    (r"(?<=\p{L})_(?:\{[^{}]*+\}|\w)", " "),
    (r"([-+]) ?\\?[$€£¥₹₩] ?(?=\d)", r"\1"),
    (r"\\?[$€£¥₹₩]", " "),
    (r"\\[()\[\]]|[{}]", " "),
)
_DEEPEST = 3  # fractions and roots within each other


@dataclass(frozen=True)
class Number:
    """An exact value, and whether it was given in per cent: 25 % is 25 with the sign, which is worth 1/4."""

    value: Fraction
    percent: bool = False


def tidied(text: str) -> str:
    """The text with its numbers in the form that `NUMBER` reads."""
    for pattern, replacement in [*_REWRITES, *_INNERMOST * _DEEPEST, *_LATER]:
        text = pattern.sub(replacement, text)
    return text


def values_in(tidy: str) -> list[Any]:
    """The matches of what has a value in a tidied text, in order, for `value_of`."""
    return list(_VALUE.finditer(tidy))


def value_of(match: Any) -> Number | None:
    """The value of a match; `None` for one that is no number, such as "2\\sqrt{3}", or has thousands of digits."""
    if _SYMBOL in match[0] or len(match[0]) > MOST_DIGITS:
        return None
    try:
        value = _decimal(match["body"])
        if match["under"]:
            value /= Fraction(match["under"])
        value = value + int(match["whole"] or 0)
        value *= _power(Fraction(10), int(match["exponent"] or match["ten"] or 0))
        value = _power(value, int(match["power"] or 1))
    except (ZeroDivisionError, OverflowError):
        return None
    value *= _WORDS.get((match["word"] or "").lower(), 1)
    return Number(-value if match["sign"] == "-" else value, bool(match["percent"]))


def _decimal(body: str) -> Fraction:
    """An unsigned number, of whose separators the last may stand for the point."""
    if regex.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", body):
        body = body.replace(".", "").replace(",", ".")
    elif regex.fullmatch(r"\d+,\d+", body) and not regex.fullmatch(r"[1-9]\d{0,2},\d{3}", body):
        body = body.replace(",", ".")
    return Fraction(body.replace(",", ""))


def _power(base: Fraction, exponent: int) -> Fraction:
    digits = len(str(base.numerator)) + len(str(base.denominator))
    if abs(exponent) * digits > MOST_DIGITS * 4:
        raise OverflowError
    return base**exponent
