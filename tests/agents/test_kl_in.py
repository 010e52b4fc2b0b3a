"""Where the KL penalty is: what tokens are charged and what is in the loss, against plain loops over prefixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor
from words import WORDS

from textgen_env.agents.advantages import masked_whiten, of_next_token, whitening_scale
from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.training.on_policy import Batch
from textgen_env.lm import log_probs
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 5},
    "masks": {"min_new_tokens": 3, "forbidden_tokens": ["<pad>", "b"]},
}


def make_ppo(make_venv: MakeVenv, source: Path, **settings: Any) -> PPO:
    env = {k: settings.pop(k) for k in ("temperature", "min_new_tokens", "forbidden_tokens") if k in settings}
    policy = ActorCritic(LanguageModel(source), PolicyConfig(lora_rank=settings.pop("lora_rank", 0)))
    defaults = {"episodes": 12, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2, "kl_coef": 0.3}
    return PPO(make_venv(**env), policy, PPOConfig(**{**defaults, "kl_in": "both", **settings}))


def kls_by_hand(ppo: PPO, batch: Batch, source: Path) -> Tensor:
    """(B, T) KL(π‖π_ref) before each response token: transformers' forward of the prefix, warped by sorting."""
    rollout, sampling = batch.rollout, ppo.sampling
    models = [ppo.policy.actor, LanguageModel(source).model]
    found = torch.zeros(rollout.rewards.shape)
    for row in range(len(rollout.texts)):
        allowed = rollout.masks(torch.tensor([row]))
        for k, t in enumerate(rollout.response_mask[row].nonzero().flatten().tolist()):
            with torch.no_grad():
                log_p, log_q = (m(rollout.input_ids[row : row + 1, :t]).logits[0, -1].double() for m in models)
            tokens = range(len(log_p)) if allowed is None else allowed[k].nonzero().flatten().tolist()
            log_p, log_q = ((x[list(tokens)] / sampling.temperature).log_softmax(0) for x in (log_p, log_q))
            order, mass, kept = log_p.argsort(descending=True).tolist(), 0.0, []
            for i in order[: sampling.top_k or None]:
                if mass < sampling.top_p:
                    kept.append(i)
                mass += float(log_p[i].exp())
            nucleus = log_p[kept] - log_p[kept].logsumexp(0)
            found[row, t] = float((nucleus.exp() * (nucleus - log_q[kept])).sum())
    return found


@pytest.mark.parametrize("sampling", SAMPLING)
def test_each_token_is_charged_the_kl_of_the_next_state(make_venv: MakeVenv, word_model: Path, sampling: str):
    """−β·γ·KL(s_{t+1}) in the reward of token t, nothing at the last; KL(s_t) in the loss, on whitening's scale."""
    ppo = make_ppo(make_venv, word_model, gamma=0.9, **SAMPLING[sampling])
    ppo.train(2)
    batch = ppo.advantages(ppo.collect())
    by_hand, mask = kls_by_hand(ppo, batch, word_model), batch.rollout.response_mask
    assert by_hand.max() > 0.01
    for row in range(len(batch.rollout.texts)):
        columns = mask[row].nonzero().flatten().tolist()
        charged = [0.9 * 0.3 * float(by_hand[row, t]) for t in columns[1:]] + [0.0]
        paid = (batch.rollout.rewards - batch.rewards)[row, columns]
        torch.testing.assert_close(paid, torch.tensor(charged), atol=1e-4, rtol=0)
    estimated = ppo.estimate(batch.rollout, kl_in="both")[0].advantages[mask.bool()]
    deviation = float(estimated.std(correction=0))
    for rows in batch.micro_batches:
        loss = float(ppo.loss(batch, rows)[1]["kl_loss"])
        assert loss == pytest.approx(float(by_hand[rows][mask[rows].bool()].mean()) / deviation, rel=2e-3)


def test_the_reward_and_the_loss_are_on_one_scale(make_venv: MakeVenv, word_model: Path):
    """What whitening multiplies the advantages by, it multiplies the loss's KL by; importance weights likewise."""
    ppo = make_ppo(make_venv, word_model, importance_weights="response", old_log_probs="scored")
    ppo.train(1)
    rollout = ppo.collect()
    rollout.sampled_log_probs[:6] += 0.05
    batch, mask = ppo.advantages(rollout), rollout.response_mask
    assert batch.importance is not None
    scale = 1 / ppo.estimate(rollout, kl_in="both")[0].advantages[mask.bool()].std(correction=0)
    torch.testing.assert_close(batch.kl_weight, batch.importance * scale, rtol=1e-4, atol=1e-5)
    assert batch.importance[mask.bool()].std() > 0.01


@pytest.mark.parametrize("mask", [{}, {"forbidden_tokens": ["<pad>", "b"]}])
def test_a_cut_from_outside_is_charged_the_kl_of_the_state_it_left(
    make_venv: MakeVenv, word_model: Path, mask: dict[str, Any]
):
    """With λ = 1 the return of the last token is its reward + γ·(V(s_T) − β·KL(s_T)), both by plain forwards."""
    ppo = make_ppo(make_venv, word_model, lam=1.0, gamma=0.9, **mask)
    ppo.train(2)
    rollout = ppo.collect()
    cut = torch.arange(12) % 2 == 0
    rollout.truncated, rollout.terminated, rollout.scored = cut, ~cut, ~cut
    batch, reference = ppo.advantages(rollout), LanguageModel(word_model).model
    allowed = [i for i, word in enumerate(WORDS) if word not in mask.get("forbidden_tokens", [])]
    for row in range(12):
        ids = rollout.input_ids[row : row + 1, : int(rollout.attention_mask[row].sum())]
        with torch.no_grad():
            states = ppo.policy.actor.model(input_ids=ids).last_hidden_state[:, -1]
            value = float(ppo.policy.value_head(states))
            own, other = (model(ids).logits[0, -1, allowed] for model in (ppo.policy.actor, reference))
        kl = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (own, other)))
        assert kl > 1e-3
        wanted = float(rollout.rewards[row, ids.shape[1] - 1]) + 0.9 * (value - 0.3 * float(kl)) * float(cut[row])
        assert batch.returns[row, ids.shape[1] - 1].item() == pytest.approx(wanted, abs=1e-4)


def test_without_kept_distributions_k1_of_the_next_token_is_charged(make_venv: MakeVenv, word_model: Path):
    ppo = make_ppo(make_venv, word_model, old_log_probs="sampled")
    ppo.train(2)
    batch = ppo.advantages(ppo.collect())
    assert batch.ref_log_probs is not None
    sampled = (batch.old_log_probs - batch.ref_log_probs) * 0.3
    for row, mask in enumerate(batch.rollout.response_mask.bool()):
        charged = torch.cat([sampled[row, mask][1:], torch.zeros(1)])
        torch.testing.assert_close((batch.rollout.rewards - batch.rewards)[row, mask], charged, atol=1e-6, rtol=0)
    assert ppo.update(batch)["kl_loss"] > 0


def test_adapters_switched_off_are_the_reference(make_venv: MakeVenv, word_model: Path, monkeypatch: Any):
    """As is a frozen copy; in whole and in chunks whose logits are made again in the backward pass."""
    ppo = make_ppo(make_venv, word_model, lora_rank=4)
    ppo.train(2)
    batch = ppo.advantages(ppo.collect())
    gradients = []
    for chunk in (1024, 5):
        monkeypatch.setattr(log_probs, "TOKENS_PER_CHUNK", chunk)
        ppo._gradient(batch, batch.micro_batches)
        gradients.append(torch.cat([master.grad.flatten() for master in ppo.optimizer.masters]))
        ppo.optimizer.zero_grad()
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    rows, untrained = batch.micro_batches[0], LanguageModel(word_model)
    frozen = ActorCritic(untrained).reference().logits(batch.rollout.rows(rows))
    found = ppo.policy(batch.rollout.rows(rows), ref_logits=frozen).kl
    torch.testing.assert_close(ppo.evaluate(batch.rollout, rows, with_kl=True).kl, found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [True, False])
def test_the_reference_reads_a_rollout_once(make_venv: MakeVenv, word_model: Path, monkeypatch: Any, apart: bool):
    """Each text in one pass, whatever the epochs; each pass anew if the model makes logits and nothing but."""
    if not apart:
        monkeypatch.setattr(log_probs, "split", lambda model: None)
    ppo, read = make_ppo(make_venv, word_model, epochs=3), []
    batch = ppo.advantages(ppo.collect())
    first = float(ppo.loss(batch, batch.micro_batches[0])[1]["kl_loss"])
    assert ppo.reference is not None
    body = ppo.reference.model if not apart else ppo.reference.model.model
    body.register_forward_hook(lambda _, __, output: read.append(len(output.last_hidden_state if apart else output[0])))
    batch = ppo.advantages(batch.rollout)
    assert sum(read) == 12
    ppo.update(batch)
    assert sum(read) == (12 if apart else 48)
    ppo.update(ppo.advantages(ppo.collect()))
    assert sum(read) == (24 if apart else 96)
    assert first == pytest.approx(0, abs=1e-6)


def test_the_next_token_is_the_agents_own():
    """Text between two tokens that the agent did not write is skipped, whatever stands there."""
    x = torch.tensor([[9.0, 1.0, torch.nan, 2.0, 3.0], [4.0, 9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]])
    wanted = [[0.0, 2.0, 0.0, 3.0, 0.0], [0.0] * 5]
    assert of_next_token(x, mask).tolist() == wanted


def test_the_scale_of_whitening():
    x, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]])
    assert whitening_scale(x, mask).item() == pytest.approx(1.0)
    torch.testing.assert_close(masked_whiten(3 * x, mask), 3 * (x - 2) * mask * whitening_scale(3 * x, mask))
