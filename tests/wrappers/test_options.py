"""Options against token-level play and plain forwards of transformers; and agents that learn to choose."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from compare import assert_same
from dialogues import EOS, letters, row
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from transformers import AutoModelForCausalLM

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.responders import Reply
from textgen_env.wrappers import LMFeatures, Options, Situation, VectorOptions, env_attribute

PHRASES = [" ja", " nein", " é🙂", ""]


@pytest.fixture(scope="module")
def models(byte_model: str, other_model: str) -> dict[str, Any]:
    prompts = [{"prompt": "p", "choices": ["a", "bc"]}, {"prompt": "longer", "choices": ["d", "", "fgh"]}]
    return {"model": byte_model, "reference": other_model, "prompts": prompts, "scorer": letters, "max_new_tokens": 16}


@cache
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


@torch.no_grad()
def brute_force(path: str, prefix: list[int], option: list[int], temperature: float, banned: Any = ()) -> float:
    """log p of an option: a plain forward of each prefix of it, without a cache."""
    total = 0.0
    for depth, token in enumerate(option):
        logits = plain_model(path)(torch.tensor([prefix + option[:depth]])).logits[0, -1, :259].double() / temperature
        logits[list(banned)] = -torch.inf
        total += float(logits.log_softmax(-1)[token])
    return total


def tokens_of(env: Any, text: str, eos: bool = True) -> list[int]:
    return env.unwrapped.tokenizer.encode(text, add_special_tokens=False) + [EOS] * eos


# --- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_plain_forwards(models: Any, append_eos: bool, temperature: float) -> None:
    phrases = PHRASES[: 4 if append_eos else 3]
    env = Options(TextGenEnv(**models, temperature=temperature, kl_coef=0.1), phrases, append_eos=append_eos)
    model = LanguageModel(models["model"])
    env.reset(seed=0)
    for choice in (0, 1):
        prefix = row(env.unwrapped.engine.episodes.observation(0))[0]
        for path, given in ((models["reference"], None), (models["model"], model)):
            expected = [brute_force(path, prefix, tokens_of(env, text, append_eos), temperature) for text in phrases]
            np.testing.assert_allclose(env.option_log_probs(given), expected, atol=1e-3)
            lengths = [len(tokens_of(env, text, append_eos)) for text in phrases]
            means = np.array(expected) / lengths
            np.testing.assert_allclose(env.option_log_probs(given, per_token=True), means, atol=1e-3)
        log_probs = env.option_log_probs()
        _, _, terminated, _, info = env.step(choice)
        assert info["ref_logprob"] == pytest.approx(log_probs[choice], abs=1e-4)
        if terminated:
            break


def test_log_probs_follow_masks_and_a_vector_of_slots(models: Any) -> None:
    """Of a slot whose prompt has fewer options, and where a letter is forbidden, what is left sums up as it should."""
    banned = tokens_of(TextGenEnv(**models), "f", eos=False)
    venv = VectorOptions(TextGenVectorEnv(3, **models, forbidden_tokens=banned), "choices")
    venv.reset(options={"prompt": [0, 1, 0]})
    masks, log_probs = venv.action_masks(), venv.option_log_probs()
    assert masks.tolist() == [[True, True, False], [True, True, False], [True, True, False]]
    assert [venv.option_texts(slot) for slot in range(2)] == [["a", "bc"], ["d", "", "fgh"]]
    assert np.isneginf(log_probs[:, 2]).all()
    for slot in range(3):
        prefix = row(venv.unwrapped.engine.episodes.observation(slot))[0]
        for choice, text in enumerate(venv.option_texts(slot)[:2]):
            expected = brute_force(models["reference"], prefix, tokens_of(venv, text), 1.0, banned)
            assert log_probs[slot, choice] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_array_equal(venv.option_log_probs(slots=[1]), log_probs[[1]])
    with pytest.raises(ValueError, match="action 2 is masked: slot 0 has 2 options"):
        venv.step([2, 0, 0])
    with pytest.raises(ValueError, match="action 2 is masked: 'fgh' has a token that is forbidden here"):
        venv.step([0, 2, 0])
    assert not venv.unwrapped.engine.episodes.response_lengths.any()


@pytest.mark.parametrize("limits", [{"reference_top_k": 40}, {"reference_top_p": 0.8}])
@pytest.mark.parametrize("by", ["reference", "model"])
def test_log_probs_follow_what_the_reference_allows(models: Any, limits: dict[str, Any], by: str) -> None:
    """Whoever is asked, the reference decides, token by token; by plain forwards of each prefix."""
    texts = [chr(code) + more for code in range(97, 123) for more in ("", "b")]
    settings: dict[str, Any] = {"temperature": 0.7, "forbidden_tokens": list(range(3, 60))}
    env = Options(TextGenEnv(**models, **settings, **limits, kl_coef=0.1), texts, append_eos=False)
    env.reset(seed=0)
    prefix = row(env.unwrapped.engine.episodes.observation(0))[0]
    expected = []
    for text in texts:
        total, option = 0.0, tokens_of(env, text, eos=False)
        for depth, token in enumerate(option):
            ids = torch.tensor([prefix + option[:depth]])
            with torch.no_grad():
                logits = [plain_model(models[name])(ids).logits[0, -1, :259] for name in ("reference", by)]
            ref, own = (one.double() / 0.7 for one in logits)
            ref[3:60] = -torch.inf
            ranked = ref.softmax(-1).sort(descending=True)
            before = ranked.values.cumsum(-1) - ranked.values
            count = limits.get("reference_top_k", int((before < limits.get("reference_top_p", 1)).sum()))
            outside = torch.ones(259, dtype=torch.bool)
            outside[ranked.indices[:count]] = False
            total += float(own.masked_fill(outside, -torch.inf).log_softmax(-1)[token])
        expected.append(total)
    asked = None if by == "reference" else LanguageModel(models["model"])
    log_probs = env.option_log_probs(asked)
    np.testing.assert_allclose(log_probs, expected, atol=1e-3)
    masks = env.action_masks()
    assert (masks == np.isfinite(expected)).all()
    assert 0 < masks.sum() < len(texts)
    with pytest.raises(ValueError, match="is masked: .* has a token that is forbidden here"):
        env.step(int(np.flatnonzero(~masks)[0]))
    chosen = int(np.flatnonzero(masks)[-1])
    info = env.step(chosen)[-1]
    assert by == "model" or info["ref_logprob"] == pytest.approx(expected[chosen], abs=1e-3)


def test_no_early_eos_among_the_options(models: Any) -> None:
    env = Options(TextGenEnv(**models, min_new_tokens=2), ["a", "ab", ""])
    env.reset(options={"prompt": "p"})
    assert env.action_masks().tolist() == [False, True, False]
    assert np.isfinite(env.option_log_probs()).tolist() == [False, True, False]


def test_another_vocabulary_is_refused(models: Any) -> None:
    env = Options(TextGenEnv(**models), PHRASES)
    env.reset()
    with pytest.raises(ValueError, match="model='tiny' has another vocabulary"):
        env.option_log_probs(LanguageModel("tiny"))
    with pytest.raises(TypeError, match="model=3 must be a LanguageModel"):
        env.option_log_probs(3)  # type: ignore[arg-type]


# --- macro-actions ----------------------------------------------------------------------------------------------------


def test_an_option_is_its_tokens_with_discounted_rewards(models: Any) -> None:
    """γ = 0.9; the score of an answer of k − 1 letters is paid for its EOS: γ^(k−1)·(k−1)."""
    env = Options(TextGenEnv(**models), PHRASES, gamma=0.9)
    for choice, text in enumerate(PHRASES):
        env.reset(options={"prompt": "p"})
        observation, reward, terminated, _, info = env.step(choice)
        assert row(observation)[0][-len(tokens_of(env, text)) :] == tokens_of(env, text)
        k = len(text.encode()) + 1
        assert (info["steps"], terminated) == (k, True)
        assert reward == pytest.approx(0.9 ** (k - 1) * len(text))


def test_phrases_go_on_behind_each_other(models: Any) -> None:
    env = Options(TextGenEnv(**models), ["ab", "c", "."], append_eos=False)
    env.reset(options={"prompt": "p"})
    for choice in (0, 0, 1):
        _, _, terminated, _, info = env.step(choice)
        assert not terminated
    for _ in range(6):
        _, reward, terminated, _, info = env.step(0)
        if terminated:
            break
    assert (info["text"], reward, info["finish_reason"]) == ("ababc" + "ab" * 5 + "a", 16.0, "length")
    assert (info["steps"], info["unwritten"]) == (1, 1)


def test_admissible_answers_change_from_turn_to_turn(models: Any) -> None:
    """A function is asked once in each state, with what has been said."""
    seen: list[Situation] = []

    def admissible(situation: Situation) -> list[str]:
        seen.append(situation)
        return ["left", "right"] if not situation.response else [f"open {situation.response[-1]}"]

    replies = {"left": "door 1", "right": "door 2", "open 2": Reply("gold", reward=5.0, terminated=True)}
    env = Options(TextGenEnv(**models | {"scorer": None}, responder=replies.get), admissible, count=2)
    env.reset(options={"prompt": "p"})
    assert env.option_texts() == ["left", "right"]
    assert env.action_masks().all()
    env.option_log_probs()
    _, _, _, _, info = env.step(1)
    assert info["reply"] == "door 2"
    assert env.option_texts() == ["open 2"]
    assert env.action_masks().tolist() == [True, False]
    _, reward, terminated, _, info = env.step(0)
    assert (reward, terminated, info["transcript"]) == (5.0, True, "rightdoor 2open 2gold")
    assert [one.response for one in seen] == ["", "rightdoor 2"]
    assert seen[0].prompt.text == "p"


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_environment_is_its_slots(models: Any, mode: AutoresetMode) -> None:
    arguments = {**models, "kl_coef": 0.25, "max_new_tokens": 5}
    options: dict[str, Any] = {"options": ["ab", "c", "é"], "gamma": 0.9, "append_eos": False}
    singles = SyncVectorEnv([lambda: Options(TextGenEnv(**arguments), **options)] * 3, autoreset_mode=mode)
    batched = VectorOptions(TextGenVectorEnv(3, **arguments, autoreset_mode=mode), **options)
    assert batched.action_space == singles.action_space
    assert_same(batched.reset(seed=5)[0], singles.reset(seed=5)[0])
    rng, ended = np.random.default_rng(0), np.zeros(3, dtype=bool)
    for _ in range(15):
        if mode is AutoresetMode.DISABLED and ended.any():
            mask = {"reset_mask": ended}
            assert_same(batched.reset(options=dict(mask))[0], singles.reset(options=mask)[0])
        actions = rng.integers(3, size=3)
        ours, theirs = batched.step(actions), singles.step(actions)
        assert_same(ours[:4], theirs[:4])
        ended = theirs[2] | theirs[3]
        steps = [
            infos.get("final_info", {}).get("steps", 0) + infos.get("steps", np.zeros(3))
            for infos in (ours[4], theirs[4])
        ]
        np.testing.assert_array_equal(*steps)


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"options": []}, ValueError, "options is empty"),
        ({"options": ["a", 3]}, TypeError, "options holds 3; options are texts"),
        ({"options": "topic"}, ValueError, r"options='topic': prompts\[0\] has no such column, only \['choices'\]"),
        ({"options": lambda situation: ["a"]}, ValueError, "options is a function, of whose lists count="),
        ({"options": ["a"], "count": 0}, ValueError, "count=0 must be at least 1"),
        ({"options": 3}, TypeError, "options=3 must be a list of texts"),
    ],
)
def test_arguments_that_are_none(models: Any, wrong: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        Options(TextGenEnv(**models), **wrong)


def test_actions_that_are_none(models: Any) -> None:
    env = Options(TextGenEnv(**models), PHRASES)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match=r"action 4 is not in Discrete\(4\)"):
        env.step(4)
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    too_many = Options(TextGenEnv(**models), lambda situation: ["a", "b"], count=1)
    too_many.reset()
    with pytest.raises(ValueError, match="holds 2 options for slot 0, more than count=1"):
        too_many.action_masks()


def test_gymnasiums_checks(models: Any) -> None:
    check_env(Options(TextGenEnv(**models), PHRASES), skip_render_check=True)


# --- learning ---------------------------------------------------------------------------------------------------------


def right(completions: Any, *, references: Any, **_: Any) -> list[float]:
    return [float(text == wanted[0]) for text, wanted in zip(completions, references, strict=True)]


QUIZ = [{"prompt": "cow", "references": ["moo"]}, {"prompt": "dog", "references": ["woof"]}]
SOUNDS = ["meow", "moo", "woof", "oink"]


def test_a_softmax_policy_learns_to_answer(models: Any) -> None:
    """REINFORCE with one logit per prompt and option."""
    task = models | {"prompts": QUIZ, "scorer": right}
    venv = VectorOptions(gym.make_vec("textgen/TextGen-v0", num_envs=16, autoreset_mode="Disabled", **task), SOUNDS)
    rng, logits = np.random.default_rng(0), np.zeros((2, len(SOUNDS)))
    means = []
    for _ in range(60):
        _, infos = venv.reset(seed=int(rng.integers(1 << 30)))
        prompts = (infos["prompt"] == "dog").astype(int)
        policy = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        actions = np.array([rng.choice(len(SOUNDS), p=policy[prompt]) for prompt in prompts])
        rewards = venv.step(actions)[1]
        means.append(rewards.mean())
        for prompt, action, advantage in zip(prompts, actions, rewards - rewards.mean(), strict=True):
            logits[prompt] += 0.2 * advantage * (np.eye(len(SOUNDS))[action] - policy[prompt])
    assert np.mean(means[:5]) < 0.5 < 0.8 < np.mean(means[-5:])


def test_sb3_learns_to_answer(models: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = LMFeatures(Options(TextGenEnv(**models | {"prompts": QUIZ, "scorer": right}), SOUNDS))
    assert env_attribute(env, "action_masks")().all()
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=64, learning_rate=0.01, seed=0, device="cpu").learn(640)
    for question in QUIZ:
        observation, _ = env.reset(options={"prompt": question})
        assert env.step(int(model.predict(observation, deterministic=True)[0]))[1] == 1.0
