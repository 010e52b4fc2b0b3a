"""Reading JSON: a text that is one value, or the objects and arrays inside other text. Schemas are for `formats.py`.

Both are strict: no NaN, no Infinity, no comments, no trailing commas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import regex

_MOST_DIGITS = 4300  # Python reads no longer integers from text
_NESTED = 4  # how often a text's length is offered again, as parts of what it holds

_SPACE = regex.compile(r"[ \t\n\r]*+")
_OPENING = regex.compile(r"[\[{]")
_STRING = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+"'
_KEY = regex.compile(rf"({_STRING})[ \t\n\r]*+:")
_SCALAR = regex.compile(rf"{_STRING}|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?|true|false|null")

Places = dict[int, tuple[int, Any]]
"""Where objects and arrays begin, to where they end and what they are."""


def read_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        ValueError: the text is no JSON.
        RecursionError: thousands of brackets within each other.
    """
    return _DECODER.decode(text)


def find_json(text: str) -> Iterator[Any]:
    """Every object and array in a text: first those that are part of no other, then the parts of those.

    Takes time in proportion to the text, whatever it holds. Of deeply nested values not all parts are given.
    """
    places: Places = {}
    for start in reversed([match.start() for match in _OPENING.finditer(text)]):
        if (found := _container(text, start, places)) is not None:
            places[start] = found
    nested = []
    covered = 0
    for start in sorted(places):
        end, value = places[start]
        if start >= covered:
            covered = end
            yield value
        else:
            nested.append((end - start, value))
    room = _NESTED * len(text)
    for size, value in nested:
        room -= size
        if room < 0:
            return
        yield value


def _container(text: str, start: int, places: Places) -> tuple[int, Any] | None:
    """The end and the value of the object or array that begins at `start`, when those behind it are known."""
    is_object = text[start] == "{"
    keys: list[str] = []
    values: list[Any] = []
    closing = "}" if is_object else "]"
    at = _SPACE.match(text, start + 1).end()
    if text.startswith(closing, at):
        return at + 1, {} if is_object else []
    while True:
        if is_object:
            if (key := _KEY.match(text, at)) is None:
                return None
            keys.append(json.loads(key[1]))
            at = _SPACE.match(text, key.end()).end()
        if (item := places.get(at) or _scalar(text, at)) is None:
            return None
        values.append(item[1])
        at = _SPACE.match(text, item[0]).end()
        if text.startswith(closing, at):
            return at + 1, dict(zip(keys, values, strict=True)) if is_object else values
        if not text.startswith(",", at):
            return None
        at = _SPACE.match(text, at + 1).end()


def _scalar(text: str, at: int) -> tuple[int, Any] | None:
    """The end and the value of the text, number, truth value or null at a place."""
    match = _SCALAR.match(text, at)
    return None if match is None else (match.end(), _DECODER.decode(match[0]))


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _no_constant(name: str) -> Mapping[str, Any]:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)
