"""Dialogues in flight, saved and resumed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from compare import assert_same
from dialogues import Saving, Scripted, play

from textgen_env.responders import Reply


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_resume_in_the_middle_of_a_turn(make: Any, kl_coef: float) -> None:
    """To the last bit; with KL as well as a cache that is filled at once can tell the same log-probabilities."""
    arguments: dict[str, Any] = {"turn_strings": ["?"], "max_turns": 4, "max_reply_tokens": 8, "kl_coef": kl_coef}
    replies = ["one", Reply("", reward=0.5), Reply("three", reward=0.25), "never"]
    whole_text = "a?b$cd?ef$"
    for cut in range(len(whole_text)):
        env, other = make(Saving(*replies, opening="o"), **arguments), make(Saving(*replies), **arguments)
        env.reset(seed=0)
        play(env, whole_text[:cut])
        other.load_state_dict(json.loads(json.dumps(env.state_dict())))
        ours, theirs = play(env, whole_text[cut:]), play(other, whole_text[cut:])
        assert_same(tuple(ours), tuple(theirs))
        if not kl_coef:
            assert json.dumps(ours, default=np.ndarray.tolist) == json.dumps(theirs, default=np.ndarray.tolist)
            assert json.dumps(env.state_dict()) == json.dumps(other.state_dict())
        assert ours[-1][-1]["score"] == 0.75 + len("a?bcd?ef")


def test_an_environment_that_cannot_be_saved_says_so(make: Any) -> None:
    env = make(Scripted("a"))
    env.state_dict()
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"Scripted.*has no state_dict.*implement state_dict\(\) and load_state_dict"):
        env.state_dict()
    plain = make(lambda text: "a")  # a function of a text keeps nothing
    plain.reset(seed=0)
    plain.state_dict()


def test_a_state_that_the_responder_refuses_changes_nothing(make: Any) -> None:
    env = make(Saving("a", "b"))
    env.reset(seed=0)
    before = env.state_dict()
    state = json.loads(json.dumps(before))
    state["engine"]["responder"] = {"turn": "?"}
    with pytest.raises(ValueError, match=r"\['responder'\]=.* is refused by responder"):
        env.load_state_dict(state)
    assert json.dumps(env.state_dict()) == json.dumps(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handovers", [2, 2, 4]),
        ("handovers", [2, 2, 3, 5]),
        ("handovers", [2, 2, 4, 3]),
        ("response_mask", [0, 0, 1, 1, 1]),
        ("environment_texts", [""]),
        ("environment_texts", ["", 5]),
        ("environment_reward", float("inf")),
    ],
)
def test_a_state_that_does_not_fit_itself(make: Any, key: str, value: Any) -> None:
    env = make(Saving("r", "s"))
    env.reset(seed=0)
    play(env, "a$")
    before = json.dumps(env.state_dict())
    state = json.loads(before)
    state["engine"]["slots"][0][key] = value
    with pytest.raises((TypeError, ValueError), match=r"slots'\]\[0\]"):
        env.load_state_dict(state)
    assert json.dumps(env.state_dict()) == before


def test_states_of_other_limits_are_refused(make: Any) -> None:
    state = make("echo", max_turns=3).state_dict()
    for other in (make("echo", max_turns=4), make(None)):
        with pytest.raises(ValueError, match="made_with"):
            other.load_state_dict(state)


@pytest.mark.parametrize("failed", [{"1": "late"}, {"0": 5}, ["0"], None])
def test_failed_openings_are_those_of_slots(make: Any, failed: Any) -> None:
    env = make(Saving("r"))
    env.reset(seed=0)
    state = env.state_dict()
    state["engine"]["failed_openings"] = failed
    with pytest.raises((TypeError, ValueError), match="failed_openings"):
        env.load_state_dict(state)
    assert not play(env, "a$")[-1][3]
