"""A time limit for each turn, further attempts, and slots whose late answer has not come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dialogues import Saving, play

from textgen_env import TextGenEnv
from textgen_env.episode import Prompt
from textgen_env.responders import Reply, Unavailable
from textgen_env.responders.patient import Patient
from textgen_env.testing import ResponderContract

PROMPT = Prompt("p")


class TestPatientEcho(ResponderContract):
    def make_responder(self) -> Any:
        return {"name": "patient", "responder": "echo", "timeout": 60}


class Waiting:
    """Waits for an event where it hears "wait"."""

    role = "tool"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.heard: list[tuple[int, str]] = []

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        return [f"hello {slot}" for slot in slots]

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        self.heard += zip(slots, texts, strict=True)
        if texts[0] == "wait":
            self.free.wait(60)
        return [f"{slot}: {text}" for slot, text in zip(slots, texts, strict=True)]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_slot_that_is_too_late_fails_until_its_answer_has_come() -> None:
    waiting = Waiting()
    patient = Patient(waiting, timeout=0.5, retries=2)
    assert patient.role == "tool"
    assert patient.reset([0, 1], [PROMPT] * 2, [5, 6]) == ["hello 0", "hello 1"]
    late, fine = patient.respond([0, 1], ["wait", "b"])
    assert isinstance(late, TimeoutError)
    assert fine == "1: b"
    assert waiting.heard.count((0, "wait")) == 1
    again, other = patient.reset([0, 1], [PROMPT] * 2, [5, 6])
    assert isinstance(again, Unavailable)
    assert other == "hello 1"
    waiting.free.set()
    until(lambda: not any(call.running for call in patient._late.values()))
    assert patient.reset([0], [PROMPT], [5]) == ["hello 0"]
    assert patient.respond([0], ["c"]) == ["0: c"]  # not the late answer


def test_what_was_not_there_is_asked_again() -> None:
    answers: list[Any] = [ConnectionError("no"), Unavailable("no"), Reply("yes"), ValueError("its own")]

    class Shaky(Waiting):
        def respond(self, slots: Any, texts: Any) -> list[Any]:
            answer = answers.pop(0)
            if isinstance(answer, Unavailable):
                return [answer]  # said instead of raised
            if isinstance(answer, Exception):
                raise answer
            return [answer]

    patient = Patient(Shaky(), timeout=60, retries=2, backoff=0.01)
    assert patient.respond([0], ["a"]) == [Reply("yes")]
    (error,) = patient.respond([0], ["a"])
    assert isinstance(error, ValueError)  # once: it will not be better the next time
    assert not answers


@pytest.mark.filterwarnings("ignore:the environment failed")
def test_in_an_environment(make: Callable[..., TextGenEnv]) -> None:
    waiting = Waiting()
    env = make(Patient(waiting, timeout=0.5), turn_strings=["t"], max_new_tokens=40)
    env.reset(seed=0)
    *_, (_, reward, terminated, truncated, info) = play(env, "wait")
    assert (reward, terminated, truncated, info["finish_reason"]) == (0.0, False, True, "failed")
    assert "score" not in info
    waiting.free.set()


def test_state_is_the_inner_ones() -> None:
    patient = Patient(Saving("a", "b"), timeout=60)
    patient.reset([2], [PROMPT], [0])
    patient.respond([2], ["x"])
    assert patient.state_dict() == {"turn": {"2": 1}}
    assert not hasattr(Patient(Waiting()), "state_dict")


def test_a_broken_responder_is_told() -> None:
    class Two(Waiting):
        def respond(self, slots: Any, texts: Any) -> list[Any]:
            return ["a", "b"]

    (answer,) = Patient(Two()).respond([0], ["x"])
    assert isinstance(answer, TypeError)
    for arguments in ({"timeout": None}, {"timeout": -1}, {"retries": 0.5}, {"workers": 0}, {"backoff": -1}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"patient: {name}="):
            Patient("echo", **arguments)
