"""Scorers in processes of their own, and regular expressions that would never be done."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import endless
import pytest

from textgen_env.scorers import ScorerError, call_scorer, get_scorer
from textgen_env.scorers.combine import Sum
from textgen_env.scorers.service import Patient
from textgen_env.scorers.worker import Workers

HOSTILE = "a" * 60 + "b"


def test_a_loop_that_never_ends_is_ended() -> None:
    scorer = Patient(endless.spin, timeout=1.0, retries=0, workers=2, process=True, on_failure=-1.0)
    for _ in range(2):
        assert call_scorer(scorer, ["ab", "spin", "abc"], prompts=[""] * 3) == [2.0, -1.0, 3.0]
    assert scorer.info()["failed"] == 2


def test_so_is_one_inside_a_library_that_holds_up_all_threads() -> None:
    scorer = Patient(endless.backtrack, timeout=1.0, retries=0, process=True)
    with pytest.raises(ScorerError, match="'backtrack' took more than 1.0 s; text 'aaa"):
        call_scorer(scorer, [HOSTILE], prompts=[""])
    assert call_scorer(scorer, ["aaa"], prompts=[""]) == [1.0]


def test_a_process_that_ends_is_a_failure_and_is_replaced() -> None:
    scorer = Patient(endless.crash, retries=0, process=True)
    with pytest.raises(ScorerError, match="'crash': its process ended with exit code 7"):
        call_scorer(scorer, ["crash"], prompts=[""])
    assert call_scorer(scorer, ["fine"], prompts=[""]) == [1.0]


def test_processes_are_used_again_and_copies_have_their_own() -> None:
    scorer = Patient(endless.process_id, workers=1, process=True)
    first, second = (call_scorer(scorer, ["a"], prompts=[""])[0] for _ in range(2))
    assert first == second != os.getpid()
    assert call_scorer(copy.deepcopy(scorer), ["a"], prompts=[""])[0] not in (first, os.getpid())


def test_what_does_not_apply_and_what_raises_come_back() -> None:
    scorer = Patient(endless.sometimes, retries=0, batch_size=2, process=True)
    both = Sum({"sometimes": scorer, "zero": lambda completions: [0.0] * len(completions)})
    assert call_scorer(both, ["none", "ab"], prompts=["", ""]) == [0.0, 0.5]
    with pytest.raises(ScorerError, match="'sometimes' raised ZeroDivisionError.*text ''"):
        call_scorer(scorer, ["a", ""], prompts=["", ""])


def test_processes_get_the_fitted_scorer_with_its_models() -> None:
    scorer = Patient(endless.Fitted(), process=True)
    scorer.fit_references([["a"], ["b"], ["c"]])
    scorer.load_models()
    assert call_scorer(scorer, ["x"], prompts=[""]) == [103.0]
    assert scorer.scorer.loaded == 0  # not here


def test_scorers_that_cannot_be_sent_are_refused() -> None:
    with pytest.raises(TypeError, match="'<lambda>' cannot be sent to a process of its own.*defined in a module"):
        Patient(lambda completions: [1.0], process=True)
    with pytest.raises(ScorerError, match="must be defined in a module: .*no such attribute"):
        Patient(endless.NotHere(), process=True).load_models()


def test_nothing_is_left_behind() -> None:
    workers = Workers(endless.process_id)
    worker = workers.borrow()
    workers.give_back(worker)
    assert worker.answers()
    del workers
    assert not worker.answers()


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Its main module is not run a second time, and processes end with it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.append(sys.argv[1])\n"
        "import endless\n"
        "from textgen_env.scorers.service import Patient\n"
        "print(Patient(endless.spin, process=True)(['abc'], prompts=['']))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[3.0]\n"
    assert done.stderr == "a scorer may print\n"


# --- regular expressions ----------------------------------------------------------------------------------------------


def test_a_regular_expression_has_a_limit() -> None:
    scorer = get_scorer("regex", pattern="^(a|aa)+$", timeout=0.1)
    with pytest.raises(ScorerError, match=r"'\^\(a\|aa\)\+\$' was not done after 0.1 s with the text 'aaaa"):
        call_scorer(scorer, ["aaa", HOSTILE], prompts=["", ""])
    lenient = get_scorer("regex", pattern="^(a|aa)+$", timeout=0.1, on_timeout=0.25)
    assert call_scorer(lenient, ["aaa", HOSTILE, "b"], prompts=[""] * 3) == [1.0, 0.25, 0.0]


def test_patience_works_around_it() -> None:
    """The search lets other threads run, so that the time-out of `Patient` comes when it is due."""
    scorer = Patient(
        {"name": "regex", "pattern": "^(a|aa)+$", "timeout": 30.0}, timeout=0.2, retries=0, on_failure=-1.0
    )
    start = time.monotonic()
    assert call_scorer(scorer, [HOSTILE, "aaa"], prompts=["", ""]) == [-1.0, 1.0]
    assert time.monotonic() - start < 20  # not the 30 s of the search


SCHEMAS = [
    {"items": {"pattern": "^(a|aa)+$"}},
    {"items": {"patternProperties": {"^(a|aa)+$": {}}}},
    {"items": {"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False}},
    {"items": {"additionalProperties": False, "patternProperties": {"^(a|aa)+$": {}}}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_so_have_those_of_a_schema(schema: dict) -> None:
    pytest.importorskip("jsonschema")
    scorer = get_scorer("json_schema", schema=schema, timeout=0.1)
    with pytest.raises(ScorerError, match="was not done after 0.1 s"):
        call_scorer(scorer, [f'["{HOSTILE}", {{"{HOSTILE}": 1}}]'], prompts=[""])


@pytest.mark.parametrize(
    ("schema", "text", "score"),
    [
        ({"pattern": "^a+$"}, '"aaa"', 1.0),
        ({"pattern": "^a+$"}, '"b"', 0.0),
        ({"pattern": "^a+$"}, "3", 1.0),  # no text
        ({"patternProperties": {"^a": {"type": "integer"}}}, '{"ab": 1, "b": "x"}', 1.0),
        ({"patternProperties": {"^a": {"type": "integer"}}}, '{"ab": "x"}', 0.0),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, '{"ab": 1}', 1.0),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, '{"b": 1}', 0.0),
        ({"properties": {"b": {}}, "additionalProperties": False}, '{"b": 1}', 1.0),
        ({"properties": {"b": {}}, "additionalProperties": {"type": "string"}}, '{"b": 1, "c": "x"}', 1.0),
        ({"properties": {"b": {}}, "additionalProperties": {"type": "string"}}, '{"b": 1, "c": 2}', 0.0),
        ({"additionalProperties": False}, "[1]", 1.0),  # no object
        ({"$schema": "http://json-schema.org/draft-04/schema#", "additionalProperties": False}, '{"b": 1}', 0.0),
    ],
)
def test_they_say_what_jsonschema_says(schema: dict, text: str, score: float) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    value = json.loads(text)
    assert jsonschema.validators.validator_for(schema)(schema).is_valid(value) == bool(score)
    assert get_scorer("json_schema", schema=schema)([text]) == [score]
