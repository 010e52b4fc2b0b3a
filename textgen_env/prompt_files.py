"""Reading files of prompts: JSON lines or one JSON array, in UTF-8 or UTF-16, gzipped or not; every error has its line.

What a prompt is made of is checked in `prompts.py`.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textgen_env.messages import is_conversation

_LINE_END = re.compile(r"\r\n|\n|\r")  # not U+2028 and the like, which may stand within a JSON string
_SPACE = re.compile(r"[ \t\r\n]*")
_MARKS = (  # the longer before the shorter that it begins with
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The JSON values of a file, each with the words that say where it stands.

    One value per line; or a single array, in lines or not, whose entries are the values.

    Raises:
        ValueError: not UTF-8 (or UTF-16 with its mark), not JSON, a key twice in an object, NaN or Infinity.
    """
    text = _text_of(path)
    if _is_array(text):
        yield from _entries(text, path)
        return
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            yield f"{path}, line {number}", _loads(line, f"{path}, line {number}")


def _text_of(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="replace")
        raise ValueError(
            f"{path}, line {_line(before, len(before))} is not {encoding.upper().removesuffix('-SIG')} "
            f"(byte 0x{data[error.start]:02x}: {error.reason}); save the file as UTF-8, plain or gzipped"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path}, line {_line(text, text.index(chr(0)))} has a NUL character; if the file is UTF-16 without its "
            "mark, save it as UTF-8"
        )
    return text


def _line(text: str, position: int) -> int:
    return len(_LINE_END.findall(text, 0, position)) + 1


def _is_array(text: str) -> bool:
    """Whether the file is one array of prompts rather than lines, of which each may be an array: a conversation."""
    if not text.lstrip().startswith("["):
        return False
    first = next(line for line in _LINE_END.split(text) if line.strip())
    try:
        return not is_conversation(json.loads(first))
    except (ValueError, RecursionError):
        return True


def _entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of an array, one by one, so that each has its line."""
    position, line, number, seen = _after_space(text, text.index("[") + 1), 1, 0, 0
    while not text.startswith("]", position):
        line, seen = line + len(_LINE_END.findall(text, seen, position)), position
        where = f"{path}, entry {number} (line {line})"
        value, position = _decode(text, position, where)
        yield where, value
        number, position = number + 1, _after_space(text, position)
        if text.startswith(",", position):
            position = _after_space(text, position + 1)
        elif not text.startswith("]", position):
            raise ValueError(f"{path}, line {_line(text, position)} is not JSON: expected ',' or ']' behind an entry")
    if text[position + 1 :].strip():
        raise ValueError(f"{path}, line {_line(text, position)} is not JSON: there is more behind the array's end")


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _loads(line: str, where: str) -> Any:
    value, end = _decode(line, _after_space(line, 0), where)
    if line[end:].strip():
        raise ValueError(f"{where} is not JSON: there is more behind its end: {line[end:].strip():.40}")
    return value


def _decode(text: str, position: int, where: str) -> tuple[Any, int]:
    """The JSON value at a position and where it ends."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}, at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice; which of them counts?")
    return mapping


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON; leave the key out, or write null")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits:.40} is out of range")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
