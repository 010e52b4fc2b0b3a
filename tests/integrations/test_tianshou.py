"""Tianshou: its collector over the vector environment, masks, exact KL in the buffer, PPO learns. Needs tianshou."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("tianshou")

from load_example import load_example, run_page
from small_task import EOS, batched
from tianshou.algorithm.algorithm_base import policy_within_training_step
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, Reinforce
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer

import textgen_env  # noqa: F401
from textgen_env import LanguageModel
from textgen_env.integrations.networks import LMHead
from textgen_env.integrations.tianshou import KLPenaltyHook, PolicyNetwork, TianshouVectorEnv, ValueNetwork
from textgen_env.wrappers import VectorLMFeatures, VectorTopKActions

pytestmark = pytest.mark.heavy


def uniform(env: TianshouVectorEnv) -> DiscreteActorPolicy:
    """A policy that gives every allowed token the same probability."""
    space = env.get_env_attr("action_space")[0]
    network = torch.nn.Linear(env.get_env_attr("observation_space")[0].shape[0], int(space.n))
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.zeros_(network.bias)
    return DiscreteActorPolicy(actor=PolicyNetwork(network), action_space=space)


def test_slots_are_stepped_and_reset_by_number(task: dict[str, Any]) -> None:
    env = TianshouVectorEnv(batched(task))
    env.seed(3)
    observations, infos = env.reset()
    assert len(env) == 3
    assert [info["env_id"] for info in infos] == [0, 1, 2]
    assert observations[0].keys() == {"input_ids", "attention_mask", "response_mask"}
    again = TianshouVectorEnv(batched(task)).reset(seed=3)[0]
    assert all((one["input_ids"] == two["input_ids"]).all() for one, two in zip(observations, again, strict=True))
    observations, rewards, terminated, truncated, infos = env.step(np.array([EOS, 100, 100]))
    assert terminated.tolist() == [True, False, False]
    assert not truncated.any()
    env.reset([0])
    observations, rewards, _, _, infos = env.step(np.array([100, EOS]), id=[0, 1])
    assert [observation["response_mask"].sum() for observation in observations] == [1, 2]
    assert rewards.tolist() == [0.0, 1.0]
    assert [info["score"] for info in infos] == [0.0, 1.0]
    observations, rewards, terminated, _, infos = env.step(np.array([EOS]), id=[2])  # it was left out of one step
    assert observations[0]["response_mask"].sum() == 2
    assert rewards.tolist() == [infos[0]["score"]] == [1.0]
    assert terminated.tolist() == [True]
    env.reset([1])
    observations, *_ = env.step(np.array([101]), id=[1])
    assert [slot.sum() for slot in env.core.engine.episodes.response_mask] == [1, 1, 2]


def test_what_slots_left_alone_wrote_never_reaches_the_scorer(task: dict[str, Any]) -> None:
    """Seven episodes on three slots: the scorer sees seven texts, and the buffer has those scores."""
    seen: list[str] = []

    def scorer(completions: list[str], **_: Any) -> list[float]:
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    env = TianshouVectorEnv(VectorLMFeatures(batched({**task, "scorer": scorer})))
    collector = Collector(uniform(env), env, VectorReplayBuffer(120, 3))
    collector.reset()
    collector.collect(n_episode=7)
    data = collector.buffer.sample(0)[0]
    assert len(seen) == data.done.sum() == 7
    assert sorted(data.rew[data.done].tolist()) == sorted(float(len(text)) for text in seen)


@pytest.mark.parametrize("amount", [{"n_step": 60}, {"n_episode": 7}])
def test_the_collector_gets_whole_episodes(task: dict[str, Any], amount: dict[str, int]) -> None:
    env = TianshouVectorEnv(VectorLMFeatures(batched(task)))
    collector = Collector(uniform(env), env, VectorReplayBuffer(120, 3))
    collector.reset()
    stats = collector.collect(**amount)
    data = collector.buffer.sample(0)[0]
    assert len(data) == stats.n_collected_steps
    assert data.obs.shape == (len(data), 33)
    assert stats.n_collected_episodes == data.done.sum()
    if "n_episode" in amount:
        assert stats.n_collected_episodes == 7
    np.testing.assert_allclose(data.rew, data.info.score)  # no KL was asked for
    assert (data.rew[~data.done] == 0).all()
    env.close()


def test_a_scored_cut_is_an_end(task: dict[str, Any]) -> None:
    """Tianshou's returns go on with the value behind a cut; here a value of 100 must not get in."""
    limits = {"length_limit": "truncate", "max_new_tokens": 3, "forbidden_tokens": [EOS]}
    env = TianshouVectorEnv(VectorLMFeatures(batched({**task, **limits})), masks=True)
    policy = uniform(env)
    collector = Collector(policy, env, VectorReplayBuffer(120, 3))
    collector.reset()
    collector.collect(n_step=90)
    batch, indices = collector.buffer.sample(0)
    assert batch.terminated.sum() == 30
    assert not batch.truncated.any()
    hundred = np.full(len(batch), 100.0)
    algorithm = Reinforce(policy=policy, optim=AdamOptimizerFactory())
    returns, _ = algorithm.compute_episodic_return(
        batch, collector.buffer, indices, v_s_=hundred, v_s=hundred, gamma=1.0, gae_lambda=1.0
    )
    np.testing.assert_allclose(returns, np.repeat(batch.info.score[batch.done], 3))


def test_masked_tokens_are_never_sampled(task: dict[str, Any]) -> None:
    tokens = batched({**task, "min_new_tokens": 3, "forbidden_tokens": list(range(5, 259))})
    env = TianshouVectorEnv(VectorLMFeatures(tokens), masks=True)
    collector = Collector(uniform(env), env, VectorReplayBuffer(300, 3))
    collector.reset()
    collector.collect(n_step=150)
    data = collector.buffer.sample(0)[0]
    assert (data.act < 5).all()
    assert data.obs.mask[np.arange(len(data)), data.act].all()
    early = data.obs.obs[:, -1] > 1 - 2.5 / 5  # fewer than three tokens written
    assert not (data.act[early] == EOS).any()
    assert (data.act[~early] == EOS).any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_buffer_holds_the_exact_kl(task: dict[str, Any], estimator: str) -> None:
    """Against plain forwards of transformers, for a policy that is uniform over the vocabulary."""
    env = TianshouVectorEnv(VectorLMFeatures(batched({**task, "kl_coef": 0.3, "kl_estimator": estimator})))
    policy = uniform(env)
    states = []
    collector = Collector(policy, env, VectorReplayBuffer(60, 3), on_step_hook=KLPenaltyHook(env))
    collector.reset()
    step = env.env.step

    def remember(actions: np.ndarray) -> Any:
        states.append(env.core.engine.episodes.observation())
        return step(actions)

    env.env.step = remember
    collector.collect(n_step=30)
    data = collector.buffer[np.concatenate([np.arange(10), 20 + np.arange(10), 40 + np.arange(10)])]
    reference = LanguageModel(task["reference"])
    vocab = reference.vocab_size
    for slot in range(3):
        for at in range(10):
            row = data[slot * 10 + at]
            state = {key: value[slot] for key, value in states[at].items()}
            ids = torch.from_numpy(state["input_ids"][None, : state["attention_mask"].sum()])
            with torch.no_grad():
                ref = reference.model(ids).logits[0, -1, :vocab].double().log_softmax(-1)[int(row.act)].item()
            log_ratio = ref + np.log(vocab)
            kl = {"k1": -log_ratio, "k3": np.exp(log_ratio) - 1 - log_ratio}[estimator]
            assert row.rew == pytest.approx(row.info.score - 0.3 * kl, abs=1e-5)


def test_the_head_of_the_reference_starts_with_kl_zero_and_top_k_has_its_own_reference(task: dict[str, Any]) -> None:
    tokens = batched({**task, "kl_coef": 0.3, "temperature": 0.8})
    env = TianshouVectorEnv(VectorLMFeatures(tokens))
    policy = DiscreteActorPolicy(actor=PolicyNetwork(LMHead.of(tokens)), action_space=env.action_space[0])
    collector = Collector(policy, env, VectorReplayBuffer(60, 3), on_step_hook=KLPenaltyHook(env))
    collector.reset()
    collector.collect(n_step=30)
    data = collector.buffer.sample(0)[0]
    np.testing.assert_allclose(data.rew, data.info.score, atol=1e-5)
    single = TianshouVectorEnv(VectorTopKActions(VectorLMFeatures(batched({**task, "kl_coef": 0.3})), 1))
    assert single.action_space[0].n == 1
    collector = Collector(uniform(single), single, VectorReplayBuffer(60, 3), on_step_hook=KLPenaltyHook(single))
    collector.reset()
    collector.collect(n_step=30)
    data = collector.buffer.sample(0)[0]
    np.testing.assert_allclose(data.rew, data.info.score, atol=1e-5)  # one action: nothing to differ in


def test_dqn_masks_by_itself(task: dict[str, Any]) -> None:
    tokens = batched({**task, "forbidden_tokens": list(range(5, 259))})  # five tokens for eight ranks
    env = TianshouVectorEnv(VectorTopKActions(VectorLMFeatures(tokens), 8), masks=True)
    policy = DiscreteQLearningPolicy(
        model=PolicyNetwork(torch.nn.Linear(33, 8)), action_space=env.action_space[0], eps_training=0.5
    )
    collector = Collector(policy, env, VectorReplayBuffer(300, 3), exploration_noise=True)
    collector.reset()
    with policy_within_training_step(policy):
        collector.collect(n_step=90)
    assert (collector.buffer.sample(0)[0].act < 5).all()


def test_networks_read_tianshous_masked_observations() -> None:
    network = torch.nn.Linear(3, 2, bias=False)
    features, mask = np.ones((4, 3)), np.array([[True, False]] * 4)
    logits, state = PolicyNetwork(network)(Batch(obs=features, mask=mask), state="kept")
    assert state == "kept"
    assert logits[:, 1].tolist() == [-np.inf] * 4
    torch.testing.assert_close(PolicyNetwork(network)(features)[0][:, 0], logits[:, 0])
    torch.testing.assert_close(ValueNetwork(network)(Batch(obs=features, mask=mask)), ValueNetwork(network)(features))


def test_what_cannot_work_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SameStep' must be \"Disabled\""):
        TianshouVectorEnv(gym.make_vec("textgen/TextGen-v0", num_envs=2, **task))
    with pytest.raises(ValueError, match="kl_estimator='full'"):
        KLPenaltyHook(TianshouVectorEnv(batched({**task, "kl_coef": 0.1, "kl_estimator": "full"})))


@pytest.mark.parametrize("seed", range(3))
def test_ppo_learns(seed: int) -> None:
    before, after = load_example("tianshou_ppo").main(seed=seed)
    assert after > before + 0.15


def test_the_page_in_the_docs_runs(tmp_path: Any) -> None:
    run_page("integrations_tianshou", tmp_path)
