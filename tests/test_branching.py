"""Branching: a cloned state goes on elsewhere as the episode itself does, and a response can be begun by the caller."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.scorers import ScorerError

EOS, A, B, C = 2, 80, 81, 82


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) - 0.25 * len(text) for text in completions]


def make(kind: type, model: str, **arguments: Any) -> Any:
    options = {"prompts": ["once", "upon a"], "scorer": {"name": "dense", "scorer": vowels}, "max_new_tokens": 6}
    arguments = {"model": model, "kl_coef": 0.1, "max_prompt_tokens": 12, **options, **arguments}
    return kind(3, **arguments) if kind is TextGenVectorEnv else kind(**arguments)


def played(env: TextGenEnv, tokens: list[int]) -> list[Any]:
    """All that some steps return, but for the observation's memory."""
    results = [env.step(token) for token in tokens]
    return [({key: value.tolist() for key, value in obs.items()}, *rest) for obs, *rest in results]


def same(ours: list[Any], theirs: list[Any]) -> None:
    """Equal, but for the rounding of log π_ref, which depends on what the cache has read before."""
    for (obs, reward, *flags, info), (obs_2, reward_2, *flags_2, info_2) in zip(ours, theirs, strict=True):
        assert (obs, flags) == (obs_2, flags_2)
        assert reward == pytest.approx(reward_2, abs=1e-5)
        assert info.keys() == info_2.keys()
        assert {key: info[key] for key in info if isinstance(info[key], str)} == {
            key: info_2[key] for key in info_2 if isinstance(info_2[key], str)
        }
        for key in ("ref_logprob", "ref_logprob_sum", "score"):
            assert info.get(key, 0.0) == pytest.approx(info_2.get(key, 0.0), abs=1e-4)


@pytest.mark.parametrize("way", ["as it is", "pickled", "json"])
def test_a_clone_goes_on_as_the_episode_does(byte_model: str, way: str) -> None:
    """Here after other things, and in another environment; the dense scorer's potential comes along."""
    env = make(TextGenEnv, byte_model)
    env.reset(seed=1, options={"prompt": "once"})
    played(env, [A, B])
    state = env.clone_state()
    state = {"as it is": state, "pickled": pickle.loads(pickle.dumps(state)), "json": json.loads(json.dumps(state))}[
        way
    ]
    rest = [C, A, B, EOS]
    expected = played(env, rest)
    assert expected[-1][2]
    env.reset(options={"prompt": "upon a"})
    played(env, [C])
    observation = env.restore_state(state)
    assert env.observation_space.contains(observation)
    same(played(env, rest), expected)
    other = make(TextGenEnv, byte_model)
    other.restore_state(state)
    same(played(other, rest), expected)


def test_slots_branch_from_one_another_and_the_others_stay(byte_model: str) -> None:
    """One prefix in all three slots, then three ways on; each as a single environment plays it."""
    venv = make(TextGenVectorEnv, byte_model, autoreset_mode=AutoresetMode.DISABLED)
    venv.reset(options={"prompt": ["once", "upon a", "upon a"]})
    venv.step(np.array([A, C, C]))
    state = venv.clone_state(0)
    for slot in (1, 2):
        before = copy.deepcopy(venv.engine.episodes.observation(0))
        observation = venv.restore_state(slot, state)
        for key, value in before.items():
            np.testing.assert_array_equal(venv.engine.episodes.observation(0)[key], value)
            np.testing.assert_array_equal(observation[key], value)
    ways = np.array([[A, B, C], [EOS, B, A]])
    _, rewards, _, _, infos = venv.step(ways[0])
    _, last, terminated, _, ends = venv.step(np.where(ways[0] == A, EOS, ways[1]))
    for slot in range(3):
        env = make(TextGenEnv, byte_model)
        env.restore_state(state)
        (first, second) = played(env, [int(ways[0][slot]), int(ways[1][slot])])
        assert first[1] == pytest.approx(rewards[slot], abs=1e-5)
        assert second[1] == pytest.approx(last[slot], abs=1e-5)
        assert first[-1]["ref_logprob"] == pytest.approx(infos["ref_logprob"][slot], abs=1e-4)
        assert terminated[slot] == second[2]
    assert ends["text"][0]


def test_an_ended_episode_stays_ended(byte_model: str) -> None:
    venv = make(TextGenVectorEnv, byte_model, autoreset_mode=AutoresetMode.DISABLED, length_limit="truncate")
    venv.reset(seed=0)
    running = venv.clone_state(1)
    for _ in range(6):
        venv.step(np.array([A, -1, -1]))
    state = venv.clone_state(0)
    assert state["truncated"]
    venv.restore_state(1, state)
    with pytest.raises(gym.error.ResetNeeded):
        venv.step(np.array([-1, A, A]))
    venv.restore_state(1, running)
    *_, terminated, truncated, _ = venv.step(np.array([-1, A, A]))
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [True, False, False])


def test_the_reference_reads_nothing_twice(byte_model: str) -> None:
    """A branch in another slot costs the reference one token, not the prefix."""
    venv = make(TextGenVectorEnv, byte_model, autoreset_mode=AutoresetMode.DISABLED)
    venv.reset(options={"prompt": "once"})
    venv.step(np.array([A, B, C]))
    state, seen = venv.clone_state(0), []
    venv.step(np.array([A, -1, -1]))
    venv.restore_state(2, state)
    handle = venv.reference.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    venv.step(np.array([-1, -1, B]))
    handle.remove()
    assert seen in ([], [1])


@pytest.mark.parametrize("form", ["text", "ids", "array"])
def test_a_response_that_is_begun(byte_model: str, form: str) -> None:
    """As if these tokens had been played, but that their KL is not told; the potential grows from there."""
    env, model = make(TextGenEnv, byte_model), LanguageModel(byte_model)
    ids = model.encode_plain("ae")
    response: Any = {"text": "ae", "ids": ids, "array": np.array(ids)}[form]
    observation, _ = env.reset(options={"prompt": "once", "response": response})
    by_hand = make(TextGenEnv, byte_model)
    by_hand.reset(options={"prompt": "once"})
    expected = played(by_hand, [*ids, C, EOS])
    assert {key: value.tolist() for key, value in observation.items()} == expected[len(ids) - 1][0]
    for ours, theirs in zip(played(env, [C, EOS]), expected[-2:], strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
        assert ours[-1]["reward_parts"]["vowels"] == theirs[-1]["reward_parts"]["vowels"]
    assert ours[-1]["score"] == theirs[-1]["score"]
    assert ours[-1]["response_length"] == theirs[-1]["response_length"]
    assert "ref_logprob_sum" in theirs[-1]
    assert "ref_logprob_sum" not in ours[-1]


def test_responses_by_slot(byte_model: str) -> None:
    venv = make(TextGenVectorEnv, byte_model)
    observation, _ = venv.reset(options={"prompt": "once", "response": [None, "ab", [A]]})
    assert observation["response_mask"].sum(axis=1).tolist() == [0, 2, 1]
    observation, _ = venv.reset(options={"prompt": "once", "response": [A, B]})
    assert observation["response_mask"].sum(axis=1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"response": "a"}, ValueError, r"options\['response'\] needs options\['prompt'\]"),
        (
            {"prompt": "once", "response": [A, EOS, B]},
            ValueError,
            r"ends the episode of slot 0 .* token 1 \(eos\)",
        ),
        (
            {"prompt": "once", "response": [A] * 6},
            ValueError,
            r"ends the episode of slot 0 .* token 5 \(length\)",
        ),
        ({"prompt": "once", "response": [A, 10**6]}, ValueError, "action 1000000 is not in Discrete"),
        ({"prompt": "once", "response": [A, C]}, ValueError, "action 82 is masked"),
        ({"prompt": "once", "response": 3.5}, TypeError, r"options\['response'\]=3.5 must be a text or a list"),
        ({"prompt": "once", "response": [[A]]}, TypeError, "must be a text or a list"),
    ],
)
def test_a_response_that_cannot_be_begun_changes_nothing(
    byte_model: str, options: Any, error: type, message: str
) -> None:
    env = make(TextGenEnv, byte_model, forbidden_tokens=[C])
    env.reset(options={"prompt": "upon a"})
    played(env, [A, B])
    before = env.clone_state()
    with pytest.raises(error, match=message):
        env.reset(options=options)
    assert repr(env.clone_state()) == repr(before)  # NaN is not NaN
    played(env, [A])


def test_a_scorer_that_fails_on_the_way_changes_nothing(byte_model: str) -> None:
    def fails(completions: list[str], **_: Any) -> list[float]:
        if any("b" in text for text in completions):
            raise RuntimeError("no b")
        return [0.0] * len(completions)

    env = make(TextGenEnv, byte_model, scorer={"name": "dense", "scorer": fails})
    env.reset(options={"prompt": "once"})
    before = env.clone_state()
    with pytest.raises(ScorerError, match="no b"):
        env.reset(options={"prompt": "upon a", "response": "ab"})
    assert repr(env.clone_state()) == repr(before)  # NaN is not NaN


def test_states_of_other_environments_are_refused(byte_model: str) -> None:
    env = make(TextGenEnv, byte_model)
    env.reset(seed=0)
    state = env.clone_state()
    other = make(TextGenEnv, byte_model, max_new_tokens=5)
    other.reset(seed=0)
    before = other.clone_state()
    for wrong, message in (
        (state, r"state\['made_with'\]: the state is of one made with"),
        ({**before, "slot": {**before["slot"], "token_ids": [1, 2]}}, r"state\['slot'\]\['\w+'\]=.* does not fit"),
        ({}, "state has no entry 'made_with'"),
    ):
        with pytest.raises(ValueError, match=message):
            other.restore_state(wrong)
        assert repr(other.clone_state()) == repr(before)
    with pytest.raises(TypeError, match="must be what state_dict"):
        other.restore_state(3)
    venv = make(TextGenVectorEnv, byte_model)
    venv.reset(seed=0)
    with pytest.raises(ValueError, match=r"slots=\[3\] must be different numbers from 0 to 2"):
        venv.clone_state(3)


class Counting:
    """A responder with a state per slot: it says how often it was asked in this episode."""

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.asked |= dict.fromkeys(slots, 0)
        return [""] * len(slots)

    def respond(self, slots: Any, texts: Any) -> list[str]:
        for slot in slots:
            self.asked[slot] += 1
        return [f"#{self.asked[slot]}" for slot in slots]


class Branching(Counting):
    def clone_state(self, slot: int) -> int:
        return self.asked[slot]

    def restore_state(self, slot: int, state: int) -> None:
        self.asked[slot] = state


def test_an_environment_that_answers_back_branches_if_it_can(byte_model: str) -> None:
    arguments = {"max_turns": 4, "max_reply_tokens": 4, "kl_coef": 0.0}
    env = make(TextGenEnv, byte_model, responder=Branching(), **arguments)
    env.reset(options={"prompt": "once"})
    played(env, [A, EOS])
    state = env.clone_state()
    assert played(env, [B, EOS])[-1][-1]["reply"] == "#2"
    assert played(env, [B, EOS])[-1][-1]["reply"] == "#3"
    env.restore_state(state)
    assert played(env, [C, EOS])[-1][-1]["reply"] == "#2"
    with pytest.raises(ValueError, match="is not for an environment that answers back: use restore_state"):
        env.reset(options={"prompt": "once", "response": "a"})
    plain = make(TextGenEnv, byte_model, responder=Counting(), **arguments)
    plain.reset(options={"prompt": "once"})
    with pytest.raises(TypeError, match=r"has no clone_state, so that its episodes cannot branch: implement"):
        plain.clone_state()
    function = make(TextGenEnv, byte_model, responder=str.upper, **arguments)
    function.reset(options={"prompt": "once"})
    function.restore_state(function.clone_state())


@pytest.mark.parametrize("kind", [TextGenEnv, TextGenVectorEnv])
def test_a_deep_copy_shares_the_models_and_nothing_else(byte_model: str, kind: type) -> None:
    env = make(kind, byte_model)
    env.reset(seed=0)
    copied = copy.deepcopy(env)
    assert copied.language_model is env.language_model
    assert copied.reference is env.reference
    before = env.engine.episodes.lengths.copy()
    copied.step(A if kind is TextGenEnv else np.array([A, B, C]))
    assert (env.engine.episodes.lengths == before).all()
    assert (copied.engine.episodes.lengths == before + 1).all()
