"""The three ways of paying for KL give the same numbers on the same tokens, and those of a plain forward."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.kl import estimate_kl

EOS, VOCAB, BETA = 2, 259, 0.3
ACTIONS = [80, 40, 199, 40, EOS]


def zero(completions, **_: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["the prompt"],
        "scorer": zero,
        "max_new_tokens": 8,
        "kl_coef": BETA,
    }


def log_dists(path: str, prompt_ids: list[int], temperature: float, banned: list[int]) -> torch.Tensor:
    """(len(ACTIONS), V) float64: one plain forward of transformers per prefix, no cache, no batch."""
    model = AutoModelForCausalLM.from_pretrained(path)
    rows = []
    for t in range(len(ACTIONS)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + ACTIONS[:t]])).logits[0, -1, :VOCAB].double() / temperature
        logits[banned] = -torch.inf
        rows.append(logits.log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("banned", [[], [0, 7, 8]])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_bound_policy_pays_the_exact_kl(
    arguments: dict[str, Any], estimator: str, temperature: float, banned: list[int]
) -> None:
    env = TextGenEnv(**arguments, kl_estimator=estimator, temperature=temperature, forbidden_tokens=banned)
    policy = LanguageModel(arguments["model"])
    prompt_ids = policy.encode("the prompt")
    p = log_dists(arguments["model"], prompt_ids, temperature, banned)
    q = log_dists(arguments["reference"], prompt_ids, temperature, banned)
    if estimator == "full":
        expected = [
            sum(math.exp(a) * (a - b) for a, b in zip(pt, qt, strict=True) if a > -math.inf)
            for pt, qt in zip(p.tolist(), q.tolist(), strict=True)
        ]
    else:
        at = torch.tensor(ACTIONS)[:, None]
        ratio = (p.gather(1, at) - q.gather(1, at)).squeeze(1)
        formula = {"k1": ratio, "k2": ratio**2 / 2, "k3": (-ratio).exp() - 1 + ratio}
        expected = formula[estimator].tolist()

    def logits(observation: dict[str, np.ndarray]) -> torch.Tensor:
        length = int(observation["attention_mask"].sum())
        with torch.no_grad():
            return policy.model(torch.from_numpy(observation["input_ids"][None, :length])).logits[0, -1]

    for bound in (logits, policy, policy.prefix_cache(1)):
        env.bind_policy(bound)
        env.reset(seed=0)
        steps = [env.step(action) for action in ACTIONS]
        assert [step[1] for step in steps] == pytest.approx([-BETA * kl for kl in expected], abs=1e-4)
        assert steps[-1][-1]["kl_sum"] == pytest.approx(sum(expected), abs=5e-4)


def test_three_ways_agree(arguments: dict[str, Any]) -> None:
    """Bound; unbound plus the agent's half; a hook; and one teacher-forced pass over the whole response."""
    policy = LanguageModel(arguments["model"])
    prompt_ids = policy.encode("the prompt")
    ids = torch.tensor([prompt_ids + ACTIONS])
    log_prob = policy.log_probs(ids, torch.ones_like(ids))[0, len(prompt_ids) :].double().numpy()

    bound = TextGenEnv(**arguments)
    bound.bind_policy(policy)
    bound.reset(seed=0)
    by_binding = [bound.step(action)[1] for action in ACTIONS]

    unbound = TextGenEnv(**arguments)
    unbound.reset(seed=0)
    by_halves = [unbound.step(action)[1] - BETA * log_prob[t] for t, action in enumerate(ACTIONS)]

    delegated = TextGenEnv(**arguments)
    delegated.delegate_kl()
    delegated.reset(seed=0)
    infos = [delegated.step(action)[-1] for action in ACTIONS]
    ref_log_prob = np.array([info["ref_logprob"] for info in infos])
    by_hook = -BETA * estimate_kl("k1", log_prob, ref_log_prob)

    reference = LanguageModel(arguments["reference"])
    whole = reference.log_probs(ids, torch.ones_like(ids))[0, len(prompt_ids) :].double().numpy()
    by_rollout = -BETA * estimate_kl("k1", log_prob, whole)

    assert max(abs(reward) for reward in by_binding) > 0.1  # it is about something
    for other in (by_halves, by_hook, by_rollout):
        np.testing.assert_allclose(by_binding, other, atol=1e-5)
    assert all("kl" not in info["reward_parts"] for info in infos)


def test_vector_face_pays_each_slot_its_own_kl(arguments: dict[str, Any]) -> None:
    """Policy and reference differ; slots are at different prefixes, one of them resting."""
    policy = LanguageModel(arguments["model"])
    envs = TextGenVectorEnv(3, autoreset_mode="Disabled", **arguments | {"prompts": ["a", "longer prompt", "mid"]})
    envs.bind_policy(policy)
    envs.reset(options={"prompt": [0, 1, 2]})
    single = TextGenEnv(**arguments)
    single.bind_policy(policy)
    batches = np.array([[80, EOS, 90], [40, -1, EOS], [199, -1, -1]])
    rewards = np.array([envs.step(actions)[1] for actions in batches])
    for slot, prompt in enumerate(["a", "longer prompt", "mid"]):
        single.reset(options={"prompt": prompt})
        for t, action in enumerate(batches[:, slot]):
            expected = single.step(action)[1] if action >= 0 else 0.0
            assert rewards[t, slot] == pytest.approx(expected, abs=1e-5)


def test_policy_equal_to_reference_pays_nothing(byte_model: str) -> None:
    env = TextGenEnv(model=byte_model, prompts=["p"], scorer=zero, kl_coef=1.0, kl_estimator="full")
    env.bind_policy(env.language_model)
    env.reset(seed=0)
    assert [env.step(action)[1] for action in ACTIONS] == pytest.approx([0.0] * 5, abs=1e-6)


def test_unbound_warns_once_and_names_both_remedies(
    arguments: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    env = TextGenEnv(**arguments)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match=r"bind_policy\(fn\).*entropy bonus equal to kl_coef"):
        env.step(80)
    recwarn.clear()
    env.step(80)
    assert not [warning for warning in recwarn if "kl_coef" in str(warning.message)]


def test_unbound_can_only_pay_k1(arguments: dict[str, Any]) -> None:
    env = TextGenEnv(**arguments, kl_estimator="k3")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="kl_estimator='k3' needs the policy: call env.unwrapped.bind_policy"):
        env.step(80)


def test_delegated_without_report_never_runs_the_reference(arguments: dict[str, Any]) -> None:
    env = TextGenEnv(**arguments)
    env.delegate_kl(report_ref_logprob=False)
    env.reset(seed=0)
    info = env.step(80)[-1]
    assert info == {"reward_parts": {"score": 0.0}}
    assert not env.reference.weights_loaded


def test_coefficient_can_be_set(arguments: dict[str, Any]) -> None:
    env = gym.make("textgen/TextGen-v0", **arguments).unwrapped
    env.reset(seed=0)
    first = env.step(80)[1]
    env.reset(seed=0)
    env.kl_coef = 2 * BETA
    assert env.step(80)[1] == pytest.approx(2 * first)
    with pytest.raises(ValueError, match="kl_coef=-1"):
        env.kl_coef = -1


@pytest.mark.parametrize(
    ("logits", "message"),
    [(torch.zeros(5), r"shape \(5,\); expected \(259,\)"), (torch.full((259,), torch.nan), "NaN logits")],
)
def test_bad_policy(arguments: dict[str, Any], logits: torch.Tensor, message: str) -> None:
    env = TextGenEnv(**arguments)
    env.bind_policy(lambda observation: logits)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(80)
    env.bind_policy(None)
    with pytest.raises(TypeError, match="policy=3 must be callable"):
        env.bind_policy(3)  # type: ignore[arg-type]
