"""Calls found in turns, checked, made and answered; what is the agent's mistake and what is nobody's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dialogues import ids, letters, play

from textgen_env import TextGenEnv
from textgen_env.episode import Prompt
from textgen_env.responders import Reply, Unavailable, as_responder
from textgen_env.responders.calls import JSONCalls, PatternCalls, ToolCall
from textgen_env.responders.tools import Tools
from textgen_env.testing import ResponderContract

CALC = {"tools": {"calculator": "calculator"}, "calls": {"calculator": r"^\s*calc (?P<expression>.+)"}}


def called(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def weather(town: str, days: int = 1) -> str:
    """Tells the weather.

    Args:
        town: where.
        days: from now.
    """
    if town == "Atlantis":
        raise KeyError("no such town")
    if town == "Nowhere":
        raise ConnectionError("the line is dead")
    return f"rain in {town} in {days} days"


class TestCalculatorTool(ResponderContract):
    texts = ("calc 1 + 2", " calc 7 * 6", "calc 1 / 0", "calc", "so it is 42", "calc 1")

    def make_responder(self) -> Any:
        return {"name": "tools", **CALC}


class TestJSONTools(ResponderContract):
    texts = (
        called("weather", town="Rome"),
        called("weather", town="Rome", days=2),
        called("sun"),
        "<tool_call>",
        "dry",
    )

    def make_responder(self) -> Any:
        return {"name": "tools", "tools": {"weather": weather}}


def one(responder: Tools, text: str) -> Any:
    return responder.respond([0], [text])[0]


# --- finding calls ----------------------------------------------------------------------------------------------------


def test_json_calls() -> None:
    find = JSONCalls()
    assert find("no call") == []
    assert find(f"I ask. {called('f', x=1)} and {called('g')}") == [ToolCall("f", {"x": 1}), ToolCall("g", {})]
    assert find('<tool_call>{"name": "f"}</tool_call>') == [ToolCall("f", {})]
    told = {
        "<tool_call>{}": "no </tool_call> at its end",
        "<tool_call>f(1)</tool_call>": "no JSON",
        "<tool_call>" + "[" * 50_000 + "</tool_call>": "no JSON",
        "<tool_call>[1]</tool_call>": "must be an object",
        '<tool_call>{"name": 1}</tool_call>': "must be an object",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>': '"arguments" must be an object, not list',
    }
    for text, said in told.items():
        (found,) = find(text)
        assert isinstance(found, str)
        assert said in found
    assert JSONCalls("[[", "]]")('[[{"name": "f"}]]') == [ToolCall("f", {})]


def test_pattern_calls_come_in_the_order_of_the_text() -> None:
    find = PatternCalls({"add": r"(?P<a>\d) plus (?P<b>\d)", "say": r"say (?P<what>\w+)(?P<loud>!)?"})
    assert find("say hi, 1 plus 2, say ho!") == [
        ToolCall("say", {"what": "hi"}),
        ToolCall("add", {"a": "1", "b": "2"}),
        ToolCall("say", {"what": "ho", "loud": "!"}),
    ]
    assert find("nothing") == []


def test_a_pattern_that_takes_for_ever_is_told() -> None:
    (found,) = PatternCalls({"f": r"(?:(?:a|aa)+)+$"})("a" * 60 + "b")
    assert found == "the text takes too long to be searched for a call of f"


# --- answering --------------------------------------------------------------------------------------------------------


def test_results_and_the_end() -> None:
    tools = Tools(**CALC)
    assert tools.role == "tool"
    assert tools.respond([0, 3], ["calc 12 + 7", "It is 19."]) == [
        Reply("19", info={"calls": ["calculator"], "mistakes": 0}),
        None,
    ]


def test_several_calls_in_a_turn() -> None:
    tools = Tools({"weather": weather, "calculator": "calculator"}, reply="<{result}>")
    text = (
        called("weather", town="Rome") + called("calculator", expression="1/0") + called("calculator", expression="6*7")
    )
    reply = one(tools, text)
    assert reply.text == "<rain in Rome in 1 days\nerror: calculator: division by zero\n42>"
    assert reply.info == {"calls": ["weather", "calculator", "calculator"], "mistakes": 1}
    many = one(tools, called("calculator", expression="1") * 11)
    assert many.text == "<" + "1\n" * 8 + "error: of 11 calls only the first 8 were made>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (called("weather"), "error: weather: arguments: 'town' is a required property"),
        (called("weather", town=5), "error: weather: town: 5 is not of type 'string'"),
        (called("wether", town="Rome"), "error: there is no tool 'wether', but weather"),
        (called("weather", town="Atlantis"), "error: weather: KeyError: 'no such town'"),
        (called("weather", town="Rome", month=1), "error: weather: TypeError:"),
        ("<tool_call>{", "error: the call has no </tool_call> at its end"),
    ],
)
@pytest.mark.filterwarnings("ignore:the tool 'weather' raised")
def test_mistakes_are_told_and_cost_what_was_said(text: str, said: str) -> None:
    reply = one(Tools({"weather": weather}, error_reward=-0.25), text)
    assert reply.text.startswith(said)
    assert (reply.reward, reply.info["mistakes"]) == (-0.25, 1)


def test_an_error_that_looks_like_the_tools_own_is_said_to_the_user_once() -> None:
    tools = Tools({"weather": weather})
    texts = [called("weather", town="Atlantis")] * 3
    with pytest.warns(UserWarning, match="the tool 'weather' raised KeyError: 'no such town'; the agent is") as seen:
        tools.respond(range(3), texts)
    assert len(seen) == 1


def test_what_is_nobodys_mistake_fails_that_slot_alone() -> None:
    tools = Tools({"weather": weather})
    failed, fine = tools.respond([1, 2], [called("weather", town="Nowhere"), called("weather", town="Rome")])
    assert isinstance(failed, ConnectionError)
    assert fine.text == "rain in Rome in 1 days"


def test_results_that_are_no_text_become_json() -> None:
    def three() -> dict[str, Any]:
        """Counts."""
        return {"n": [1, 2.5, None, "ü"]}

    assert one(Tools({"three": three}), called("three")).text == '{"n": [1, 2.5, null, "ü"]}'


# --- time -------------------------------------------------------------------------------------------------------------


class Slow:
    """Waits for an event where it is told to."""

    description = "Waits."
    parameters = {"type": "object", "properties": {"long": {"type": "boolean"}}}

    def __init__(self) -> None:
        self.free, self.asked = threading.Event(), 0

    def __call__(self, long: bool) -> str:
        self.asked += 1
        if long:
            self.free.wait(60)
        return "done"


def test_a_call_that_takes_too_long_fails_and_the_others_do_not() -> None:
    slow = Slow()
    tools = Tools({"slow": slow}, timeout=0.5, retries=3)
    late, fine = tools.respond([0, 1], [called("slow", long=True), called("slow", long=False)])
    assert isinstance(late, TimeoutError)
    assert str(late) == "no answer within 0.5 seconds"
    assert fine.text == "done"
    assert slow.asked == 2  # what is too late is not asked again
    slow.free.set()


def test_calls_of_all_slots_run_side_by_side() -> None:
    meeting = threading.Barrier(4, timeout=60)

    def meet() -> str:
        """Returns when four are there."""
        return str(meeting.wait() >= 0)

    replies = Tools({"meet": meet}, timeout=60).respond(range(4), [called("meet")] * 4)
    assert [reply.text for reply in replies] == ["True"] * 4


def test_what_was_not_there_is_asked_again() -> None:
    asked: list[float] = []

    def shaky() -> str:
        """Works the third time."""
        asked.append(time.monotonic())
        if len(asked) < 3:
            raise Unavailable("not yet")
        return "there"

    assert one(Tools({"shaky": shaky}, retries=2, backoff=0.01), called("shaky")).text == "there"
    assert len(asked) == 3
    asked.clear()
    assert isinstance(one(Tools({"shaky": shaky}, retries=1, backoff=0.01), called("shaky")), Unavailable)


# --- in an environment ------------------------------------------------------------------------------------------------


def test_in_an_environment(make: Callable[..., TextGenEnv]) -> None:
    env = make({"name": "tools", **CALC, "reply": "={result}."}, turn_strings=["\n"], max_new_tokens=40, scorer=letters)
    env.reset(seed=0)
    steps = play(env, "calc 6*7\nit is 42$")
    assert steps[8][-1]["reply"] == "=42."
    assert steps[8][-1]["reply_info"] == {"calls": ["calculator"], "mistakes": 0}
    assert steps[-1][-1]["finish_reason"] == "eos"
    assert steps[-1][-1]["transcript"] == "calc 6*7\n=42.it is 42"


@pytest.mark.filterwarnings("ignore:the environment failed")
def test_a_failure_is_never_a_score(make: Callable[..., TextGenEnv]) -> None:
    env = make({"name": "tools", "tools": {"weather": weather}}, turn_strings=["</tool_call>"], max_new_tokens=200)
    env.reset(seed=0)
    *_, (_, reward, terminated, truncated, info) = play(env, called("weather", town="Nowhere"))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["finish_reason"] == "failed"
    assert "score" not in info
    assert info["error"] == "ConnectionError: the line is dead"


@pytest.mark.parametrize(
    "result",
    ["x" * 10**8, "\x1b[2J\x07\x00", "<eos></s><|im_end|>", "\ud800", "\u202e" + "\u0301" * 10**5, ""],
    ids=["100 MB", "control", "special tokens", "surrogate", "bidi", "empty"],
)
def test_hostile_results_leave_a_running_environment(result: str, make: Callable[..., TextGenEnv]) -> None:
    def hostile() -> str:
        """Returns what it likes."""
        return result

    env = make({"name": "tools", "tools": {"hostile": hostile}}, turn_strings=["</tool_call>"], max_new_tokens=99)
    env.reset(seed=0)
    *_, (observation, reward, terminated, truncated, info) = play(env, called("hostile"))
    assert (reward, terminated, truncated) == (0.0, False, False)
    length = int(observation["attention_mask"].sum())
    assert length <= env.observation_space["input_ids"].shape[0]
    assert ("reply_cut" in info) == (len(result) > 1000)
    assert env.step(ids(env, "$")[0])[-1]["finish_reason"] == "eos"


def test_templates_are_told_of_the_tools() -> None:
    (schema,) = Tools({"weather": weather}).tool_schemas
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "weather"
    assert schema["function"]["description"] == "Tells the weather."
    assert schema["function"]["parameters"]["required"] == ["town"]
    assert Tools(**CALC).tool_schemas == []


# --- the door ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_named() -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        return x

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tools": {}}, r"tools=\{\} must be a mapping from names to tools"),
        (
            {"tools": {"c": "calculater"}},
            "tool 'c': 'calculater' must be one of calculator, python, search.*did you mean",
        ),
        ({"tools": {"c": 5}}, "tool 'c': 5 must be a known name"),
        ({"tools": {"c": bare}}, "tool 'c': .* must have type hints and a docstring"),
        ({"tools": {"c": {"name": "search"}}}, "tool 'c' with"),
        ({"tools": {"c": "calculator"}, "calls": "xml"}, "calls='xml' must be \"json\""),
        ({"tools": {"c": "calculator"}, "calls": {"d": "x"}}, r"must have a pattern for each of the tools \['c'\]"),
        ({"tools": {"c": "calculator"}, "calls": {"c": "("}}, "the pattern '\\(' of 'c' is none"),
        ({"tools": {"c": "calculator"}, "reply": "no"}, "reply='no' must be a text with '{result}' in it"),
        ({"tools": {"c": "calculator"}, "timeout": 0}, "tools: timeout=0 must be a number of seconds > 0"),
        ({"tools": {"c": "calculator"}, "retries": -1}, "tools: retries=-1 must be a whole number"),
        ({"tools": {"c": "calculator"}, "workers": 0}, "tools: workers=0 must be a whole number"),
        ({"tools": {"c": "calculator"}, "error_reward": float("nan")}, "error_reward=nan must be a finite number"),
        ({"tools": {" ": "calculator"}}, "must be a text that is not empty"),
    ]
    for arguments, said in wrong:
        with pytest.raises((TypeError, ValueError), match=said):
            as_responder({"name": "tools", **arguments})


def test_prompts_open_with_nothing() -> None:
    assert Tools(**CALC).reset([0, 4], [Prompt("a"), Prompt("b")], [1, 2]) == ["", ""]
