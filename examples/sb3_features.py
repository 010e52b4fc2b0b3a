"""PPO, A2C or DQN of Stable-Baselines3 with an MLP: features in, one of the 4 likeliest tokens out."""

import sys

import gymnasium as gym
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.sb3 import KLPenaltyCallback, SB3VecEnv
from textgen_env.wrappers import VectorLMFeatures, VectorTopKActions

ALGORITHMS = {
    "ppo": (PPO, {"n_steps": 32, "batch_size": 128, "n_epochs": 10, "learning_rate": 1e-3}),
    "a2c": (A2C, {"n_steps": 8, "learning_rate": 1e-3}),
    "dqn": (DQN, {"learning_rate": 3e-4, "train_freq": 1, "gradient_steps": 8, "target_update_interval": 2000}),
}


def make(env_id: str, **task) -> SB3VecEnv:
    """The batched environment of a task, for agents that know nothing of language."""
    return SB3VecEnv(VectorLMFeatures(VectorTopKActions(gym.make_vec(env_id, num_envs=32, **task), 4)))


def main(
    env_id: str = "textgen/Sentiment-v0", steps: int = 60_000, seed: int = 0, algorithm: str = "ppo", **task
) -> tuple[float, float]:
    """Train; the mean score before and after."""
    kind, settings = ALGORITHMS[algorithm]
    model = kind("MlpPolicy", make(env_id, **task), gamma=1.0, seed=seed, device="cpu", **settings)
    test = make(env_id, **task)
    test.seed(seed + 1000)
    before, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=False)
    model.learn(steps, callback=None if kind is DQN else KLPenaltyCallback(0.01))
    after, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=kind is DQN)
    return before, after


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main(algorithm=sys.argv[1] if len(sys.argv) > 1 else "ppo")))
