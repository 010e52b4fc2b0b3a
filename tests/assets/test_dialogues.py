"""The conversations of the recipes say what is so: sums by Python's own arithmetic, facts by reading the entry again.

Oracles: `ast` for what a call means, patterns written by hand for entries and for what users say, zlib for what is
held out. How a conversation is written out is tested with the tokenizer (``test_embedded.py``).
"""

from __future__ import annotations

import ast
import json
import operator
import random
import re
import zlib
from pathlib import Path

import pytest

from textgen_env.assets.recipes.dialogues import KINDS, Dialogue, sample_dialogue, sample_text

PROMPTS = Path(__file__).parents[2] / "textgen_env" / "assets" / "prompts"
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub}
MEANT = {"plus": "+", "buys": "+", "minus": "-", "sold": "-"}  # words of questions
ENTRIES = (
    re.compile(r"(?P<name>\w+ \w+), an? (?P<job>\w+) from (?P<town>[\w ]+), is (?P<age>\d+) years old\."),
    re.compile(r"The (?P<place>[\w ]+) opens at (?P<open>\d+) and closes at (?P<close>\d+)\."),
)
FACTS = {
    "Where does {name} live?": "{name} lives in {town}.",
    "What does {name} do?": "{name} is a {job}.",
    "How old is {name}?": "{name} is {age} years old.",
    "When does the {place} open?": "The {place} opens at {open}.",
    "When does the {place} close?": "The {place} closes at {close}.",
}
TOLD = (  # what the user says first, and what may be asked and answered of it
    (r"Hello, my name is (\w+)\.", "What is my name?", "Your name is {0}."),
    (r"I am \w+ and I live in ([\w ]+)\.", "Where do I live?", "You live in {0}."),
    (r"I like (\w+ \w+)\.", "What do I like?", "You like {0}."),
    (r"I work in [\w ]+ as a (\w+)\.", "What is my job?", "You are a {0}."),
    (r"Please say (\w+ \w+)\.", "Please say it again.", "{1}."),
)


def evaluated(call: str) -> int:
    """What a calculator makes of "calc 12 + 7"."""
    tree = ast.parse(call.removeprefix("calc "), mode="eval").body
    assert isinstance(tree, ast.BinOp)
    assert isinstance(tree.left, ast.Constant)
    assert isinstance(tree.right, ast.Constant)
    return SIGNS[type(tree.op)](tree.left.value, tree.right.value)


def check_calculation(question: str, call: str, reply: str, answer: str) -> None:
    a, sign, b = re.fullmatch(r"calc (\d+) ([+-]) (\d+)", call).groups()
    assert [a, b] == re.findall(r"\d+", question)
    assert {MEANT[word] for word in MEANT if word in question} == {sign}
    assert int(reply) == evaluated(call) >= 0
    assert re.findall(r"\d+", answer) == [reply]
    if found := re.match(r"(\w+) ha[sd] \d+ (\w+)", question):
        assert answer == f"{found[1]} has {reply} {found[2]}."


def check_look_up(question: str, call: str, reply: str, answer: str) -> dict[str, str]:
    """Also returns what the entry says."""
    (found,) = filter(None, (entry.fullmatch(reply) for entry in ENTRIES))
    said = found.groupdict()
    assert call == f"find {said.get('name') or said.get('place')}"
    (expected,) = (
        fact.format(**said) for asked, fact in FACTS.items() if fits(asked, said) and asked.format(**said) == question
    )
    assert answer == expected
    return said


def fits(template: str, said: dict[str, str]) -> bool:
    return all(name in said for name in re.findall(r"\{(\w+)\}", template))


def drawn(kind: str, count: int = 400, *, want_held_out: bool = False) -> list[Dialogue]:
    rng = random.Random(7)
    return [sample_dialogue(kind, rng, want_held_out=want_held_out) for _ in range(count)]


def test_every_call_comes_to_what_the_calculator_replies():
    for dialogue in drawn("calculation"):
        check_calculation(*dialogue.turns)


def test_a_careless_call_comes_to_something_else():
    """Or is no call; only where both numbers are the same may it come to the same by luck."""
    wrong = [(d.turns[1], d.careless[1]) for d in drawn("calculation")]
    calls = [(right, call) for right, call in wrong if call.startswith("calc ")]
    assert {call for _, call in wrong} - {call for _, call in calls} <= {f"It is {n}." for n in range(1, 50)}
    assert 0 < len(calls) < len(wrong)
    for right, call in calls:
        a, _, b = right.removeprefix("calc ").split()
        assert a == b or evaluated(call) != evaluated(right)


def test_answers_of_look_ups_stand_in_the_entry_and_careless_ones_are_about_something_else():
    for dialogue in drawn("look-up"):
        said = check_look_up(*dialogue.turns)
        others = [fact.format(**said) for fact in FACTS.values() if fits(fact, said)]
        assert dialogue.careless[3] in set(others) - {dialogue.turns[3]}
        assert dialogue.careless[1] == "I do not know."


def test_answers_of_talks_are_what_the_user_said_before():
    asked = set()
    for dialogue in drawn("talk"):
        first, _, question, answer = dialogue.turns
        ((found, expected),) = (
            (match[1], form) for said, asks, form in TOLD if asks == question and (match := re.fullmatch(said, first))
        )
        assert answer == expected.format(found, found[0].upper() + found[1:])
        assert dialogue.careless[3] != answer
        asked.add(question)
    assert asked == {question for _, question, _ in TOLD}


@pytest.mark.parametrize(("kind", "third"), [("calculation", "tool"), ("look-up", "tool"), ("talk", "user")])
def test_turns_alternate_and_the_third_is_the_tools_where_one_is_called(kind: str, third: str):
    (dialogue,) = drawn(kind, 1)
    messages = dialogue.messages(4)
    assert [message["role"] for message in messages] == ["user", "assistant", third, "assistant"]
    assert [message["content"] for message in messages] == list(dialogue.turns)
    assert dialogue.messages(1) == messages[:1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_held_out_is_never_trained_on(kind: str):
    for want_held_out in (False, True):
        for dialogue in drawn(kind, 200, want_held_out=want_held_out):
            assert (zlib.crc32("\n".join(dialogue.turns).encode()) % 10 == 0) == want_held_out


@pytest.mark.parametrize("careless", [0.0, 1.0])
def test_texts_for_training_are_careless_in_the_share_asked_for(careless: float):
    """The last turn is taken from the prompt itself and judged by hand-written patterns, where it is the tool's."""
    rng, right, wrong = random.Random(3), 0, 0
    for _ in range(600):
        prompt, response = sample_text(rng, careless=careless)
        assert prompt.endswith("\nAssistant:")
        turns = re.fullmatch(r"User: (.*)\nAssistant: (calc .*)<eos>\nTool: (.*)\nAssistant:", prompt)
        if turns:  # a calculation's answer has no careless form
            check_calculation(*turns.groups(), response.removeprefix(" "))
        if found := re.fullmatch(r"User: (.*)\nAssistant: (find .*)<eos>\nTool: (.*)\nAssistant:", prompt):
            try:
                check_look_up(*found.groups(), response.removeprefix(" "))
                right += 1
            except AssertionError:
                wrong += 1
    assert (right > 50, wrong > 50) == (careless == 0, careless == 1)
    assert 0 in (right, wrong)


def test_the_same_seed_draws_the_same_texts():
    one, two, other = ([sample_text(rng, careless=0.3) for _ in range(20)] for rng in map(random.Random, (1, 1, 2)))
    assert one == two != other


@pytest.mark.parametrize(("name", "check"), [("calculations", check_calculation), ("look-ups", check_look_up)])
def test_the_prompt_files_hold_what_is_so_and_held_out(name: str, check):
    rows = [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 880
    for row in rows:
        (message,), (answer,) = row["messages"], row["references"]
        turns = (message["content"], row["call"], row["reply"], answer)
        check(*turns)
        assert zlib.crc32("\n".join(turns).encode()) % 10 == 0
