"""When the agent's turn ends, what the environment is asked, and how episodes end, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dialogues import BOS, EOS, Scripted, ids, play, row

from textgen_env.responders import Reply


def test_every_token_by_hand(make: Any) -> None:
    responder = Scripted("no", Reply("yes!", reward=0.5, info={"n": 1}), opening="hi")
    seen: list[Any] = []

    def scorer(completions: Any, **columns: Any) -> list[float]:
        seen.append((completions, columns["completion_ids"], columns["turns"]))
        return [2.0]

    env = make(responder, scorer=scorer, turn_strings=["?"], max_turns=3, max_reply_tokens=4)
    assert env.observation_space["input_ids"].shape == (64 + 12 + 3 * 4,)
    observation, info = env.reset(seed=0)
    assert row(observation) == ([BOS, *ids(env, "phi")], [0] * 4)
    assert info == {"prompt": "p", "opening": "hi"}

    steps = play(env, "a?b$c$")
    infos = [step[-1] for step in steps]
    expected = "phia?nob$yes!c$"
    assert row(steps[-1][0]) == ([BOS, *ids(env, expected)], [0] + [int(c) for c in "000110011000011"])
    assert [step[1] for step in steps] == [0, 0, 0, 0.5, 0, 2]
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert not any(step[3] for step in steps)
    assert [info.get("reply") for info in infos] == [None, "no", None, "yes!", None, None]
    assert [info.get("reply_info") for info in infos] == [None, None, None, {"n": 1}, None, None]
    assert infos[3]["reward_parts"] == {"score": 0.0, "environment": 0.5}
    assert responder.asked == [(0, "a?"), (0, "b")]
    turns = [("environment", "hi"), ("assistant", "a?"), ("environment", "no"), ("assistant", "b")]
    turns += [("environment", "yes!"), ("assistant", "c")]
    assert seen == [(["a?bc"], [ids(env, "a?b$c$")], [[{"role": role, "content": text} for role, text in turns]])]
    assert infos[-1] == {
        "reward_parts": {"score": 2.0, "environment": 0.0},
        "text": "a?bc",
        "transcript": "hia?nobyes!c",
        "prompt": "p",
        "finish_reason": "eos",
        "score": 2.5,
        "response_length": 6,
    }


def test_nothing_changes_without_a_responder(make: Any, byte_model: str) -> None:
    """The generator draws the prompt and nothing else, and no key is new."""
    env, generator = make(None), np.random.default_rng(np.random.SeedSequence(5))
    observation, info = env.reset(seed=5)
    generator.integers(1)
    assert env.np_random.bit_generator.state == generator.bit_generator.state
    assert observation["input_ids"].shape == (64 + 12,)
    assert info == {"prompt": "p"}
    last = play(env, "a$")[-1][-1]
    assert set(last) == {"reward_parts", "text", "prompt", "finish_reason", "score", "response_length"}
    assert set(last["reward_parts"]) == {"score"}
    assert "responder" not in env.state_dict()["engine"]


def test_seeds_come_from_the_slots_own_generator(make: Any) -> None:
    begun = []
    for seed in (3, 3, 4):
        responder = Scripted()
        make(responder, prompts=["p", "q"]).reset(seed=seed)
        begun.append(responder.begun[0])
    assert begun[0] == begun[1]
    assert begun[0][2] != begun[2][2]
    assert 0 <= begun[0][2] < 2**63


def test_strings_are_looked_for_in_the_present_turn_alone(make: Any) -> None:
    env = make(Scripted("b", "xy", "y"), stop_strings=["ab", "xyz"], turn_strings=["yz"], max_turns=4)
    env.reset(seed=0)
    steps = play(env, "a$")  # the reply would complete "ab"
    assert not steps[-1][2]
    steps = play(env, "$z")  # the agent's "z" would complete "xyz" and "yz"
    assert not steps[-1][2]
    assert "reply" not in steps[-1][-1]
    last = play(env, "ab")[-1]
    assert (last[2], last[-1]["finish_reason"], last[-1]["text"]) == (True, "stop", "az")


def test_a_stop_string_ends_the_episode_unanswered(make: Any) -> None:
    responder = Scripted("never")
    env = make(responder, stop_strings=["stop", "<eos>"], turn_strings=["p"])
    for text, reason in (("stop", "stop"), ("a$", "eos")):
        env.reset(seed=0)
        assert play(env, text)[-1][-1]["finish_reason"] == reason
    assert responder.asked == []


@pytest.mark.parametrize(
    ("reply", "text", "reason", "terminated"),
    [
        (None, "a$", "eos", True),
        (None, "a?", "stop", True),
        (Reply("bye", terminated=True), "a$", "environment", True),
        (Reply("", truncated=True), "a?", "horizon", False),
    ],
)
def test_the_environment_ends_it(make: Any, reply: Any, text: str, reason: str, terminated: bool) -> None:
    env = make(Scripted(reply), turn_strings=["?"])
    env.reset(seed=0)
    observation, reward, *flags, info = play(env, text)[-1]
    said = reply.text if reply else ""
    assert flags == [terminated, not terminated]
    assert (info["finish_reason"], info["transcript"]) == (reason, text.removesuffix("$") + said)
    assert reward == info["score"] == len(text.removesuffix("$"))  # every such end is scored
    assert row(observation)[1] == [0, 0, 1, 1] + [0] * len(said)
    with pytest.raises(Exception, match="no episode running"):
        env.step(5)


def test_the_last_turn_is_not_answered(make: Any) -> None:
    responder = Scripted("r", "r", "r")
    env = make(responder, max_turns=2, turn_strings=["?"])
    env.reset(seed=0)
    assert not play(env, "a$")[-1][2]
    assert play(env, "b?")[-1][-1]["finish_reason"] == "stop"
    assert len(responder.asked) == 1


@pytest.mark.parametrize("limit", ["terminate", "truncate"])
def test_the_length_limit_counts_the_agents_tokens(make: Any, limit: str) -> None:
    env = make(Scripted("long reply", "another"), max_new_tokens=4, max_turns=4, length_limit=limit)
    env.reset(seed=0)
    assert not any(step[2] or step[3] for step in play(env, "ab$"))
    *_, terminated, truncated, info = play(env, "c")[-1]
    assert (terminated, truncated) == (limit == "terminate", limit == "truncate")
    assert (info["finish_reason"], info["response_length"], info["text"]) == ("length", 4, "abc")


@pytest.mark.parametrize(("reply", "reason"), [("r", "length"), (None, "eos"), (Reply(terminated=True), "environment")])
def test_a_turn_that_ends_with_the_last_token_is_answered(make: Any, reply: Any, reason: str) -> None:
    env = make(Scripted(reply), max_new_tokens=3)
    env.reset(seed=0)
    assert play(env, "ab$")[-1][-1]["finish_reason"] == reason


def test_minimum_of_tokens_counts_the_agents(make: Any) -> None:
    env = make(Scripted("a long reply"), min_new_tokens=3, turn_strings=["?"])
    env.reset(seed=0)
    play(env, "a?")
    assert not env.action_masks()[EOS]
    play(env, "b")
    assert env.action_masks()[EOS]


def test_an_environment_that_pays_needs_no_scorer(make: Any) -> None:
    env = make(Scripted(Reply("a", reward=1.5), Reply("b", reward=-0.5, terminated=True)), scorer=None)
    env.reset(seed=0)
    steps = play(env, "x$y$")
    assert [step[1] for step in steps] == [0, 1.5, 0, -0.5]
    assert steps[-1][-1]["score"] == 1.0
    assert steps[-1][-1]["reward_parts"] == {"score": 0.0, "environment": -0.5}
    with pytest.raises(TypeError, match="needs scorer"):
        make(None, scorer=None)
