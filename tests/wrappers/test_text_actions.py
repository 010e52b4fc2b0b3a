"""Texts as actions against token-level play of the same ids, and against plain forwards of transformers."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from compare import assert_same
from dialogues import EOS, Saving, letters, row
from gymnasium.error import ResetNeeded
from gymnasium.spaces.utils import flatten, flatten_space, unflatten
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.responders import Reply
from textgen_env.scorers import ScorerError
from textgen_env.wrappers import LMFeatures, TextActions, TopKActions, UnicodeText, VectorTextActions

NEW = 12
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab?.é🙂")), max_size=6)


@pytest.fixture(scope="module")
def models(byte_model: str, other_model: str) -> dict[str, Any]:
    return {"model": byte_model, "reference": other_model, "prompts": ["p", "another"], "scorer": letters}


def dense(completions: Any, **_: Any) -> list[float]:
    return [len(text) + 0.125 * text.count("a") for text in completions]


dense.dense = True  # type: ignore[attr-defined]


def answering(text: str) -> Any:
    """Answers in each of the ways there are, as the text's length says."""
    ends = {1: None, 2: Reply("ö", reward=0.5, terminated=True), 3: Reply("", reward=-0.5, truncated=True)}
    return ends.get(len(text), Reply(f"<{text}>", reward=0.25))


@cache
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


@torch.no_grad()
def log_probs(path: str, observation: Any, vocabulary: int) -> np.ndarray:
    """log p of each token after the first, from one forward without a cache."""
    ids = torch.tensor([row(observation)[0]])
    logits = plain_model(path)(ids).logits[0, :-1, :vocabulary].double()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()


# --- returns and log-probs are those of token-level play --------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    append_eos=st.booleans(),
    responder=st.booleans(),
    scorer=st.sampled_from([letters, dense]),
    discount=st.sampled_from([1.0, 0.5]),
)
def test_a_text_is_its_tokens_one_by_one(
    models: Any, texts: Any, append_eos: bool, responder: bool, **more: Any
) -> None:
    discount = more.pop("discount")
    arguments = {**models, **more, "max_new_tokens": NEW, "kl_coef": 0.25, "stop_strings": ["é."]}
    if responder:
        arguments |= {"responder": answering, "turn_strings": ["?"], "max_turns": 3, "max_reply_tokens": 8}
    inner, plain = TextGenEnv(**arguments), TextGenEnv(**arguments)
    for env in (inner, plain):
        env.bind_policy(env.language_model)
        env.reset(options={"prompt": "p"})
    env = TextActions(inner, append_eos=append_eos, observe="tokens")
    for text in texts:
        wanted = plain.tokenizer.encode(text, add_special_tokens=False) + [EOS] * append_eos
        if not wanted:
            with pytest.raises(ValueError, match="action='' is empty"):
                env.step(text)
            continue
        start = len(row(plain.engine.episodes.observation(0))[0])
        steps = []
        for token in wanted:
            steps.append(plain.step(token))
            if steps[-1][2] or steps[-1][3] or "reply" in steps[-1][4]:
                break
        if discount == 1.0:
            observation, reward, *flags, info = env.step(text)
        else:
            observation, reward, *flags, info = inner.step_tokens(wanted, discount=discount)
        assert flags == list(steps[-1][2:4])
        assert_same(observation, steps[-1][0])
        weights = discount ** np.arange(len(steps))
        assert reward == pytest.approx(sum(w * step[1] for w, step in zip(weights, steps, strict=True)), abs=1e-5)
        for name, part in info["reward_parts"].items():
            parts = [step[4]["reward_parts"][name] for step in steps]
            assert part == pytest.approx(np.dot(weights, parts), abs=1e-5)
        assert info["steps"] == len(steps)
        left = len(wanted) - len(steps)
        assert info.get("unwritten", 0) in (left, left - append_eos)  # no EOS follows a text that ends its turn itself
        rest = {
            key: info[key] for key in info if key not in ("steps", "unwritten", "kl", "ref_logprob", "reward_parts")
        }
        expected = {key: value for key, value in steps[-1][4].items() if key not in ("ref_logprob", "reward_parts")}
        assert_same(rest, expected)
        stretch = slice(start - 1, start - 1 + len(steps))
        reference = log_probs(models["reference"], observation, 259)[stretch]
        policy = log_probs(models["model"], observation, 259)[stretch]
        assert info["ref_logprob"] == pytest.approx(reference.sum(), abs=1e-3)
        assert info["kl"] == pytest.approx((policy - reference).sum(), abs=1e-3)
        if any(flags):
            break


def test_sums_of_a_response_in_one_text(models: Any) -> None:
    env = TextActions(TextGenEnv(**models, kl_coef=0.5))
    env.unwrapped.bind_policy(env.unwrapped.language_model)
    env.reset(seed=0)
    *_, info = env.step(" ab")
    assert info["ref_logprob_sum"] == pytest.approx(info["ref_logprob"])
    assert info["kl_sum"] == pytest.approx(info["kl"])
    assert (info["steps"], info["response_length"], info["text"], info["score"]) == (4, 4, " ab", 3.0)


def test_discounted_rewards_by_hand(models: Any) -> None:
    """Of a dense scorer each letter pays 1, each "a" 1/8 more; γ = ½."""
    env = TextGenEnv(**models | {"scorer": dense})
    env.reset(seed=0)
    ids = env.tokenizer.encode("abac", add_special_tokens=False)
    _, reward, _, _, info = env.step_tokens(ids, discount=0.5)
    assert reward == 1.125 + 0.5 + 0.25 * 1.125 + 0.125 * 1
    assert info["steps"] == 4
    for wrong in (1.5, -0.1, "x", float("nan")):
        with pytest.raises((TypeError, ValueError), match="discount="):
            env.step_tokens(ids, discount=wrong)


# --- what is written --------------------------------------------------------------------------------------------------


def test_until_ends_an_action_and_a_text_without_it_the_response(models: Any) -> None:
    env = TextActions(TextGenEnv(**models), until=[".", "!!"])
    assert env.reset(options={"prompt": "p"})[0] == {"prompt": "p", "response": ""}
    observation, reward, terminated, _, info = env.step(" One. Two.")
    assert (observation["response"], reward, terminated, info["steps"]) == (" One.", 0.0, False, 5)
    assert env.step("A!!B.")[0]["response"] == " One.A!!"
    observation, reward, terminated, _, info = env.step(" end")
    assert (observation["response"], reward, terminated) == (" One.A!! end", 12.0, True)
    assert info["finish_reason"] == "eos"
    with pytest.raises(ResetNeeded):
        env.step("more")


def test_what_does_not_fit_is_not_written(models: Any) -> None:
    env = TextActions(TextGenEnv(**models, max_new_tokens=4))
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("abcdef")
    assert (observation["response"], reward, terminated) == ("abcd", 4.0, True)
    assert (info["finish_reason"], info["steps"], info["unwritten"]) == ("length", 4, 3)


def test_replies_come_back_in_the_observation(models: Any) -> None:
    env = TextActions(TextGenEnv(**models, responder=answering, turn_strings=["?"], max_new_tokens=40))
    env.reset(options={"prompt": "p"})
    observation, reward, *_, info = env.step("Who are you? Me?")
    assert (observation["response"], info["reply"], reward) == ("Who are you?<Who are you?>", "<Who are you?>", 0.25)
    assert info["unwritten"] == 4
    observation, reward, terminated, _, info = env.step("ab")
    assert observation["response"] == info["transcript"] == "Who are you?<Who are you?>abö"
    assert (reward, terminated, info["finish_reason"]) == (12 + 2 + 0.5, True, "environment")


@pytest.mark.parametrize(
    ("action", "kind", "message"),
    [
        (3, TypeError, "action=3 must be a text, not int"),
        (b"ab", TypeError, "must be a text, not bytes"),
        ("\ud800", ValueError, "lone surrogate"),
        ("a" * 10_000, ValueError, r"has 10000 characters, more than the 2048 for which max_new_tokens=32"),
        ("ok, bad", ValueError, r"action='ok, bad', of which nothing was written: action 69 is masked here"),
        ("ab", ValueError, "action='ab', of which nothing was written: action 2 is masked here.*min_new_tokens=4"),
    ],
)
def test_what_cannot_be_written_changes_nothing(models: Any, action: Any, kind: type, message: str) -> None:
    banned = TextGenEnv(**models).tokenizer.encode(" ", add_special_tokens=False)
    message = message.replace("69", str(banned[0]))
    inner = TextGenEnv(**models, kl_coef=0.5, forbidden_tokens=banned, min_new_tokens=4)
    env = TextActions(inner)
    before, _ = env.reset(seed=0)
    state = inner.state_dict()
    with pytest.raises(kind, match=message):
        env.step(action)
    assert inner.state_dict() == state
    assert env.step("abcd")[0] == before | {"response": "abcd"}


def test_a_turn_that_was_answered_goes_on_with_the_same_text_alone(models: Any) -> None:
    """The scorer fails after the environment has answered both slots: no slot moves, and nobody is asked again."""
    broken = [True]

    def scorer(completions: Any, **_: Any) -> list[float]:
        if broken[0]:
            raise RuntimeError("down")
        return letters(completions)

    responder = Saving(Reply("", reward=0.25, terminated=True), "never")
    venv = VectorTextActions(
        TextGenVectorEnv(2, **models | {"scorer": scorer}, responder=responder, autoreset_mode="Disabled")
    )
    venv.reset(seed=0)
    for _ in range(2):
        with pytest.raises(ScorerError, match="down"):
            venv.step(["abc", "de"])
        assert not venv.unwrapped.engine.episodes.response_lengths.any()
    assert responder.asked == [(0, "abc"), (1, "de")]
    broken[0] = False
    with pytest.raises(ValueError, match=r"slot 0, action \d+: the environment has already answered action"):
        venv.step(["xbc", "de"])
    with pytest.raises(ValueError, match=r"slot 1, action \d+: the environment has already answered action 2"):
        venv.step(["abc", "def"])
    observations, rewards, terminated, *_ = venv.step(["abc", "de"])
    assert observations["response"] == ("abc", "de")
    assert rewards.tolist() == [3.25, 2.25]
    assert terminated.all()
    assert responder.asked == [(0, "abc"), (1, "de")]


# --- both environments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observe", ["text", "tokens"])
def test_the_vector_environment_is_its_slots(models: Any, mode: AutoresetMode, observe: str) -> None:
    arguments = {**models, "max_new_tokens": NEW, "responder": answering, "turn_strings": ["?"], "kl_coef": 0.25}
    arguments["max_reply_tokens"] = 16
    options: dict[str, Any] = {"until": ["."], "observe": observe}
    singles = SyncVectorEnv([lambda: TextActions(TextGenEnv(**arguments), **options)] * 3, autoreset_mode=mode)
    batched = VectorTextActions(TextGenVectorEnv(3, **arguments, autoreset_mode=mode), **options)
    assert batched.action_space == singles.action_space
    assert batched.observation_space == singles.observation_space
    assert_same(batched.reset(seed=5)[0], copy.deepcopy(singles.reset(seed=5)[0]))
    rng, ended = np.random.default_rng(0), np.zeros(3, dtype=bool)
    for _ in range(25):
        if mode is AutoresetMode.DISABLED and ended.any():
            reset_mask = {"reset_mask": ended}
            assert_same(batched.reset(options=dict(reset_mask))[0], copy.deepcopy(singles.reset(options=reset_mask)[0]))
        actions = tuple("".join(rng.choice(list("ab?.é"), rng.integers(6))) for _ in range(3))
        ours, theirs = batched.step(actions), singles.step(actions)
        assert_same(ours[0], theirs[0])
        for left, right in zip(ours[1:4], theirs[1:4], strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
        ended = theirs[2] | theirs[3]
        for slot in np.flatnonzero(ended) if mode is AutoresetMode.SAME_STEP else ():
            assert_same(ours[4]["final_obs"][slot], theirs[4]["final_obs"][slot])
            assert ours[4]["final_info"]["steps"][slot] == theirs[4]["final_info"]["steps"][slot]


def test_a_slot_without_a_text_stays_as_it_is(models: Any) -> None:
    venv = VectorTextActions(TextGenVectorEnv(3, **models, autoreset_mode="Disabled"), until="?")
    venv.reset(seed=0)
    observations, *_, infos = venv.step([None, "a?", ""])
    assert observations["response"] == ("", "a?", "")
    assert infos["_steps"].tolist() == [False, True, True]
    with pytest.raises(ResetNeeded, match="slot 2"):
        venv.step(["b", "b", "b"])
    assert venv.step(["b", "b", None])[0]["response"] == ("b", "a?b", "")
    for wrong in ("ab", ["a"], 3):
        with pytest.raises(ValueError, match="must be 3 texts"):
            venv.step(wrong)


def test_gymnasiums_checks(models: Any) -> None:
    check_env(TextActions(TextGenEnv(**models)), skip_render_check=True)
    check_env(TextActions(TextGenEnv(**models, responder="echo"), observe="tokens"), skip_render_check=True)


def test_made_by_name_and_with_features_around_it(models: Any) -> None:
    env = TextActions(gym.make("textgen/TextGen-v0", **models), observe="tokens")
    observation, _ = LMFeatures(env).reset(seed=0)
    assert observation.shape == (33,)
    assert env.spec.additional_wrappers[-1].name == "TextActions"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"until": [""]}, "until="),
        ({"until": [3]}, "until="),
        ({"append_eos": "yes"}, "append_eos='yes' must be True or False"),
        ({"observe": "ids"}, "observe='ids' must be one of text, tokens"),
    ],
)
def test_arguments_that_are_none(models: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        TextActions(TextGenEnv(**models), **wrong)


def test_it_goes_directly_around_the_environment(models: Any) -> None:
    with pytest.raises(TypeError, match="here is TopKActions between; put that around TextActions"):
        TextActions(TopKActions(TextGenEnv(**models), 3))
    with pytest.raises(TypeError, match="must be a textgen environment"):
        TextActions(gym.make("CartPole-v1"))


@pytest.mark.parametrize("wrong", [[], [[1]], "abc", 3, [1.5]])
def test_sequences_that_are_none(models: Any, wrong: Any) -> None:
    env = TextGenEnv(**models)
    env.reset()
    with pytest.raises((TypeError, ValueError), match="tokens"):
        env.step_tokens(wrong)


# --- the space --------------------------------------------------------------------------------------------------------


def test_the_space_has_what_models_write() -> None:
    space = UnicodeText(5)
    assert all(text in space for text in ("", "a b", "é🙂\n\0", "日本", "\ufffd"))
    assert not any(text in space for text in ("abcdef", "\ud800", 3, None, b"a"))
    assert space == UnicodeText(5) == copy.deepcopy(space) == pickle.loads(pickle.dumps(space))
    assert space != UnicodeText(6)
    assert space != gym.spaces.Text(5)
    space.seed(0)
    samples = [space.sample() for _ in range(50)]
    assert all(sample in space for sample in samples)
    assert {len(sample) for sample in samples} == {0, 1, 2, 3, 4, 5}
    assert len(space.sample(mask=(3, None))) == 3
    with pytest.raises(ValueError, match="no mask of characters"):
        space.sample(mask=(3, np.ones(3, dtype=np.int8)))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
def test_the_space_can_be_flattened(text: str) -> None:
    space = UnicodeText(5)
    flat = flatten(space, text)
    assert flat in flatten_space(space)
    assert unflatten(space, flat) == text
