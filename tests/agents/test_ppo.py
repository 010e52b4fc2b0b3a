"""Token-level PPO in the real environment: ratios of exactly 1, gradients, resumption, and tasks that it must solve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, NonFiniteError, PPOConfig
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def make_ppo(venv: gym.vector.VectorEnv, source: Path, dtype: str = "float32", **settings: Any) -> PPO:
    lora_rank, critic = settings.pop("lora_rank", 0), settings.pop("critic", "shared")
    policy = ActorCritic(LanguageModel(source, dtype=dtype), PolicyConfig(lora_rank=lora_rank, critic=critic))
    defaults = {"episodes": 12, "epochs": 2, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}
    return PPO(venv, policy, PPOConfig(**{**defaults, **settings}))


SAMPLING = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "reference_top_k": {"reference_top_k": 5},
    "masks": {"min_new_tokens": 3, "forbidden_tokens": ["<pad>", "b"]},
    "all": {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_new_tokens": 2},
}


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_the_first_ratio_is_exactly_one(make_venv: MakeVenv, word_model: Path, sampling, dtype, lora_rank):
    """Old and new log-probs come from the same kind of forward: before the first step nothing has moved at all."""
    options = dict(SAMPLING[sampling])
    agent = {key: options.pop(key) for key in ("top_k", "top_p") if key in options}
    ppo = make_ppo(make_venv(**options), word_model, dtype, lora_rank=lora_rank, **agent)
    ppo.train(1)  # so that adapters and masters have moved away from their start
    batch = ppo.advantages(ppo.collect())
    for rows in batch.micro_batches:
        _, parts = ppo.loss(batch, rows)
        assert parts["ratio_error"] == 0
        assert parts["approx_kl"] == 0
    assert ppo.update(batch)["first_ratio_error"] == 0


def test_it_trains_under_a_wrapper_that_masks(make_venv: MakeVenv, word_model: Path):
    """Where a wrapper forbids "a", which alone pays, none is drawn; ratios stay 1, and the KL is that of masks."""

    class Without(gym.vector.VectorWrapper):
        def action_masks(self, slots: Any = None) -> Any:
            masks = self.env.action_masks(slots)  # type: ignore[attr-defined]
            masks[:, 3] = False
            return masks

    ppo = make_ppo(Without(make_venv()), word_model, kl_coef=0.1)
    rollout = ppo.collect()
    assert not (rollout.input_ids[rollout.response_mask.bool()] == 3).any()
    batch = ppo.advantages(rollout)
    for rows in batch.micro_batches:
        assert ppo.loss(batch, rows)[1]["ratio_error"] == 0
    assert batch.metrics["kl_per_token"] == pytest.approx(0, abs=1e-6)  # the policy is still the reference
    assert ppo.update(batch)["first_ratio_error"] == 0


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_minibatch(make_venv: MakeVenv, word_model: Path):
    """The mean is over tokens, not over micro-batches: rows of different lengths weigh by their tokens."""
    gradients = []
    for micro_batch_size in (12, 3, 1):
        ppo = make_ppo(make_venv(), word_model, minibatch_size=12, micro_batch_size=micro_batch_size, entropy_coef=0.01)
        batch = ppo.advantages(ppo.collect())
        ppo._gradient(batch, batch.micro_batches)
        gradients.append(torch.cat([master.grad.flatten() for master in ppo.optimizer.masters]))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kl_in", ["reward", "loss", "both"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_the_gradient_of_the_whole_loss_equals_finite_differences(make_venv: MakeVenv, word_model: Path, kl_in, critic):
    """The slope of the full objective along its own gradient, after an update, so that ratios and clips are at work."""
    ppo = make_ppo(make_venv(), word_model, kl_in=kl_in, critic=critic, entropy_coef=0.02, kl_coef=0.1, value_coef=0.5)
    batch = ppo.advantages(ppo.collect())
    ppo.update(batch)
    ppo.policy.double()  # the head's output is rounded to float32 all the same, which bounds the accuracy here
    params = [p for p in ppo.policy.parameters() if p.requires_grad]
    for rows in batch.micro_batches:
        loss, parts = ppo.loss(batch, rows)
        grads = torch.autograd.grad(loss, params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        numeric = numeric_slope(ppo, batch, rows, params, [g / norm for g in grads])
        assert parts["ratio_error"] > 0.01
        assert numeric == pytest.approx(norm.item(), rel=5e-3)


@torch.no_grad()
def numeric_slope(ppo, batch, rows, params, direction, step=3e-5):  # short, since clips have corners
    losses = []
    for shift in (step, -2 * step):  # to +step, then to −step
        for param, d in zip(params, direction, strict=True):
            param.add_(shift * d)
        losses.append(float(ppo.loss(batch, rows)[0]))
    for param, d in zip(params, direction, strict=True):
        param.add_(step * d)
    return (losses[0] - losses[1]) / (2 * step)


def test_kl_in_the_reward_is_k1_per_token_by_hand(make_venv: MakeVenv, word_model: Path):
    """Rewards = the environment's − β·(log π − log π_ref), with both log-probs recomputed one sequence at a time."""
    ppo = make_ppo(make_venv(temperature=0.8), word_model, kl_coef=0.3)
    ppo.train(2)
    rollout = ppo.collect()
    batch = ppo.advantages(rollout)
    untrained = LanguageModel(word_model).model
    for row in range(len(rollout.texts)):
        length = int(rollout.attention_mask[row].sum())
        ids = rollout.input_ids[row : row + 1, :length]
        for t in rollout.response_mask[row].nonzero().flatten().tolist():
            with torch.no_grad():
                log_probs = [
                    (model(ids[:, :t]).logits[0, -1] / 0.8).log_softmax(-1)[ids[0, t]].item()
                    for model in (ppo.policy.actor, untrained)
                ]
            assert batch.old_log_probs[row, t].item() == pytest.approx(log_probs[0], abs=1e-4)
            assert batch.ref_log_probs[row, t].item() == pytest.approx(log_probs[1], abs=1e-4)
            paid = rollout.rewards[row, t].item() - 0.3 * (log_probs[0] - log_probs[1])
            assert batch.rewards[row, t].item() == pytest.approx(paid, abs=1e-4)
    assert batch.metrics["kl_per_response"] != 0
    total = (batch.old_log_probs - batch.ref_log_probs)[rollout.response_mask.bool()].sum().item()
    assert batch.metrics["kl_per_response"] == pytest.approx(total / len(rollout.texts), rel=1e-4)


def test_the_reference_is_the_same_frozen_or_with_the_adapter_off(make_venv: MakeVenv, word_model: Path):
    full, lora = (make_ppo(make_venv(), word_model, lora_rank=rank) for rank in (0, 4))
    for ppo in (full, lora):
        ppo.train(2)
    rollout = full.collect()
    rows = torch.arange(len(rollout.texts))
    frozen, switched = (ppo.reference(rollout.rows(rows)) for ppo in (full, lora))
    torch.testing.assert_close(frozen, switched)
    torch.testing.assert_close(frozen, make_ppo(make_venv(), word_model).reference(rollout.rows(rows)))
    moved = lora.policy(rollout.rows(rows)).log_probs
    assert (moved - switched).abs().max() > 1e-3


class CutFromOutside(gym.vector.VectorWrapper):
    """Truncates every response at its second token, unscored."""

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        cut = (observations["response_mask"].sum(axis=1) >= 2) & ~terminated
        return observations, rewards, terminated, truncated | cut, infos


@pytest.mark.filterwarnings("ignore:.*max_new_tokens:UserWarning")
@pytest.mark.parametrize("case", ["terminate", "truncate", "outside"])
def test_only_a_cut_without_a_score_is_bootstrapped(case: str, make_venv: MakeVenv, word_model: Path):
    """With λ=1 the return of the last token is its reward, plus V of the final state if it was cut unscored."""
    for length_limit in ["terminate" if case == "outside" else case]:
        venv = make_venv(length_limit=length_limit, max_new_tokens=3)
        ppo = make_ppo(CutFromOutside(venv) if case == "outside" else venv, word_model, lam=1.0, kl_coef=0.0)
        torch.nn.init.normal_(ppo.policy.value_head.out.weight, generator=torch.Generator().manual_seed(0))
        rollout = ppo.collect()
        batch = ppo.advantages(rollout)
        assert rollout.truncated.any() == (case != "terminate")
        assert rollout.bootstrapped.any() == (case == "outside")
        for row in range(len(rollout.texts)):
            length = int(rollout.attention_mask[row].sum())
            with torch.no_grad():
                body = ppo.policy.actor.model(input_ids=rollout.input_ids[row : row + 1, :length]).last_hidden_state
                value = ppo.policy.value_head(body[0, -1]).item()
            expected = rollout.rewards[row, length - 1].item() + (
                value if case == "outside" and rollout.truncated[row] else 0.0
            )
            assert batch.returns[row, length - 1].item() == pytest.approx(expected, abs=1e-4)


def test_values_start_at_the_mean_return(make_venv: MakeVenv, word_model: Path):
    """γ = 1/2: a response of n tokens and score r has the returns r·(1, 1/2, …, 1/2^(n−1)) read backwards."""
    ppo = make_ppo(make_venv(), word_model, gamma=0.5, kl_coef=0.0)
    rollout = ppo.collect()
    pairs = zip(rollout.scores.tolist(), rollout.lengths.tolist(), strict=True)
    returns = [score * 0.5**k for score, length in pairs for k in range(length)]
    batch = ppo.advantages(rollout)
    start = sum(returns) / len(returns)
    assert start > 0
    torch.testing.assert_close(batch.values, start * rollout.response_mask)
    ppo.update(batch)
    bias = ppo.policy.value_head.out.bias.item()
    ppo.advantages(ppo.collect())
    assert ppo.policy.value_head.out.bias.item() == bias, "later rollouts leave it to the optimiser"


def test_the_critic_explains_what_can_be_known(make_venv: MakeVenv, word_model: Path):
    """The score follows from the prompt alone, so a critic that reads it can explain nearly all variance."""

    def by_prompt(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
        return [{"a b": 0.2, "c d e": 0.9, "f": 0.5}[prompt] for prompt in prompts]

    settings = {"episodes": 48, "minibatch_size": 16, "micro_batch_size": 16, "lr": 1e-4, "kl_coef": 0.0}
    history = make_ppo(make_venv(num_envs=16, scorer=by_prompt), word_model, value_lr=3e-3, **settings).train(18)
    assert history[0]["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["explained_variance"] > 0.7


def test_adaptive_coefficient_follows_the_kl_of_whole_responses(make_venv: MakeVenv, word_model: Path):
    """β ← β·(1 + clip(KL/target − 1, ±.2)·n/horizon) with n = 12 responses and horizon 120."""
    ppo = make_ppo(make_venv(), word_model, kl_coef=0.1, adaptive_kl_target=0.01, kl_horizon=120)
    metrics = ppo.train(3)
    expected = 0.1
    for entry in metrics:
        assert entry["kl_coef"] == pytest.approx(expected)
        expected *= 1 + min(max(entry["kl_per_response"] / 0.01 - 1, -0.2), 0.2) * 12 / 120
    assert ppo.kl.value == pytest.approx(expected)


def test_early_stop_takes_no_step_beyond_the_target(make_venv: MakeVenv, word_model: Path):
    ppo = make_ppo(make_venv(), word_model, epochs=10, target_kl=1e-4, lr=3e-2)
    metrics = ppo.train(1)[0]
    assert metrics["early_stop"] == 1
    assert 1 <= metrics["optimizer_steps"] < 30
    assert all(master.grad is None for master in ppo.optimizer.masters)


def test_ptx_raises_the_likelihood_of_given_texts(make_venv: MakeVenv, word_model: Path):
    def likelihood(ppo: PPO) -> float:
        ids = torch.tensor([ppo.policy.language_model.encode("j k l m")])
        return float(ppo.policy.language_model.log_probs(ids, torch.ones_like(ids)).sum())

    policy = ActorCritic(LanguageModel(word_model))
    config = PPOConfig(episodes=8, minibatch_size=8, micro_batch_size=8, lr=1e-2, ptx_coef=1.0)
    ppo = PPO(make_venv(), policy, config, ptx_texts=["j k l m"])
    before, metrics = likelihood(ppo), ppo.train(8)
    assert likelihood(ppo) > before + 1
    assert metrics[-1]["ptx_loss"] < metrics[0]["ptx_loss"]
    with pytest.raises(ValueError, match="ptx_texts"):
        PPO(make_venv(), ActorCritic(LanguageModel(word_model)), config)


def test_frozen_layers_stay_and_the_rest_moves(make_venv: MakeVenv, word_model: Path):
    policy = ActorCritic(LanguageModel(word_model), PolicyConfig(frozen_layers=1))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    PPO(make_venv(), policy, PPOConfig(episodes=8, minibatch_size=8, micro_batch_size=8, lr=1e-2)).train(2)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert not any("layers.0." in name or "embed_tokens" in name for name in moved)
    assert any("layers.1." in name for name in moved)


def test_what_is_not_finite_is_named_and_no_step_is_taken(make_venv: MakeVenv, word_model: Path):
    ppo = make_ppo(make_venv(), word_model, minibatch_size=12, micro_batch_size=12)
    ppo.train(1)
    batch = ppo.advantages(ppo.collect())
    before = [master.clone() for master in ppo.optimizer.masters]
    batch.advantages[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss is not finite in update 2"):
        ppo.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.optimizer.masters, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"minibatch_size": 6, "micro_batch_size": 4}, "micro_batch_size=4 must divide"),
        ({"kl_in": "somewhere"}, "kl_in='somewhere'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)


@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_is_solved(make_venv: MakeVenv, word_model: Path, seed):
    """One token, reward 1 for the word "g": found and held within 15 updates."""

    def is_g(completions: list[str], **_: Any) -> list[float]:
        return [float(text.strip() == "g") for text in completions]

    venv = make_venv(num_envs=32, prompts=["a"], scorer=is_g, max_new_tokens=1)
    policy = ActorCritic(LanguageModel(word_model))
    config = PPOConfig(episodes=64, epochs=4, minibatch_size=32, micro_batch_size=32, lr=1e-2, kl_coef=0.0)
    history = PPO(venv, policy, config, seed=seed, total_updates=15).train(15)
    assert history[0]["score"] < 0.3
    assert history[-1]["score"] > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_task_is_solved(make_venv: MakeVenv, word_model: Path, seed):
    """Copy the three words of the prompt, one third of a point each: the answer depends on the state."""

    def copied(completions: list[str], *, prompts: list[str], **_: Any) -> list[float]:
        pairs = ((text.split(), prompt.split()) for text, prompt in zip(completions, prompts, strict=True))
        return [sum(a == b for a, b in zip(ours, theirs, strict=False)) / 3 for ours, theirs in pairs]

    prompts = ["a b c", "b c a", "c a b", "a a b"]
    venv = make_venv(num_envs=32, prompts=prompts, scorer=copied, max_new_tokens=3)
    policy = ActorCritic(LanguageModel(word_model))
    config = PPOConfig(episodes=96, epochs=4, minibatch_size=32, micro_batch_size=32, lr=2e-3, kl_coef=0.0)
    config.entropy_coef = 0.03
    history = PPO(venv, policy, config, seed=seed, total_updates=40).train(40)
    assert history[0]["score"] < 0.3
    assert history[-1]["score"] > 0.9
