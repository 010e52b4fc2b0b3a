"""Wrappers for agents that know nothing of language, against plain forwards of transformers and against each other."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from transformers import AutoModelForCausalLM

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.wrappers import LMFeatures, TopKActions, VectorLMFeatures, VectorTopKActions

EOS, VOCAB, K, NEW = 2, 259, 5, 6


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["the prompt", "or another", "a"],
        "scorer": vowels,
        "max_prompt_tokens": 12,
        "max_new_tokens": NEW,
        "reference_top_p": 1.0,
    }


@cache
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, output_hidden_states=True)


@torch.no_grad()
def forward(path: str, token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (V,) float64 and last hidden state (d,) after a prefix: one forward, no cache."""
    output = plain_model(path)(torch.tensor([token_ids]))
    return output.logits[0, -1, :VOCAB].double().numpy(), output.hidden_states[-1][0, -1].numpy()


def tokens(observation: dict[str, np.ndarray]) -> list[int]:
    return observation["input_ids"][observation["attention_mask"] == 1].tolist()


# --- LMFeatures -------------------------------------------------------------------------------------------------------


def test_features_are_the_reference_models_last_hidden_state(arguments: dict[str, Any]) -> None:
    inner = TextGenEnv(**arguments)
    env = LMFeatures(inner)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (33,), np.float32)
    observation, _ = env.reset(seed=0)
    for step, token in enumerate([80, 7, 99]):
        expected = forward(arguments["reference"], tokens(inner.engine.episodes.observation(0)))[1]
        np.testing.assert_allclose(observation[:-1], expected, atol=1e-4)
        assert observation[-1] == pytest.approx(1 - step / NEW)
        observation = env.step(token)[0]
        assert observation.dtype == np.float32


def test_features_of_the_final_observation_in_same_step_mode(arguments: dict[str, Any]) -> None:
    inner = TextGenVectorEnv(3, **arguments)
    venv = VectorLMFeatures(inner)
    venv.reset(seed=0)
    before = [tokens(inner.engine.episodes.observation(row)) for row in range(3)]
    observations, _, terminated, _, infos = venv.step(np.array([80, EOS, 99]))
    assert terminated.tolist() == [False, True, False]
    assert infos["_final_obs"].tolist() == [False, True, False]
    ended = forward(arguments["reference"], [*before[1], EOS])[1]
    np.testing.assert_allclose(infos["final_obs"][1], [*ended, 1 - 1 / NEW], atol=1e-4)
    for row in range(3):
        prefix = tokens(inner.engine.episodes.observation(row))
        np.testing.assert_allclose(observations[row, :-1], forward(arguments["reference"], prefix)[1], atol=1e-4)
    assert observations[1, -1] == 1  # a new episode


def test_candidates_are_described_by_log_probability_and_embedding(arguments: dict[str, Any]) -> None:
    """Of 4 allowed tokens, 5 candidates: the last place stays empty; at the end all do."""
    allowed, temperature = [70, 80, 90, 100], 0.7
    banned = [token for token in range(VOCAB) if token not in allowed]
    inner = TextGenEnv(**arguments | {"max_new_tokens": 2}, forbidden_tokens=banned, temperature=temperature)
    env = LMFeatures(inner, candidates=K)
    assert env.observation_space.shape == (33 * (1 + K),)
    observation, _ = env.reset(seed=0)
    embeddings = plain_model(arguments["reference"]).get_output_embeddings().weight.detach().numpy()[:VOCAB]
    embeddings = embeddings - embeddings.mean(axis=0)
    embeddings /= embeddings.std()
    for token in (90, 70):
        logits, hidden = forward(arguments["reference"], tokens(inner.engine.episodes.observation(0)))
        np.testing.assert_allclose(observation[:32], hidden, atol=1e-4)
        order = sorted(allowed, key=lambda candidate: -logits[candidate])
        weights = np.exp(logits[order] / temperature)
        described = observation[33:].reshape(K, 33)
        np.testing.assert_allclose(described[:4, 0], np.log(weights / weights.sum()), atol=1e-4)
        np.testing.assert_allclose(described[:4, 1:], embeddings[order], atol=1e-4)
        assert described[4].tolist() == [-20] + [0] * 32
        observation = env.step(token)[0]
    assert not observation[33:].any()
    assert observation[:32].any()


def test_candidates_out_of_range(arguments: dict[str, Any]) -> None:
    for candidates in (-1, VOCAB + 1):
        with pytest.raises(ValueError, match=rf"candidates={candidates} must be from 0 \(none\) to the 259 tokens"):
            LMFeatures(TextGenEnv(**arguments), candidates=candidates)


def test_features_need_tokens(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="still observes tokens"):
        LMFeatures(LMFeatures(TextGenEnv(**arguments)))
    with pytest.raises(TypeError, match="textgen environment"):
        LMFeatures(gym.make("CartPole-v1"))


# --- TopKActions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_action_i_is_the_ith_most_likely_allowed_token(arguments: dict[str, Any], temperature: float) -> None:
    banned = list(range(3, 40))
    inner = TextGenEnv(**arguments, forbidden_tokens=banned, min_new_tokens=3, temperature=temperature)
    inner.delegate_kl()
    env = TopKActions(inner, K)
    assert env.action_space == gym.spaces.Discrete(K)
    env.reset(seed=1)
    total = 0.0
    for step, choice in enumerate([4, 0, 2, 1, 3, 0]):
        logits, _ = forward(arguments["reference"], tokens(inner.engine.episodes.observation(0)))
        logits[banned + ([EOS] if step < 3 else [])] = -np.inf
        order = np.argsort(-logits, kind="stable")[:K]
        restricted = logits[order] / temperature
        expected = restricted[choice] - np.log(np.exp(restricted).sum())  # among the five alone
        assert env.action_masks().tolist() == [True] * K
        info = env.step(choice)[-1]
        assert inner.engine.episodes.response(0)[-1] == order[choice]
        assert info["ref_logprob"] == pytest.approx(expected, abs=1e-4)
        total += expected
        if "text" in info:
            assert info["ref_logprob_sum"] == pytest.approx(total, abs=1e-3)
            break


def test_unbound_penalty_is_of_the_restricted_reference(arguments: dict[str, Any]) -> None:
    env = TopKActions(TextGenEnv(**arguments, kl_coef=0.5), K)
    env.reset(seed=1)
    _, reward, _, _, info = env.step(3)
    assert info["reward_parts"]["kl"] == pytest.approx(0.5 * info["ref_logprob"])
    assert reward == sum(info["reward_parts"].values())


def test_ranks_beyond_the_allowed_tokens_are_masked(arguments: dict[str, Any]) -> None:
    arguments["forbidden_tokens"] = [token for token in range(VOCAB) if token not in (50, 60, 70)]
    env, venv = TopKActions(TextGenEnv(**arguments), K), VectorTopKActions(TextGenVectorEnv(2, **arguments), K)
    for one in (env, venv):
        one.reset(seed=0)
        assert (one.action_masks() == [True, True, True, False, False]).all()
    with pytest.raises(ValueError, match="action 3 is masked: only 3 tokens"):
        env.step(3)
    with pytest.raises(ValueError, match="action 4 is masked: only 3 tokens"):
        venv.step(np.array([0, 4]))
    with pytest.raises(ValueError, match=r"action 5 is not in Discrete\(5\)"):
        env.step(5)


def test_top_k_complains(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="k=0 must be from 1 to the 259 tokens"):
        TopKActions(TextGenEnv(**arguments), 0)
    with pytest.raises(TypeError, match="textgen environment"):
        TopKActions(gym.make("CartPole-v1"), 2)
    env = TopKActions(TextGenEnv(**arguments, kl_coef=0.5), K)
    env.unwrapped.bind_policy(lambda observation: np.zeros(VOCAB))
    env.reset()
    with pytest.raises(ValueError, match="bind_policy gives logits of tokens"):
        env.step(0)


# --- both, on both environments ---------------------------------------------------------------------------------------


def wrap(env: gym.Env, order: str) -> gym.Env:
    if order == "features last":
        return LMFeatures(TopKActions(env, K), candidates=K)
    return TopKActions(LMFeatures(env), K)


def wrap_batched(venv: gym.vector.VectorEnv, order: str) -> gym.vector.VectorEnv:
    if order == "features last":
        return VectorLMFeatures(VectorTopKActions(venv, K), candidates=K)
    return VectorTopKActions(VectorLMFeatures(venv), K)


@pytest.mark.parametrize("order", ["features last", "features first"])
def test_single_face_passes_gymnasiums_checks(arguments: dict[str, Any], order: str) -> None:
    check_env(wrap(TextGenEnv(**arguments), order), skip_render_check=True)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("order", ["features last", "features first"])
def test_batched_face_equals_single_faces(arguments: dict[str, Any], order: str, mode: AutoresetMode) -> None:
    arguments |= {"kl_coef": 0.2}
    singles = SyncVectorEnv([lambda: wrap(TextGenEnv(**arguments), order)] * 3, autoreset_mode=mode)
    batched = wrap_batched(TextGenVectorEnv(3, **arguments, autoreset_mode=mode), order)
    assert batched.action_space == singles.action_space
    assert batched.observation_space == singles.observation_space
    np.testing.assert_allclose(batched.reset(seed=5)[0], singles.reset(seed=5)[0], atol=1e-4)
    rng, ended = np.random.default_rng(0), np.zeros(3, dtype=bool)
    for _ in range(20):
        if mode is AutoresetMode.DISABLED and ended.any():
            options = {"reset_mask": ended}
            one, other = singles.reset(options=dict(options)), batched.reset(options=dict(options))
            np.testing.assert_allclose(other[0], one[0], atol=1e-4)
        actions = rng.integers(K, size=3)
        one, other = singles.step(actions), batched.step(actions)
        for left, right in zip(one[:4], other[:4], strict=True):
            np.testing.assert_allclose(right, left, atol=1e-4)
        same(one[4], other[4])
        ended = one[2] | one[3]


def same(left: Any, right: Any) -> None:
    """Nested infos, compared up to rounding of different batch sizes."""
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            same(left[key], right[key])
    elif left.dtype == object:
        for one, other in zip(left, right, strict=True):
            if isinstance(one, np.ndarray):
                np.testing.assert_allclose(other, one, atol=1e-4)
            else:
                assert one == other
    else:
        np.testing.assert_allclose(right, left, atol=1e-4)
