"""Length, diversity, formats and VADER by hand-computed values."""

from __future__ import annotations

import contextlib
import json
import random

import pytest

from textgen_env.scorers import ScorerError, call_scorer, get_scorer
from textgen_env.scorers.json_text import find_json


def texts(*words: int) -> list[str]:
    return [" ".join(["w"] * n) for n in words]


def test_length_target() -> None:
    assert get_scorer("length", target=10)(texts(0, 5, 10, 15, 20, 30)) == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]


def test_length_bounds() -> None:
    assert get_scorer("length", minimum=4, maximum=8)(texts(0, 3, 4, 8, 10, 16)) == [0.0, 0.75, 1.0, 1.0, 0.75, 0.0]
    assert get_scorer("length", minimum=4)(texts(2, 400)) == [0.5, 1.0]
    assert get_scorer("length", maximum=4)(texts(0, 5)) == [1.0, 0.75]


def test_length_units() -> None:
    assert get_scorer("length", target=4, unit="characters")(["ab"]) == [0.5]
    assert get_scorer("length", target=4, unit="tokens")(["ab"], completion_ids=[[7, 8, 9]]) == [0.75]
    with pytest.raises(ScorerError, match="completion_ids"):
        call_scorer(get_scorer("length", target=4, unit="tokens"), ["ab"], prompts=["p"])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"target": 3, "maximum": 4}, {"minimum": 5, "maximum": 4}, {"target": 3, "unit": "bytes"}, {"target": 0}],
)
def test_length_mistakes(arguments) -> None:
    with pytest.raises(ValueError, match="length"):
        get_scorer("length", **arguments)


def test_distinct_and_repetition() -> None:
    completions = ["a b a b", "a b c d", "A a", "a", ""]
    # pairs: ab ba ab; ab bc cd; aa; none; none
    assert get_scorer("distinct")(completions) == [pytest.approx(2 / 3), 1.0, 1.0, 0.0, 0.0]
    assert get_scorer("repetition", n=2)(completions) == [pytest.approx(-1 / 3), 0.0, 0.0, 0.0, 0.0]
    assert get_scorer("repetition", n=1)(completions) == [-0.5, 0.0, -0.5, 0.0, 0.0]
    assert get_scorer("distinct", n=1, unit="tokens")(["x"], completion_ids=[[5, 5, 6, 5]]) == [0.5]
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        get_scorer("distinct", n=0)
    with pytest.raises(ValueError, match="completion_ids"):
        get_scorer("repetition", unit="tokens")(["x"])


def test_regex() -> None:
    completions = ["Answer: 42", "answer: 42\n", "42", ""]
    assert get_scorer("regex", pattern=r"Answer: \d+")(completions) == [1, 0, 0, 0]
    assert get_scorer("regex", pattern=r"answer: \d+", flags="i")(completions) == [1, 1, 0, 0]
    assert get_scorer("regex", pattern=r"\d+", mode="fullmatch")(completions) == [0, 0, 1, 0]
    for arguments in [{"pattern": "("}, {"pattern": "a", "mode": "find"}, {"pattern": "a", "flags": "q"}]:
        with pytest.raises(ValueError, match="regex"):
            get_scorer("regex", **arguments)


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}


def test_json_schema(tmp_path) -> None:
    pytest.importorskip("jsonschema")
    completions = ['{"age": 3}', ' {"age": -3}', "[1]", '{"age": NaN}', '{"age": 3} and more', "", "[" * 20_000]
    assert get_scorer("json_schema", schema=SCHEMA)(completions) == [1, 0, 0, 0, 0, 0, 0]
    assert get_scorer("json_schema", schema=SCHEMA, partial=0.25)(completions) == [1, 0.25, 0.25, 0, 0, 0, 0]
    assert get_scorer("json_schema", schema=SCHEMA, find=True)(["So: " + text for text in completions])[4] == 1
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert get_scorer("json_schema", schema=str(tmp_path / "schema.json"))(completions)[0] == 1
    with pytest.raises(ValueError, match="the schema is not valid"):
        get_scorer("json_schema", schema={"type": "thing"})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{x} {"age": 1}', 1),
        ('[x] {"age": 1}', 1),
        ('{{"age": 1}}', 1),
        ('{x {"age": 1}', 1),
        ('[1] and {"age": 1}', 1),
        ('{"age": -1} or rather {"age": 1}', 1),
        ('[{"age": 1}]', 1),
        ('"{" then {"age": 1}', 1),
        ('He said "use [" and {"age": 1}.', 1),
        ('```json\n{"name": "[", "age": 1}\n```', 1),
        ("{x} [1]", 0.5),
        ('{"age": "1"}', 0.5),
        ("{x} [y]", 0),
        ('{"age": 1', 0),
        ('{"age": NaN}', 0),
        ("{'age': 1}", 0),
        ('{"age": 1,}', 0),
        ("3", 0),
        ("[" * 100_000 + '{"age": 1}', 1),
        ("[" * 100_000, 0),
        ('{"age":' * 50_000, 0),
        ('["\\",' * 50_000, 0),
        ("[1," * 50_000, 0),
        ("[" * 50_000 + "]" * 50_000, 0.5),
        ("[" * 50_000 + "]" * 50_000 + '{"age": 1}', 1),
    ],
)
def test_json_inside_other_text(text: str, score: float) -> None:
    pytest.importorskip("jsonschema")
    assert get_scorer("json_schema", schema=SCHEMA, partial=0.5, find=True)([text]) == [score]


def test_json_finds_what_python_reads_at_every_bracket() -> None:
    def by_trying(text: str) -> list[object]:
        found = []
        for start, letter in enumerate(text):
            if letter in "[{":
                with contextlib.suppress(ValueError):
                    found.append(json.JSONDecoder().raw_decode(text, start)[0])
        return found

    rng = random.Random(0)
    found = 0
    for _ in range(20_000):
        text = "".join(rng.choices('[]{}"",:: 12a\\ntrue-.e', k=rng.randint(0, 14)))
        expected = by_trying(text)
        found += len(expected)
        assert sorted(map(repr, find_json(text))) == sorted(map(repr, expected)), text
    assert found > 300


def test_json_that_is_too_much_to_check_is_not_accepted() -> None:
    pytest.importorskip("jsonschema")
    nested = {"items": {"$ref": "#"}}
    deep = "[" * 900 + "]" * 900
    assert get_scorer("json_schema", schema=nested, partial=0.5)([deep, "[[]]"]) == [0.5, 1.0]
    assert get_scorer("json_schema", schema={"multipleOf": 0.1}, partial=0.5)(["1e999"]) == [0.5]
    assert get_scorer("json_schema", schema={"type": "number"})(["9" * 5000]) == [1.0]


def test_json_without_schema() -> None:
    assert get_scorer("json_schema")(["{}", "3", "nope"]) == [1, 1, 0]
    with pytest.raises(ValueError, match="partial"):
        get_scorer("json_schema", partial=2.0)


def test_keywords() -> None:
    scorer = get_scorer("keywords", keywords=["cat", "C++", "New York"])
    assert scorer(["The Cat in new york writes C++.", "concatenate", ""]) == [1.0, 0.0, 0.0]
    assert get_scorer("keywords", keywords=["Cat"], ignore_case=False)(["cat"]) == [0.0]
    by_prompt = get_scorer("keywords", column="must")
    assert by_prompt(["a b", "a b", "a"], must=[["a", "z"], [], None]) == [0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="column 'must'"):
        by_prompt(["a"])
    with pytest.raises(ValueError, match="list of texts"):
        get_scorer("keywords", keywords="cat")


def test_vader() -> None:
    pytest.importorskip("vaderSentiment")
    scores = get_scorer("vader")(["VADER is smart, handsome, and funny!", "Not bad at all", "", "It is horrible."])
    # compound 0.8439 is the first example of vaderSentiment's own documentation
    assert scores[0] == pytest.approx((0.8439 + 1) / 2)
    assert scores[2] == 0.5
    assert scores[3] < 0.5 < scores[1]
