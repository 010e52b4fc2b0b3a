"""`reference_top_k`: the k likeliest allowed tokens are the actions, and the KL is among them; by plain forwards."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.testing import plain, same
from textgen_env.wrappers import TopKActions, VectorTopKActions

VOCAB, EOS = 259, 2


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["the prompt", "or another", "a"],
        "scorer": lambda completions, **_: [float(len(text)) for text in completions],
        "max_new_tokens": 6,
    }


@cache
def plain_model(path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


@torch.no_grad()
def logits_of(path: str, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Next-token logits (V,) float64 of a state: one forward, no cache, no padding."""
    ids = observation["input_ids"][observation["attention_mask"] == 1]
    return plain_model(path)(torch.tensor([ids.tolist()])).logits[0, -1, :VOCAB].double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bound", ["unbound", "k1", "full"])
def test_kl_is_among_the_k_likeliest_allowed_tokens(arguments: dict[str, Any], bound: str, temperature: float) -> None:
    banned = list(range(3, 60))
    options = {"forbidden_tokens": banned, "min_new_tokens": 2, "temperature": temperature, "reference_top_k": 7}
    estimator = "k1" if bound == "unbound" else bound
    env = TextGenEnv(**arguments, **options, kl_coef=0.5, kl_estimator=estimator)
    if bound != "unbound":
        env.bind_policy(LanguageModel(arguments["model"]))
    observation, _ = env.reset(seed=1)
    for step, place in enumerate([6, 0, 3, 5]):
        ref, policy = (logits_of(arguments[role], observation) / temperature for role in ("reference", "model"))
        ref[banned + ([EOS] if step < 2 else [])] = -np.inf
        best = np.argsort(-ref)[:7]
        assert np.flatnonzero(env.action_masks()).tolist() == sorted(best)
        log_ref, log_policy = log_softmax(ref[best]), log_softmax(policy[best])
        kl = (np.exp(log_policy) * (log_policy - log_ref)).sum() if bound == "full" else (log_policy - log_ref)[place]
        observation, _, ended, _, info = env.step(best[place])
        assert info["ref_logprob"] == pytest.approx(log_ref[place], abs=1e-4)
        wanted = 0.5 * log_ref[place] if bound == "unbound" else -0.5 * kl
        assert info["reward_parts"]["kl"] == pytest.approx(wanted, abs=1e-4)
        if ended:
            break
    if not ended:
        with pytest.raises(ValueError, match=r"masked here.* or its top-k; see action_masks"):
            env.step(int(np.flatnonzero(~env.action_masks())[-1]))


@pytest.mark.parametrize(("top_p", "decides"), [(0.02, "p"), (0.9, "k")])
def test_with_a_nucleus_the_smaller_set_decides(arguments: dict[str, Any], top_p: float, decides: str) -> None:
    env = TextGenEnv(**arguments, reference_top_p=top_p, reference_top_k=9)
    observation, _ = env.reset(seed=0)
    logits = logits_of(arguments["reference"], observation)
    order = np.argsort(-logits)
    probs = np.exp(log_softmax(logits))[order]
    nucleus = order[np.cumsum(probs) - probs < top_p]
    assert (len(nucleus) < 9) == (decides == "p")
    assert np.flatnonzero(env.action_masks()).tolist() == sorted(nucleus[:9])


def test_ties_with_the_kth_do_not_make_more(arguments: dict[str, Any], byte_model: str, tmp_path: Any) -> None:
    """All weights of the head zero: every token is as likely as every other."""
    plain_model(byte_model).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in weights:
        if "embed_tokens" in name or "lm_head" in name:
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    LanguageModel(byte_model).tokenizer.save_pretrained(tmp_path)
    env = TextGenEnv(**{**arguments, "model": str(tmp_path), "reference": None}, reference_top_k=4, kl_coef=1.0)
    env.reset(seed=0)
    allowed = np.flatnonzero(env.action_masks())
    assert len(allowed) == 4
    assert env.step(allowed[-1])[-1]["ref_logprob"] == pytest.approx(np.log(1 / 4), abs=1e-5)


@pytest.mark.parametrize("k", [0, VOCAB, 10**6])
def test_nothing_is_masked_where_there_are_no_more(arguments: dict[str, Any], k: int) -> None:
    env = TextGenVectorEnv(2, **arguments, reference_top_k=k)
    env.reset(seed=0)
    assert not env.restricts_actions
    assert env.action_masks().all()


def test_fewer_allowed_than_k(arguments: dict[str, Any]) -> None:
    banned = [token for token in range(VOCAB) if token not in (50, 60, 70)]
    env = TextGenEnv(**arguments, forbidden_tokens=banned, reference_top_k=5)
    env.reset(seed=0)
    assert np.flatnonzero(env.action_masks()).tolist() == [50, 60, 70]


@pytest.mark.parametrize("extra", [{}, {"reference_top_p": 0.3}, {"min_new_tokens": 2, "forbidden_tokens": [7]}])
def test_ranks_are_other_names_for_the_same_actions(arguments: dict[str, Any], extra: dict[str, Any]) -> None:
    """`TopKActions(k)` pays and tells what an environment with `reference_top_k=k` does for the tokens of the ranks."""
    arguments |= {"kl_coef": 0.4, **extra}
    ranks = TopKActions(TextGenEnv(**arguments), 5)
    tokens = TextGenEnv(**arguments, reference_top_k=5)
    rng = np.random.default_rng(0)
    for seed in range(3):
        assert same(plain(ranks.reset(seed=seed)), plain(tokens.reset(seed=seed)))
        over = False
        while not over:
            choice = rng.choice(np.flatnonzero(ranks.action_masks()))
            one = ranks.step(choice)
            length = one[0]["attention_mask"].sum()
            other = tokens.step(one[0]["input_ids"][length - 1])
            assert same(plain(one), plain(other))
            over = one[2] or one[3]


def test_the_wrapper_leaves_the_environment_as_it_was(arguments: dict[str, Any]) -> None:
    """It narrows its own steps, also where they raise; what is inside can be wrapped again, with another k."""
    env = TextGenVectorEnv(2, **arguments, reference_top_k=20)
    for k in (3, 8):
        ranks = VectorTopKActions(env, k)
        ranks.reset(seed=0)
        assert ranks.action_masks().tolist() == [[True] * k] * 2
        ranks.step(np.array([k - 1, 0]))
        with pytest.raises(ValueError, match="not in Discrete"):
            ranks.step(np.array([k, 0]))
        assert env.action_masks().sum(axis=1).tolist() == [20, 20]
    wide = VectorTopKActions(env, 30)
    assert wide.action_masks().tolist() == [[True] * 20 + [False] * 10] * 2


def test_it_is_an_argument_like_the_others(arguments: dict[str, Any]) -> None:
    env: Any = gym.make("textgen/TextGen-v0", **arguments, reference_top_k=3)
    env.reset(seed=0)
    assert env.unwrapped.action_masks().sum() == 3
    assert env.unwrapped.restricts_actions
