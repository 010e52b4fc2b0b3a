"""The KL penalty under Stable-Baselines3: in its buffer, in its log, and beside the native trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from sb3_setup import Snapshot, make, ppo
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO as NativePPO
from textgen_env.agents.ppo import PPOConfig
from textgen_env.agents.rollout import Rollout
from textgen_env.integrations.sb3 import KLPenaltyCallback, SB3VecEnv
from textgen_env.kl import AdaptiveKLCoefficient
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.wrappers import VectorLMFeatures, VectorTopKActions

BETA = 0.3


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_rewards_in_the_buffer_are_those_of_the_bound_policy_and_of_a_teacher_forced_pass(
    arguments: dict[str, Any], estimator: str
) -> None:
    model, snapshot = ppo(make(arguments), arguments["model"]), Snapshot()
    model.env.seed(7)  # type: ignore[union-attr]
    model.learn(48, callback=[KLPenaltyCallback(BETA, kl_estimator=estimator), snapshot])
    rewards, actions = snapshot.columns["rewards"], snapshot.columns["actions"][..., 0]
    assert any(snapshot.columns["episode_starts"][1:].any(axis=0))  # some ended, and their KL came with final_info

    policy = LanguageModel(arguments["model"])  # what the policy was in the rollout
    bound = TextGenVectorEnv(4, **arguments, kl_coef=BETA, kl_estimator=estimator)
    bound.bind_policy(policy)
    bound.reset(seed=7)
    paid = np.stack([bound.step(row)[1] for row in actions])
    np.testing.assert_allclose(rewards, paid, atol=1e-5)

    free = TextGenVectorEnv(4, **arguments)  # the score alone
    free.reset(seed=7)
    scores = np.stack([free.step(row)[1] for row in actions])
    reference = LanguageModel(arguments["reference"])
    for slot in range(4):
        starts = np.flatnonzero(snapshot.columns["episode_starts"][:, slot])
        for begin, end in zip(starts, [*starts[1:], 12], strict=True):
            observation = {key: value[begin, slot] for key, value in snapshot.observations.items()}
            prompt = observation["input_ids"][observation["attention_mask"] == 1].tolist()
            ids = torch.tensor([prompt + actions[begin:end, slot].tolist()])
            log_p, log_q = (
                lm.log_probs(ids, torch.ones_like(ids))[0, len(prompt) :].double().numpy() for lm in (policy, reference)
            )
            ratio = log_p - log_q
            kl = {"k1": ratio, "k2": ratio**2 / 2, "k3": np.exp(-ratio) - 1 + ratio}[estimator]
            np.testing.assert_allclose(rewards[begin:end, slot], scores[begin:end, slot] - BETA * kl, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rewards_in_the_buffer_are_those_of_the_native_trainer(arguments: dict[str, Any], temperature: float) -> None:
    """The same prompts and tokens, played once more on an environment that `agents.ppo.PPO` then scores by itself."""
    arguments |= {"temperature": temperature}
    snapshot = Snapshot()
    model = ppo(make(arguments), arguments["model"], policy_kwargs={"temperature": temperature})
    model.env.seed(7)  # type: ignore[union-attr]
    model.learn(48, callback=[KLPenaltyCallback(BETA), snapshot])

    venv = TextGenVectorEnv(4, **arguments, autoreset_mode=AutoresetMode.DISABLED)
    policy = ActorCritic(LanguageModel(arguments["model"]))  # what the policy was in the rollout
    native = NativePPO(venv, policy, PPOConfig(kl_coef=BETA, micro_batch_size=4), seed=7)
    venv.unwrapped.delegate_kl(report_ref_logprob=False)
    venv.reset(seed=7)
    texts, rows = played_again(venv, snapshot)
    assert texts.terminated.sum() > 4  # some slots played several
    batch = native.advantages(texts)
    assert (batch.rewards != texts.rewards)[texts.response_mask.bool()].all()  # every token paid KL
    for row, (slot, steps) in enumerate(rows):
        ours = batch.rewards[row][texts.response_mask[row].bool()]
        np.testing.assert_allclose(ours, snapshot.columns["rewards"][steps, slot], atol=1e-5)


def played_again(venv: TextGenVectorEnv, snapshot: Snapshot) -> tuple[Rollout, list[tuple[int, slice]]]:
    """The tokens of SB3's buffer as the native trainer's rollout; the slot and the steps of each of its rows.

    The environment was seeded as SB3's was, so that its slots draw the same prompts.
    """
    observation, rows, finals, paid = venv.engine.episodes.observation(), [], [], []
    rewards, begin = np.zeros((12, 4)), np.zeros(4, dtype=int)
    for step, actions in enumerate(snapshot.columns["actions"][..., 0]):
        for key, values in snapshot.observations.items():
            np.testing.assert_array_equal(values[step], observation[key])
        observation, rewards[step], terminated, _, _ = venv.step(actions)
        ended = terminated | (step == 11)  # the rollout's end cuts what is in flight
        for slot in np.flatnonzero(ended).tolist():
            rows.append((slot, slice(int(begin[slot]), step + 1)))
            finals.append({key: torch.from_numpy(value[slot].astype(np.int64)) for key, value in observation.items()})
            paid.append((rewards[rows[-1][1], slot], bool(terminated[slot])))
        begin[ended] = step + 1
        if terminated.any():
            observation, _ = venv.reset(options={"reset_mask": terminated})
    response = torch.stack([final["response_mask"] for final in finals])
    tokens = torch.tensor(np.concatenate([values for values, _ in paid]), dtype=torch.float32)
    finished = torch.tensor([end for _, end in paid])
    texts = Rollout(
        tokens=TokenBatch(*(torch.stack([final[key] for final in finals]) for key in TokenBatch._fields)),
        rewards=torch.zeros(response.shape).masked_scatter(response.bool(), tokens),
        sampled_log_probs=torch.zeros(response.shape),
        terminated=finished,
        truncated=~finished,
        scores=torch.zeros(len(rows)),
        prompts=[""] * len(rows),
        texts=[""] * len(rows),
        finish_reasons=[""] * len(rows),
        action_masks=None,
    )
    return texts, rows


class Log(BaseCallback):
    """Keeps what is logged at each rollout's end."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rows.append(dict(self.logger.name_to_value))


def test_logged_kl_is_raw_and_the_coefficient_adapts(arguments: dict[str, Any]) -> None:
    coefficient, log = AdaptiveKLCoefficient(BETA, target=1e-3, horizon=10), Log()
    model = ppo(make(arguments | {"max_new_tokens": 1}), arguments["model"])  # one token per response: all end
    snapshot = Snapshot()
    model.learn(48, callback=[KLPenaltyCallback(coefficient), log, snapshot])
    row = log.rows[0]
    assert row["kl/coef"] == BETA
    assert row["kl/per_response"] == pytest.approx(row["kl/per_token"])
    assert row["kl/penalty_per_response"] == pytest.approx(BETA * row["kl/per_response"])
    assert row["kl/per_token_k3"] > 0
    assert row["rollout/response_length"] == 1
    shaped = snapshot.columns["rewards"].mean()
    assert shaped == pytest.approx(row["rollout/score"] - row["kl/penalty_per_response"], abs=1e-5)
    assert coefficient.value == pytest.approx(BETA * 1.2)  # 48 responses, above the target: the full step


def test_kl_of_ranks_is_relative_to_the_restricted_reference(arguments: dict[str, Any]) -> None:
    """A policy that has all its mass on rank 0 of 1 differs in nothing from the reference's only choice."""
    venv = SB3VecEnv(VectorLMFeatures(VectorTopKActions(TextGenVectorEnv(4, **arguments), 1)))
    log = Log()
    PPO("MlpPolicy", venv, n_steps=8, batch_size=32, device="cpu").learn(32, callback=[KLPenaltyCallback(1.0), log])
    assert log.rows[0]["kl/per_token"] == pytest.approx(0, abs=1e-6)


def test_kl_callback_works_on_sb3s_own_vectorised_environments(arguments: dict[str, Any]) -> None:
    """The same seeds and the same sampling give the same rewards, whoever batches."""
    found = []
    for venv in (make(arguments, 2), DummyVecEnv([lambda: Monitor(TextGenEnv(**arguments))] * 2)):
        snapshot = Snapshot()
        ppo(venv, arguments["model"], batch_size=8).learn(24, callback=[KLPenaltyCallback(BETA), snapshot])
        found.append(snapshot.columns)
    np.testing.assert_array_equal(found[0]["actions"], found[1]["actions"])
    np.testing.assert_allclose(found[0]["rewards"], found[1]["rewards"], atol=1e-5)


def test_kl_callback_complains(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="full_kl"):
        KLPenaltyCallback(0.1, kl_estimator="full")
    with pytest.raises(ValueError, match=r"temperature=1\.0 of the policy differs from the environment's 0\.5"):
        ppo(make(arguments | {"temperature": 0.5}), arguments["model"]).learn(48, callback=KLPenaltyCallback(0.1))
    venv = SB3VecEnv(VectorLMFeatures(VectorTopKActions(TextGenVectorEnv(2, **arguments), 4)))
    with pytest.raises(ValueError, match="DQN keeps no log-probabilities"):
        DQN("MlpPolicy", venv, buffer_size=100, learning_starts=4).learn(8, callback=KLPenaltyCallback(0.1))
