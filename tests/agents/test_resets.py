"""Episodes that begin inside of a given response: where they begin, and what is learned, against enumeration."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, PROMPT, TWO_TOKENS, A, B, masked_log_probs, rollout_of, score

from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.rollout import Rollout
from textgen_env.agents.rollout_parts import beginnings, whole_responses
from textgen_env.agents.vine_ppo import VinePPO, VinePPOConfig
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SIZES: dict[str, Any] = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12, "lr": 1e-2, "kl_coef": 0.3}
GROUPS: dict[str, Any] = {"group_size": 2, **SIZES}
REFERENCES = {"prompts": [{"prompt": "d e", "references": ["a b"]}]}


def reinforce(venv: gym.vector.VectorEnv, source: Path, **settings: Any) -> Reinforce:
    return Reinforce(venv, ActorCritic(LanguageModel(source), ActorConfig()), ReinforceConfig(**{**GROUPS, **settings}))


def grpo(venv: gym.vector.VectorEnv, source: Path, **settings: Any) -> GRPO:
    config = GRPOConfig(**{**GROUPS, "kl_in": "reward", **settings})
    return GRPO(venv, ActorCritic(LanguageModel(source), ActorConfig()), config)


def ppo(venv: gym.vector.VectorEnv, source: Path, **settings: Any) -> PPO:
    """With a critic that the policy's gradient knows nothing of."""
    generator = torch.Generator().manual_seed(1)
    policy = ActorCritic(LanguageModel(source), PolicyConfig(critic="detached"), generator=generator)
    return PPO(venv, policy, PPOConfig(**{**SIZES, "lam": 1.0, "whiten": False, **settings}))


def vine(venv: gym.vector.VectorEnv, source: Path, **settings: Any) -> VinePPO:
    config = VinePPOConfig(**{**SIZES, "whiten": False, "branch_every": 1, **settings})
    return VinePPO(venv, ActorCritic(LanguageModel(source), ActorConfig()), config)


def pairs_behind(model: LanguageModel) -> Iterator[tuple[float, Rollout]]:
    """Everything that two responses can be which begin with "a", with its probability."""
    with torch.no_grad():
        first = float(masked_log_probs(model.model, [A]).exp())
        probability = {
            second: float(masked_log_probs(model.model, [A, second]).exp()) / first for second in (EOS, A, B)
        }
    for pair in product(probability, repeat=2):
        rollout = rollout_of([[A, second] for second in pair], model)
        mask = rollout.response_mask.clone()
        mask[:, len(PROMPT)] = 0
        begun = replace(rollout, tokens=rollout.tokens._replace(response_mask=mask), begun=torch.tensor([1, 1]))
        yield probability[pair[0]] * probability[pair[1]], begun


def value_behind(trainer: Any, source: Path) -> torch.Tensor:
    """V("a") = Σ_b π(b|a)·(score(ab) − β·log π(b|a)/π_ref(b|a)), with gradient."""
    reference, model, total = LanguageModel(source).model, trainer.policy.actor, torch.zeros(())
    for second in (EOS, A, B):
        log_prob, ref = (masked_log_probs(lm, [A, second]) - masked_log_probs(lm, [A]) for lm in (model, reference))
        paid = score([trainer.policy.language_model.decode([A, second])])[0]
        total = total + log_prob.exp() * (paid - 0.3 * (log_prob - ref.detach()))
    return total


@pytest.mark.parametrize(
    ("make", "settings", "scale"),
    [
        (reinforce, {"baseline": "leave_one_out"}, 1.0),
        (reinforce, {"baseline": "greedy"}, 1.0),
        (grpo, {}, 4.0),  # (1 − 1/G)/max_new_tokens
        (ppo, {}, 1.0),  # a mean over tokens, of which each response has one
        (vine, {}, 2.0),  # a sum over max_new_tokens
    ],
    ids=["RLOO", "SCST", "GRPO", "PPO", "VinePPO"],
)
def test_the_expected_gradient_is_that_of_what_comes_after(
    make: Any, settings: dict[str, Any], scale: float, make_venv: MakeVenv, word_model: Path
):
    """scale·E[∇L] = −∇V(s), away from the reference: neither KL nor credit of the token that was given."""
    trainer = make(make_venv(**TWO_TOKENS), word_model, **settings)
    trainer.train(2)
    params = list(trainer.policy.actor.parameters())
    total = torch.zeros(sum(p.numel() for p in params))
    for weight, rollout in pairs_behind(trainer.policy.language_model):
        loss, parts = trainer.loss(trainer.advantages(rollout), torch.arange(2))
        assert parts["ratio_error"] == 0
        total += weight * torch.cat([g.flatten() for g in torch.autograd.grad(scale * loss, params)])
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-value_behind(trainer, word_model), params)])
    assert exact.norm() > 0.03
    angle = torch.nn.functional.cosine_similarity(total, exact, dim=0)
    assert angle > (0.99 if make is vine else 0.99999)  # VinePPO's values are drawn
    assert make is vine or torch.allclose(total, exact, atol=5e-6, rtol=1e-3)


def test_what_is_given_is_drawn_as_told(make_venv: MakeVenv, word_model: Path):
    """Half of the episodes, each reference alike, each cut alike; what comes after is the policy's."""
    prompts = [{"prompt": "d e", "references": ["a b c", "b b b b b"]}, {"prompt": "a b", "references": ["c c"]}]
    trainer = reinforce(make_venv(num_envs=8, prompts=prompts, max_new_tokens=5), word_model, **LARGE, reset_share=0.5)
    rollout = trainer.collect()
    begun, whole, chosen = beginnings(rollout), whole_responses(rollout), rollout.chosen_prompts
    assert chosen is not None
    assert begun[::2] == begun[1::2]  # a group begins alike
    groups = list(zip(chosen[::2], map(tuple, begun[::2]), strict=True))
    assert sum(bool(tokens) for _, tokens in groups) / len(groups) == pytest.approx(0.5, abs=0.07)
    model = trainer.policy.language_model
    of_first = Counter(model.decode(tokens) for prompt, tokens in groups if prompt == 0 and tokens)
    assert set(of_first) == {"a", "a b", "a b c", "b", "b b", "b b b", "b b b b"}
    total = sum(of_first.values())
    for text, count in of_first.items():  # 1/2 each reference; "a b c" and EOS have 3 cuts, five tokens have 4
        truth = 1 / 6 if text.startswith("a") else 1 / 8
        assert count / total == pytest.approx(truth, abs=4 * (truth * (1 - truth) / total) ** 0.5)
    assert {model.decode(tokens) for prompt, tokens in groups if prompt == 1} == {"", "c", "c c"}
    assert all(len(w) > len(b) for w, b in zip(whole, begun, strict=True))


LARGE: dict[str, Any] = {"episodes": 800, "minibatch_size": 800, "micro_batch_size": 800}


def test_a_guide_writes_as_the_reference_does(make_venv: MakeVenv, word_model: Path):
    """A policy that writes "a" alone begins with whatever the reference writes."""
    trainer = ppo(make_venv(**TWO_TOKENS), word_model, reset_share=1.0, reset_from="guide", **{**LARGE, "lr": 0.0})
    head = trainer.policy.actor.get_output_embeddings()
    with torch.no_grad():
        hidden = trainer.policy.actor.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        head.weight[A] += 50 * hidden / hidden.square().sum()
    rollout = trainer.collect()
    begun = [tokens[0] for tokens in beginnings(rollout) if tokens]
    with torch.no_grad():
        truth = {token: float(masked_log_probs(LanguageModel(word_model).model, [token]).exp()) for token in (A, B)}
    share = truth[B] / (truth[A] + truth[B])  # an EOS alone cannot be cut
    assert begun.count(B) / len(begun) == pytest.approx(share, abs=4 * (share * (1 - share) / len(begun)) ** 0.5)
    own = [tokens[0] for tokens, start in zip(whole_responses(rollout), beginnings(rollout), strict=True) if not start]
    assert set(own) == {A}


@pytest.mark.parametrize("old", ["scored", "sampled"])
def test_log_probs_of_decoding_fit_what_was_given(old: str, make_venv: MakeVenv, word_model: Path):
    """Importance weights are 1, ratios too, and the metrics are of the episodes from the start."""
    settings = {"old_log_probs": old, "importance_weights": "response", "reset_share": 0.5}
    trainer = ppo(make_venv(**{**TWO_TOKENS, **REFERENCES}), word_model, **settings)
    rollout = trainer.collect()
    batch = trainer.advantages(rollout)
    assert rollout.begun is not None
    fresh = rollout.begun == 0
    assert 0 < fresh.sum() < len(fresh)
    assert batch.metrics["score"] == pytest.approx(float(rollout.scores[fresh].mean()), abs=1e-6)
    assert batch.metrics["response_length"] == pytest.approx(float(rollout.lengths[fresh].float().mean()))
    assert batch.importance is not None
    assert batch.importance[rollout.response_mask.bool()] == pytest.approx(1, abs=1e-4)
    for name in ("old_log_probs", "values", "advantages", "rewards", "ref_log_probs"):
        assert getattr(batch, name)[rollout.response_mask == 0].eq(0).all(), name
    assert trainer.update(batch)["first_ratio_error"] < 1e-4


def test_it_goes_on_with_the_same_numbers(make_venv: MakeVenv, word_model: Path):
    venv = make_venv(**{**TWO_TOKENS, **REFERENCES})
    whole, half = (ppo(venv, word_model, reset_share=0.5) for _ in range(2))
    half.train(2)
    state = copy.deepcopy(half.state_dict())
    expected = half.train(1)[0]["reward"]
    whole.load_state_dict(state)
    assert whole.train(1)[0]["reward"] == expected


def test_what_cannot_be_is_refused(make_venv: MakeVenv, word_model: Path):
    with pytest.raises(ValueError, match=r"reset_share=0.5: prompts\[0\]='d e' has no references.*guide"):
        ppo(make_venv(**TWO_TOKENS), word_model, reset_share=0.5)
    environment = {**REFERENCES, "scorer": score, "responder": "echo", "turn_strings": ["a"]}
    with pytest.raises(ValueError, match=r"reset_share=0.5 begins inside.*this environment answers"):
        ppo(make_venv(**environment), word_model, reset_share=0.5)
    with pytest.raises(ValueError, match="reset_share=1.5 must be"):
        PPOConfig(reset_share=1.5)
    with pytest.raises(ValueError, match="reset_from='data' must be"):
        PPOConfig(reset_from="data")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'reset_share=0.5 must be 0 with learn_from="all"'):
        VinePPOConfig(reset_share=0.5, learn_from="all")
