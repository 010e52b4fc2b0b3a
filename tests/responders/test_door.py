"""The ways to name a responder, and arguments that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from dialogues import Scripted

from textgen_env.responders import as_responder, register_responder, responder_names


def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark


shouting = as_responder(shout)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("echo", "a"),
        ({"name": "echo", "template": "<{text}>"}, "<a>"),
        (shout, "A!"),
        (shouting, "A!"),
        (f"{__name__}:shout", "A!"),
        ({"name": f"{__name__}:shout", "mark": "?"}, "A?"),
        (f"{__name__}:shouting", "A!"),
    ],
)
def test_the_ways_to_name_one(spec: Any, said: str) -> None:
    assert as_responder(spec).respond([0], ["a"]) == [said]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("ecko", ValueError, "'ecko' is unknown; it must be one of .*echo.*Did you mean 'echo'"),
        ({"template": "x"}, ValueError, 'must have a "name"'),
        ({"name": "echo", "volume": 3}, TypeError, "'echo' with .*volume"),
        ({"name": "echo", "template": "x"}, ValueError, "template='x' must be a text with '{text}'"),
        ("no_such_module:thing", ImportError, "cannot import no_such_module"),
        (f"{__name__}:nothing", ValueError, "has no 'nothing'"),
        ({"name": f"{__name__}:shouting", "mark": "?"}, TypeError, "takes no arguments"),
        (Scripted, TypeError, "is a class, which answers nothing"),
        (5, TypeError, "must be a name, a mapping, a function"),
    ],
)
def test_what_is_no_responder(make: Any, spec: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(spec)


def test_an_object_without_reset_is_told_what_to_add(make: Any) -> None:
    class Half:
        def respond(self, slots: Any, texts: Any) -> list[str]:
            return list(texts)

    with pytest.raises(TypeError, match=r"no reset\(slots, prompts, seeds\)"):
        make(Half())


def test_registered_names() -> None:
    register_responder("shout-test", f"{__name__}:shout")
    register_responder("shout-test", f"{__name__}:shout")
    assert "shout-test" in responder_names()
    assert as_responder("shout-test").respond([0], ["a"]) == ["A!"]
    for name, location, message in [
        ("echo", "a:b", "'echo' stands for"),
        ("a:b", "a:b", "without a colon"),
        ("new", "nowhere", "module:attribute"),
    ]:
        with pytest.raises(ValueError, match=message):
            register_responder(name, location)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"max_turns": 0}, ValueError, "max_turns=0 must be at least 1"),
        ({"max_turns": None}, TypeError, "max_turns=None must be an integer"),
        ({"max_reply_tokens": 0}, ValueError, "max_reply_tokens=0 must be at least 1"),
        ({"turn_strings": "?"}, TypeError, "turn_strings='.' must be a list of texts"),
        ({"turn_strings": [""]}, ValueError, "turn_strings.0.='' must be a text that is not empty"),
        ({"responder": None, "turn_strings": ["?"]}, ValueError, "turn_strings=.* but nobody answers"),
        ({"max_turns": 9, "kl_coef": 0.1}, ValueError, "576 for replies .* exceed the 256 positions"),
        ({"max_reply_tokens": 10**9}, ValueError, "max_turns=4, max_reply_tokens=1000000000 .* GiB"),
        ({"prompts": [{"prompt": "p", "turns": 3}]}, ValueError, "column 'turns'"),
    ],
)
def test_arguments_out_of_range(make: Any, more: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**{"responder": "echo", **more})


def test_a_scorer_with_a_part_of_that_name_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="part named 'environment'"):
        make("echo", scorer={"sum": {"environment": "distinct", "b": "repetition"}})
