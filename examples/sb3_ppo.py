"""PPO of Stable-Baselines3 with the language model itself as actor and critic, and the exact KL in the reward."""

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.sb3 import EpisodeRolloutBuffer, KLPenaltyCallback, LMActorCriticPolicy, SB3VecEnv


def main(env_id: str = "textgen/Sentiment-v0", steps: int = 30_000, seed: int = 0, **task) -> tuple[float, float]:
    """Train; the mean score before and after."""
    train, test = (SB3VecEnv(gym.make_vec(env_id, num_envs=16, **task)) for _ in range(2))
    model = PPO(
        LMActorCriticPolicy,
        train,
        rollout_buffer_class=EpisodeRolloutBuffer,
        policy_kwargs={"model": task.get("model", "tiny"), "exact_entropy": False},
        n_steps=64,
        batch_size=256,
        n_epochs=4,
        learning_rate=2e-4,
        gamma=1.0,
        vf_coef=0.1,
        seed=seed,
    )
    test.seed(seed + 1000)
    before, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=False)
    model.learn(steps, callback=KLPenaltyCallback(0.02))
    after, _ = evaluate_policy(model, test, n_eval_episodes=100, deterministic=False)
    return before, after


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
