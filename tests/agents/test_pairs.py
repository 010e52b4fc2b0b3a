"""Pairs: what is refused, and that files bring back exactly what was written."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textgen_env.agents.preferences.pairs import (
    Pair,
    Ranked,
    as_pair,
    as_row,
    as_trl_row,
    read_pairs,
    write_pairs,
    write_trl,
)

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]
PAIR = Pair("p", " x", " y", "b", "ann", "2026-01-31T12:00:00Z", 1.5, {"references": ["r"], "scores": [0.25, 2]})

hostile = st.text(st.characters(exclude_categories=["Cs"]))
prompts = hostile.filter(str.strip)
names = hostile.filter(lambda name: name not in vars(PAIR) and name not in ("chosen", "rejected", "references"))
json_values: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | hostile,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hostile, inner, max_size=3),
    max_leaves=4,
)
taken = {
    "completions",
    "prompts",
    "completion_ids",
    "finish_reasons",
    "scorer",
    "default_name",
    "self",
    "messages",
    "ended",
    "strength",
}
messages = st.lists(st.fixed_dictionaries({"role": hostile, "content": hostile}), min_size=1, max_size=3).filter(
    lambda chat: chat[-1]["role"] != "assistant" and any(m["content"].strip() for m in chat)
)


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    a, b = draw(st.tuples(hostile, hostile).filter(lambda texts: texts[0] != texts[1]))
    columns = draw(st.dictionaries(names.filter(lambda name: name not in taken), json_values, max_size=2))
    columns |= draw(st.sampled_from([{}, {"references": ["r"]}, {"ended": [True, False]}]))
    choice = draw(st.sampled_from(["a", "b", "tie", "cannot tell", None]))
    when = draw(st.sampled_from([None, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.25+00:00"]))
    seconds = draw(st.none() | st.floats(0, 1e9))
    return Pair(draw(prompts), a, b, choice, draw(st.none() | prompts), when, seconds, columns)


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_a_file_brings_back_what_was_written(tmp_path: Path, written: list[Pair]):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, written)
    assert read_pairs(path) == written
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read_pairs(path) == written


@quick
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_trl_files_keep_prompt_chosen_and_rejected(tmp_path: Path, written: list[Pair]):
    """Ties and pairs without a choice are left out and counted."""
    path = tmp_path / "pairs.jsonl"
    wanted = [(p.prompt, *((p.a, p.b) if p.choice == "a" else (p.b, p.a))) for p in written if p.choice in ("a", "b")]
    assert write_trl(path, written) == len(written) - len(wanted)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [tuple(row.values()) for row in rows] == wanted
    assert all(list(row) == ["prompt", "chosen", "rejected"] for row in rows)
    if wanted:
        assert [(p.prompt, p.a, p.b, p.choice) for p in read_pairs(path)] == [(*row, "a") for row in wanted]


@quick
@given(messages, hostile)
def test_conversations_come_back_from_both_forms(tmp_path: Path, chat: list[dict[str, str]], text: str):
    try:
        pair = Pair(chat, text, text + ".", "b")
    except ValueError:  # what the user said last is blank
        return
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [pair])
    assert read_pairs(path) == [pair]
    write_trl(path, [pair])
    assert read_pairs(path) == [Pair(chat, text + ".", text, "a")]


def test_trl_rows_by_hand():
    plain = as_trl_row(Pair("The sky is", " green.", " blue.", "b"))
    assert plain == {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    chat = as_trl_row(Pair(CHAT, "4", "5", "a"))
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "4"), ("rejected", "5"))}
    assert chat == {"prompt": CHAT, **answers}
    whole = {name: [*CHAT, *answer] for name, answer in answers.items()}
    assert as_pair(whole) == as_pair(chat) == Pair(CHAT, "4", "5", "a")  # the prompt within, and apart
    assert as_pair({**plain, "score_chosen": 3}) == Pair(
        "The sky is", " blue.", " green.", "a", columns={"score_chosen": 3}
    )


def test_rows_have_the_fields_by_name_and_no_more():
    assert as_row(PAIR) == {
        "prompt": "p",
        "a": " x",
        "b": " y",
        "choice": "b",
        "who": "ann",
        "when": "2026-01-31T12:00:00Z",
        "seconds": 1.5,
        "references": ["r"],
        "scores": [0.25, 2],
    }
    assert as_row(Pair("p", "x", "")) == {"prompt": "p", "a": "x", "b": ""}


def test_what_is_learned_from_a_choice():
    found = {choice: replace(PAIR, choice=choice).ranked for choice in ("a", "b", "tie", "cannot tell", None)}
    tie = Ranked(" x", " y", 0.5)
    assert found == {
        "a": Ranked(" x", " y", 1),
        "b": Ranked(" y", " x", 1),
        "tie": tie,
        "cannot tell": None,
        None: None,
    }
    assert PAIR.as_prompt.references == ("r",)
    assert PAIR.ended == (True, True)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("prompt", " ", ValueError, "prompt is empty"),
        ("prompt", 3, TypeError, "has the prompt 3; it must be a text or a list of messages"),
        ("prompt", [{"role": "user"}], ValueError, "message 0 (user) has no content"),
        ("a", None, TypeError, "a=None must be a text, not NoneType"),
        ("a", "\ud800", ValueError, r"a='\ud800' holds '\ud800', which is half a character"),
        ("a", " y", ValueError, "a and b are the same text, ' y'"),
        ("choice", "c", ValueError, "choice='c' must be one of a, b, tie, cannot tell, or None"),
        ("choice", True, ValueError, "choice=True must be one of"),
        ("who", "", ValueError, "who='' must name a rater, or be None"),
        ("who", 7, TypeError, "who=7 must be a text, not int"),
        ("when", "yesterday", ValueError, "when='yesterday' must be a time in UTC as ISO 8601 has it"),
        ("when", "2026-01-31T12:00:00", ValueError, "must be a time in UTC"),
        ("when", "2026-01-31T12:00:00+01:00", ValueError, "must be a time in UTC"),
        ("when", 5, ValueError, "when=5 must be a time in UTC"),
        ("seconds", -1, ValueError, "seconds=-1 must be a finite number ≥ 0, or None"),
        ("seconds", math.inf, ValueError, "seconds=inf must be a finite number"),
        ("seconds", True, ValueError, "seconds=True must be a finite number"),
        ("columns", [1], TypeError, "columns=[1] must be a mapping"),
        ("columns", {"chosen": 1}, ValueError, "columns has 'chosen'; names are texts, and a, b, "),
        ("columns", {1: 1}, ValueError, "columns has 1; names are texts"),
        ("columns", {"x": math.nan}, ValueError, "cannot be written as JSON"),
        ("columns", {"x": {1}}, ValueError, "cannot be written as JSON"),
        (
            "columns",
            {"prompts": 1},
            ValueError,
            "has a column 'prompts', a name under which scorers get something else",
        ),
        ("columns", {"strength": -1}, ValueError, "strength=-1 must be a finite number ≥ 0"),
        ("columns", {"strength": "much"}, ValueError, "strength='much' must be a finite number ≥ 0"),
        ("columns", {"strength": True}, ValueError, "strength=True must be a finite number ≥ 0"),
        ("columns", {"ended": [True]}, ValueError, "ended=[True] must say of a and of b whether it ended"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, error: type[Exception], message: str):
    with pytest.raises(error) as refused:
        replace(PAIR, **{field: value})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "a": "x"}', "there is no 'b': a pair has prompt, a and b; its keys are ['a', 'prompt']"),
        ('{"a": "x", "b": "y"}', "there is no 'prompt': a pair has prompt, a and b"),
        ('{"prompt": "p", "a": "x", "b": "x"}', "a and b are the same text, 'x'"),
        ('{"prompt": "p", "a": "x", "b": "y", "choice": "left"}', "choice='left' must be one of"),
        ('{"prompt": "p", "a": "x", "a": "y"}', "has the key 'a' twice"),
        ('"p"', "'p' must be an object with prompt, a and b"),
        ('{"prompt": "p", "chosen": "x"}', "there is no 'rejected' beside the other"),
        ('{"chosen": "x", "rejected": "y"}', "there is no 'prompt' beside chosen and rejected"),
        ('{"prompt": "p", "chosen": "x", "rejected": "y", "choice": "b"}', "'choice' beside chosen and rejected"),
        (
            '{"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "y"}]}',
            "chosen ends with a message of 'user'",
        ),
        (
            '{"chosen": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "x"}], '
            '"rejected": [{"role": "user", "content": "2"}, {"role": "assistant", "content": "y"}]}',
            "must be the same conversation up to their last message",
        ),
        ("{", "is not JSON"),
        ('{"prompt": "p", "a": "\xe9", "b": "y"}', "is not UTF-8 (byte 0xe9"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "p", "a": "x", "b": "y"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError) as refused:
        read_pairs(path)
    assert f"{path}, line 3" in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_hold_no_pair_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(tmp_path / "empty.jsonl")


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [PAIR])

    def broken():
        yield PAIR
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_pairs(path, broken())
    assert read_pairs(path) == [PAIR]
