"""PPO, A2C, DQN or QR-DQN with an MLP: features of the text and of the 4 likeliest tokens in, one of these out."""

import sys

import gymnasium as gym
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.sb3 import KLPenaltyCallback, SB3VecEnv
from textgen_env.wrappers import VectorLMFeatures, VectorTopKActions

Q_LEARNING = {"n_steps": 32, "train_freq": 1, "gradient_steps": 8, "batch_size": 128, "buffer_size": 20_000}
Q_LEARNING |= {"learning_rate": lambda left: 1e-3 * left, "policy_kwargs": {"net_arch": [256]}}
Q_LEARNING |= {"target_update_interval": 500, "exploration_fraction": 0.5}
ALGORITHMS = {
    "ppo": (PPO, 60_000, {"n_steps": 32, "batch_size": 128, "n_epochs": 10, "learning_rate": 1e-3}),
    "a2c": (A2C, 60_000, {"n_steps": 8, "learning_rate": 1e-3}),
    "dqn": (DQN, 30_000, Q_LEARNING),  # n_steps: whole returns, since a score comes at the end alone
    "qrdqn": (QRDQN, 30_000, Q_LEARNING),
}


def make(env_id: str, **task) -> SB3VecEnv:
    """The batched environment of a task, for agents that know nothing of language."""
    tokens = gym.make_vec(env_id, num_envs=32, **task)
    return SB3VecEnv(VectorLMFeatures(VectorTopKActions(tokens, 4), candidates=4))


def main(
    env_id: str = "textgen/Sentiment-v0", steps: int | None = None, seed: int = 0, algorithm: str = "ppo", **task
) -> tuple[float, float]:
    """Train; the mean score before and after."""
    kind, enough, settings = ALGORITHMS[algorithm]
    model = kind("MlpPolicy", make(env_id, **task), gamma=1.0, seed=seed, device="cpu", **settings)
    test = make(env_id, **task)
    test.seed(seed + 1000)
    before, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=False)
    model.learn(steps or enough, callback=KLPenaltyCallback(0.01) if kind in (PPO, A2C) else None)
    after, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=kind in (DQN, QRDQN))
    return before, after


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main(algorithm=sys.argv[1] if len(sys.argv) > 1 else "ppo")))
