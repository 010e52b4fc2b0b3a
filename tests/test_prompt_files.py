"""Files of prompts: encodings, arrays, and errors that name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from textgen_env.episode import Prompt
from textgen_env.prompts import load_prompts

LINES = '{"prompt": "é", "references": ["r"]}\n\n"plain"\n'
PROMPTS = [Prompt("é", ("r",)), Prompt("plain")]


def written(folder: Path, data: bytes | str, name: str = "set.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        b"\xfe\xff" + LINES.encode("utf-16-be"),
        LINES.encode("utf-32"),
        gzip.compress(LINES.encode(), mtime=0),
        gzip.compress(LINES.encode("utf-8-sig"), mtime=0),
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        LINES.strip().encode(),
        b'[{"prompt": "\xc3\xa9", "references": "r"}, "plain"]',
        b'\n[\n  {"prompt": "\\u00e9",\n   "references": ["r"]},\n  "plain"\n]\n',
        b'\xef\xbb\xbf["plain", "plain"]',
    ],
)
@pytest.mark.parametrize("name", ["set.jsonl", "set.json", "set.jsonl.gz", "set"])
def test_forms(tmp_path: Path, data: bytes, name: str) -> None:
    assert load_prompts(written(tmp_path, data, name)) in (PROMPTS, [PROMPTS[1]] * 2)


def test_line_separators_within_a_string_end_no_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf"
    path = written(tmp_path, json.dumps(text, ensure_ascii=False).replace("\x0b", "\\u000b").replace("\x0c", "\\f"))
    assert load_prompts(path) == [Prompt(text)]


def test_a_very_long_line(tmp_path: Path) -> None:
    assert load_prompts(written(tmp_path, json.dumps("a" * 3_000_000)))[0].text == "a" * 3_000_000
    with pytest.raises(ValueError, match="line 1 is not JSON") as raised:
        load_prompts(written(tmp_path, '{"prompt": "' + "a" * 3_000_000))
    assert len(str(raised.value)) < 1000


GOOD = b'{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + '"é"\n'.encode("latin-1"), r"set.jsonl, line 2 is not UTF-8 \(byte 0xe9"),
        (GOOD + '"naïve"'.encode("utf-16-le"), "line 2 is not UTF-8 .byte 0xef"),
        ('"a"\n"b"'.encode("utf-16-le"), "line 1 has a NUL character; if the file is UTF-16"),
        ('"a"\n"b"'.encode("utf-16")[:-1], "line 2 is not UTF-16"),
        (gzip.compress(GOOD * 100, mtime=0)[:-9], "set.jsonl is not a whole gzip file"),
        (b"\x1f\x8bnot gzip", "set.jsonl is not a whole gzip file"),
        (gzip.compress(GOOD + b'"\xe9"', mtime=0), r"line 2 is not UTF-8"),
        (GOOD + b'{"prompt": "b"', "line 2 is not JSON: Expecting ',' delimiter, at column 15"),
        (GOOD + b'{"text": "b"}', r"line 2 has no \"prompt\""),
        (GOOD + b'""', "line 2 is empty"),
        (GOOD + b'"a" "b"', 'line 2 is not JSON: there is more behind its end: "b"'),
        (GOOD + b"Once upon a time", "line 2 is not JSON: Expecting value"),
        (GOOD + b'{"prompt": "a", "prompt": "b"}', "line 2: an object has the key 'prompt' twice"),
        (GOOD + b'{"prompt": "a", "meta": {"x": 1, "x": 1}}', "line 2: an object has the key 'x' twice"),
        (GOOD + b'{"prompt": "a", "weight": NaN}', "line 2: NaN is no JSON"),
        (GOOD + b'{"prompt": "a", "weight": [-Infinity]}', "line 2: -Infinity is no JSON"),
        (GOOD + b'{"prompt": "a", "weight": -1e999}', "line 2: the number -1e999 is out of range"),
        (GOOD + b'{"prompt": "a", "n": 1' + b"0" * 5000 + b"}", "line 2: Exceeds the limit"),
        (GOOD + b"[" * 100_000, "line 2"),
        (GOOD + b'"\\ud83d"', r"line 2 has a lone surrogate, '\\ud83d'"),
        (GOOD + b'{"prompt": "a", "references": ["b\\udc00"]}', "line 2: references has a lone surrogate"),
        (GOOD + b'{"prompt": "a", "meta": {"x": ["\\udc00"]}}', "line 2: column 'meta' 'x' has a lone surrogate"),
        (GOOD + b'{"prompt": "a", "\\udc00": 1}', "line 2: column has a lone surrogate"),
        (GOOD + b'{"prompt": "a", "scorer": 1}', "line 2 has a column 'scorer'"),
        (GOOD + b"null", "line 2=None must be a text or a mapping"),
        (GOOD + b'["a", "b"]', "line 2=.* must be a text or a mapping"),
        (b'[\n"a",\n{"prompt": 3}\n]', r"entry 1 \(line 3\) has the prompt 3"),
        (b'[\n"a",\n{"prompt": "a", "x": NaN}\n]', r"entry 1 \(line 3\): NaN is no JSON"),
        (b'[\n"a"\n"b"\n]', "line 3 is not JSON: expected ',' or ']'"),
        (b'["a",\n"b"', "line 2 is not JSON: expected ',' or ']'"),
        (b'["a",\n', r"entry 1 \(line 2\) is not JSON"),
        (b'[\n"a"\n]\n["b"]', "line 3 is not JSON: there is more behind the array's end"),
        (b'[\n{"role": "user", "content": "a"}\n]', r"entry 0 \(line 2\) has no .*a conversation is a list"),
        (b"", "holds no prompt"),
        (b"\n \r\n", "holds no prompt"),
        (b"\xef\xbb\xbf", "holds no prompt"),
        (b"[]", "holds no prompt"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        load_prompts(written(tmp_path, data))
    assert "set.jsonl" in str(raised.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        load_prompts(tmp_path)
    with pytest.raises(ValueError, match="there is no such file"):
        load_prompts(tmp_path / "none.jsonl.gz")
    for text in ("Once upon a time there was a king. " * 200, "Hello", "", "a\0b"):
        with pytest.raises(ValueError, match="a single prompt goes into a list") as raised:
            load_prompts(text)
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("a\ud83d", ValueError, r"prompts\[1\] has a lone surrogate"),
        ({"prompt": "a", "references": ["\udfff"]}, ValueError, r"prompts\[1\]: references has a lone surrogate"),
        ({"prompt": "a", "note": ("x", "\udfff")}, ValueError, r"prompts\[1\]: column 'note' has a lone surrogate"),
        (Prompt("a\ud83d"), ValueError, r"prompts\[1\] has a lone surrogate"),
        ({"prompt": "a", "references": float("nan")}, TypeError, r"prompts\[1\] has the references nan"),
        ({"prompt": "a", "references": {"text": "b"}}, TypeError, r"prompts\[1\] has the references"),
        ({"prompt": "a", "references": b"b"}, TypeError, r"prompts\[1\] has the references"),
        ({"prompt": float("nan")}, TypeError, r"prompts\[1\] has the prompt nan"),
        ({"prompt": "a", 3: 4}, TypeError, r"prompts\[1\] has the column 3"),
        (b"a", TypeError, r"prompts\[1\]=b'a' must be a text"),
    ],
)
def test_the_same_in_memory(row: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        load_prompts(["a", row])


def test_whole_surrogate_pairs_are_characters(tmp_path: Path) -> None:
    assert load_prompts(written(tmp_path, '"\\ud83d\\ude42"')) == [Prompt("🙂")]
