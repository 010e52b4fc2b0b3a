"""Partners in a dialogue: a language model, a script, a person; and the score of the last turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dialogues import letters, play

from textgen_env import LanguageModel, TextGenEnv
from textgen_env.episode import Prompt
from textgen_env.responders import Reply, as_responder
from textgen_env.responders.partner import Partner
from textgen_env.responders.person import Person
from textgen_env.responders.script import Script
from textgen_env.scorers import get_scorer
from textgen_env.testing import ResponderContract

HELLO = Prompt("Hello.", messages=({"role": "user", "content": "Hello."},))
TEXTS = Prompt("Once upon a time")


class TestPartner(ResponderContract):
    texts = ("I like tea.", " I am Anna.", "")

    def make_responder(self) -> Any:
        return {"name": "partner", "max_tokens": 4}

    def prompts(self) -> list[Prompt]:
        return [TEXTS, HELLO, Prompt("Say:")]


class TestScript(ResponderContract):
    texts = ("a", "b", "c")

    def make_responder(self) -> Any:
        return "script"

    def prompts(self) -> list[Prompt]:
        return [Prompt("p", extra={"script": list(lines)}) for lines in ((), ("x",), ("y", "z", "y"))]


class TestPerson(ResponderContract):
    def make_responder(self) -> Any:
        return Person(ask=lambda shown: f"I see {shown}", tell=lambda line: None)


# --- a language model -------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model: LanguageModel, ids: list[int], count: int) -> list[int]:
    """By plain forward passes."""
    written: list[int] = []
    while len(written) < count and (not written or written[-1] not in model.eos_token_ids):
        written.append(int(model.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return [token for token in written if token not in model.eos_token_ids]


def test_the_likeliest_reply_is_that_of_plain_forward_passes() -> None:
    partner = Partner(max_tokens=8, temperature=0)
    partner.reset([0, 1], [TEXTS, Prompt("The soup was")], [1, 2])
    first = partner.respond([0, 1], [" there was", " cold."])
    second = partner.respond([0, 1], [" and", " But"])
    model = partner.model
    for slot, (start, one, other) in enumerate(
        (("Once upon a time there was", "a", " and"), ("The soup was cold.", "b", " But"))
    ):
        ids = model.encode(start)
        assert first[slot] == model.token_text.continuation(ids, greedy(model, ids, 8)), one
        ids = model.encode(f"{start}{first[slot]}{other}")
        assert second[slot] == model.token_text.continuation(ids, greedy(model, ids, 8))


def test_a_conversation_is_read_from_the_partners_side() -> None:
    partner = Partner(max_tokens=6, temperature=0, instruction="Be kind.")
    partner.reset([0], [HELLO], [1])
    (reply,) = partner.respond([0], [" Who is there?"])
    read = "<bos>System: Be kind.\nAssistant: Hello.<eos>\nUser: Who is there?\nAssistant:"
    ids = partner.model.encode_as_is(read)
    assert reply == partner.model.token_text.continuation(ids, greedy(partner.model, ids, 6))
    assert partner.clone_state(0)["messages"] == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": " Who is there?"},
        {"role": "user", "content": reply},
    ]


def test_samples_are_the_models_own_distribution() -> None:
    """The first token of many seeds, by a χ² test against the softmax of a plain forward pass."""
    partner, count = Partner(max_tokens=1, temperature=0.7), 600
    model = partner.model
    slots = list(range(count))
    partner.reset(slots, [TEXTS] * count, slots)
    replies = partner.respond(slots, [" there"] * count)
    ids = model.encode("Once upon a time there")
    with torch.no_grad():
        shares = (model.model(torch.tensor([ids])).logits[0, -1] / 0.7).softmax(-1)
    shares[list(model.eos_token_ids)] = 0.0
    best = shares.argsort(descending=True)[:5].tolist()
    for token in best:
        seen = replies.count(model.token_text.continuation(ids, [token])) / count
        expected = float(shares[token])
        assert abs(seen - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 0.005


def test_it_branches() -> None:
    partner = Partner(max_tokens=4)
    partner.reset([0, 1], [TEXTS] * 2, [3, 4])
    partner.respond([0, 1], [" a", " b"])
    state = partner.clone_state(0)
    (there,) = partner.respond([0], [" c"])
    partner.restore_state(1, state)
    assert partner.respond([1], [" c"]) == [there]
    partner.restore_state(0, state)
    assert partner.respond([0], [" c"]) == [there]


def test_a_partner_that_stops_and_one_whose_texts_grow_too_long() -> None:
    partner = Partner(max_tokens=2, turns=1)
    partner.reset([0], [TEXTS], [0])
    assert partner.respond([0], [" a"]) != [None]
    assert partner.respond([0], [" b"]) == [None]
    long = Partner(max_tokens=2)
    long.reset([0], [Prompt("word " * 5000)], [0])
    assert isinstance(long.respond([0], [" a"])[0], str)


def test_a_partner_in_an_environment(make: Callable[..., TextGenEnv]) -> None:
    env = make({"name": "partner", "max_tokens": 3, "temperature": 0}, turn_strings=["."], prompts=["The soup was"])
    env.reset(seed=0)
    *_, (_, _, _, _, info) = play(env, " hot.")
    partner = Partner(max_tokens=3, temperature=0)
    partner.reset([0], [Prompt("The soup was")], [0])
    assert info["reply"] == partner.respond([0], [" hot."])[0]


# --- a script, a person -----------------------------------------------------------------------------------------------


def test_a_script_is_said_line_by_line(make: Callable[..., TextGenEnv]) -> None:
    prompt = {"prompt": "p", "script": ["Q1", "Q2"]}
    env = make({"name": "script", "template": "[{text}]"}, turn_strings=["."], max_turns=9, prompts=[prompt])
    env.reset(seed=0)
    steps = play(env, "a.b.c.")
    assert [step[-1].get("reply") for step in steps] == [None, "[Q1]", None, "[Q2]", None, None]
    assert steps[-1][-1]["finish_reason"] == "stop"
    assert steps[-1][-1]["transcript"] == "a.[Q1]b.[Q2]c."


@pytest.mark.parametrize("script", [None, "Q1", [1]])
def test_a_prompt_without_a_script_is_told(script: Any) -> None:
    with pytest.raises(ValueError, match="must have a column 'script' with a list of texts"):
        Script().reset([0], [Prompt("p", extra={"script": script} if script else {})], [0])
    with pytest.raises(ValueError, match="script: template='x'"):
        Script(template="x")


def test_a_person() -> None:
    lines, shown = iter(["hi there", "/end 0.5", "/end much", "/end", "/cut"]), []
    person = Person(ask=lambda text: next(lines), tell=shown.append)
    person.reset([3], [Prompt("Talk\x1b[2J")], [0])
    assert person.respond([3], ["he\x07llo"]) == ["hi there"]
    assert person.respond([3], [""]) == [Reply("", reward=0.5, terminated=True)]
    assert person.respond([3], [""]) == [Reply("", terminated=True)]
    assert any("'much' is none" in line for line in shown)
    (gone,) = person.respond([3], [""])
    assert isinstance(gone, ConnectionError)
    assert not any(control in "".join(shown) for control in "\x1b\x07")

    def closed(_: str) -> str:
        raise EOFError

    assert isinstance(Person(ask=closed, tell=shown.append).respond([0], ["a"])[0], ConnectionError)


# --- the last turn ----------------------------------------------------------------------------------------------------


def test_the_last_turn_is_scored() -> None:
    scorer = get_scorer({"name": "last_turn", "scorer": "exact_match"})
    turns = [
        [
            {"role": "assistant", "content": "calc 1"},
            {"role": "environment", "content": "1"},
            {"role": "assistant", "content": "It is 1."},
        ],
        [
            {"role": "assistant", "content": "It is 1."},
            {"role": "environment", "content": "1"},
            {"role": "assistant", "content": ""},
        ],
        [{"role": "environment", "content": "It is 1."}],
    ]
    texts, references = ["calc 1It is 1.", "It is 1.", ""], [["It is 1."]] * 3
    assert scorer(texts, prompts=["p"] * 3, references=references, turns=turns) == [1.0, 0.0, 0.0]
    assert scorer(["It is 1.", "no"], prompts=["p"] * 2, references=references[:2]) == [1.0, 0.0]


def test_the_last_turn_in_an_environment(make: Callable[..., TextGenEnv]) -> None:
    env = make("echo", scorer={"name": "last_turn", "scorer": letters}, turn_strings=["."], max_turns=2)
    env.reset(seed=0)
    assert play(env, "ab.cde.")[-1][-1]["score"] == 4.0


def test_what_is_wrong_is_named() -> None:
    for arguments, said in (
        ({"max_tokens": 0}, "partner: max_tokens=0 must be a whole number"),
        ({"turns": 1.5}, "partner: turns=1.5 must be a whole number"),
        ({"temperature": -1}, "partner: temperature=-1 must be a number"),
        ({"temperature": float("nan")}, "partner: temperature=nan must be a number"),
    ):
        with pytest.raises(ValueError, match=said):
            as_responder({"name": "partner", **arguments})
    with pytest.raises(FileNotFoundError, match="partner"):
        Partner("no/such/model")
