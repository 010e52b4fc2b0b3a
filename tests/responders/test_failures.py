"""Environments that fail, answers that are none, and steps that fail after an answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from dialogues import EOS, Saving, Scripted, ids, letters, play

from textgen_env import TextGenVectorEnv
from textgen_env.responders import Reply, as_responder
from textgen_env.scorers import ScorerError


def failing(text: str) -> str:
    if "!" in text:
        raise TimeoutError("no answer in 5 s")
    return "fine"


def two(make: Any, responder: Any, **more: Any) -> TextGenVectorEnv:
    single = make(responder, **more)
    arguments = {"model": single.language_model, "prompts": ["p"], "scorer": letters, "max_new_tokens": 12}
    return TextGenVectorEnv(2, autoreset_mode="Disabled", responder=responder, **arguments | more)


class Batched(Scripted):
    """Hands on a failure as it is told to: raised for all, or returned in the slot's place."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        if self.raises:
            raise TimeoutError("no answer in 5 s")
        return [TimeoutError("no answer in 5 s") if "!" in text else "fine" for text in texts]


@pytest.mark.parametrize(
    ("responder", "alone"), [(failing, True), (Batched(raises=False), True), (Batched(raises=True), False)]
)
def test_a_failure_is_no_score(make: Any, responder: Any, alone: bool) -> None:
    envs = two(make, responder, scorer=letters)
    envs.reset(seed=0)
    for a, b in zip(ids(envs, "x!"), ids(envs, "xy"), strict=True):
        envs.step(np.array([a, b]))
    with pytest.warns(UserWarning, match="the environment failed in slot 0: TimeoutError: no answer in 5 s"):
        _, rewards, terminated, truncated, infos = envs.step(np.array([EOS, EOS]))
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.tolist() == [False, False]
    assert truncated.tolist() == [True, not alone]
    assert (infos["finish_reason"][0], infos["error"][0]) == ("failed", "TimeoutError: no answer in 5 s")
    assert "score" not in infos
    assert infos["text"][0] == "x!"
    if alone:  # the other goes on, and is scored
        assert infos["reply"][1] == "fine"
        *_, infos = [envs.step(np.array([-1, token])) for token in ids(envs, "z")][-1]
        assert "finish_reason" not in infos


def test_a_dense_scorer_is_not_asked_about_a_failure(make: Any) -> None:
    asked: list[list[str]] = []

    def dense(completions: Any, **_: Any) -> list[float]:
        asked.append(list(completions))
        return letters(completions)

    dense.dense = True  # type: ignore[attr-defined]
    env = make(failing, scorer=dense)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="failed"):
        steps = play(env, "a!$")
    assert asked == [["a"], ["a!"]]
    assert [step[1] for step in steps] == [1.0, 1.0, 0.0]
    assert "score" not in steps[-1][-1]


def test_an_environment_that_fails_to_begin(make: Any) -> None:
    class Broken(Saving):
        def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
            raise ConnectionError("refused")

    env = make(Broken(), stop_strings=["a"])
    with pytest.warns(UserWarning, match="failed in slot 0: ConnectionError: refused"):
        _, info = env.reset(seed=0)
    assert info == {"prompt": "p", "opening": ""}
    other = make(Broken(), stop_strings=["a"])
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    for resumed in (other, env):
        _, reward, terminated, truncated, info = play(resumed, "a")[-1]
        assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["finish_reason"], info["error"]) == ("failed", "ConnectionError: refused")
    assert "score" not in info
    env.unwrapped.engine.turns.responder = as_responder("echo")
    env.reset(seed=0)
    assert not play(env, "b$")[-1][3]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (5, TypeError, "respond returned 5; it must be a list"),
        ("no", TypeError, "respond returned 'no'; it must be a list"),
        (["a"] * 3, ValueError, r"respond returned 3 entries for 1 slots: \[0\]"),
        ([5], TypeError, "respond returned 5 for slot 0; it must be a Reply, a text, None"),
        ([Reply(5)], TypeError, "text=5 is of the wrong type, int"),
        ([Reply("a", reward=float("nan"))], ValueError, "reward=nan must be a finite number"),
        ([Reply("a", reward="1")], TypeError, "reward='1' is of the wrong type, str"),
        ([Reply("a", reward=10**400)], OverflowError, "too large"),
        ([Reply("a", terminated=1)], TypeError, "terminated=1 is of the wrong type, int"),
        ([Reply("a", terminated=True, truncated=True)], ValueError, "both True"),
        ([Reply("a", info=[1])], TypeError, "info=.* is of the wrong type, list"),
    ],
)
def test_what_is_no_reply_moves_no_slot(make: Any, answers: Any, error: Any, message: str) -> None:
    class Wrong(Saving):
        def respond(self, slots: Any, texts: Any) -> Any:
            return answers

    env = make(Wrong())
    env.reset(seed=0)
    play(env, "a")
    before = json.dumps(env.state_dict())
    for _ in range(2):
        with pytest.raises(error, match=message):
            env.step(EOS)
        assert json.dumps(env.state_dict()) == before
    assert play(env, "b")[-1][0]["response_mask"].sum() == 2  # another action is welcome: nobody has answered


@pytest.mark.parametrize(("openings", "message"), [([5], "reset returned 5 for slot 0"), (["a", "b"], "2 entries")])
def test_what_is_no_opening(make: Any, openings: Any, message: str) -> None:
    class Wrong(Scripted):
        def reset(self, slots: Any, prompts: Any, seeds: Any) -> Any:
            return openings

    with pytest.raises((TypeError, ValueError), match=message):
        make(Wrong()).reset(seed=0)


def test_a_turn_is_answered_once_however_often_the_step_is_taken(make: Any) -> None:
    """A scorer fails after the reply: no slot moves, the responder is not asked again, another action is refused."""
    broken = [True]

    def scorer(completions: Any, **_: Any) -> list[float]:
        if broken[0]:
            raise RuntimeError("down")
        return letters(completions)

    replies = [Reply("more", reward=0.25), Reply("end", reward=0.5, terminated=True)]
    responder, untroubled = Saving(*replies), Saving(*replies)
    envs, others = two(make, responder, scorer=scorer), two(make, untroubled, scorer=letters)
    envs.reset(seed=0), others.reset(seed=0)
    first = np.array([EOS, ids(envs, "a")[0]])
    for env in (envs, others):
        env.step(first)
    before, asked = envs.engine.episodes.observation(), list(responder.asked)
    ending = np.array([EOS, EOS])  # slot 0 ends with a score, slot 1 is answered and goes on
    for _ in range(3):
        with pytest.raises(ScorerError, match="down"):
            envs.step(ending)
        assert all((envs.engine.episodes.observation()[key] == before[key]).all() for key in before)
    assert responder.asked == [*asked, (0, ""), (1, "a")]
    with pytest.raises(ValueError, match=r"slot 1, action 80: the environment has already answered action 2"):
        envs.step(np.array([EOS, 80]))
    with pytest.raises(RuntimeError, match=r"slots \[0, 1\] have an answer .* no step has taken up"):
        envs.state_dict()
    broken[0] = False
    envs.step(np.array([-1, EOS]))  # one of them first
    result, expected = envs.step(np.array([EOS, 80])), others.step(ending)
    others.step(np.array([-1, 80]))
    assert responder.asked == untroubled.asked
    assert result[1][0] == expected[1][0] == 0.5
    assert json.dumps(envs.state_dict()) == json.dumps(others.state_dict())


def test_reset_drops_an_answer_that_no_step_took_up(make: Any) -> None:
    def scorer(completions: Any, **_: Any) -> list[float]:
        raise RuntimeError("down")

    responder = Saving(None, None)
    env = make(responder, scorer=scorer)
    env.reset(seed=0)
    with pytest.raises(ScorerError):
        env.step(EOS)
    env.reset(seed=0)
    play(env, "a")
    assert env.state_dict()["engine"]["responder"] == {"turn": {"0": 0}}
