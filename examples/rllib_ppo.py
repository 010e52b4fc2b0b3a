"""PPO of RLlib with two env runners, each stepping 8 slots as one batch; the actor is the last layer of the model."""

import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from textgen_env.integrations.rllib import KLPenalty, LMHeadModule


def main(env_id: str = "textgen/Sentiment-v0", iterations: int = 18, seed: int = 0, **task) -> tuple[float, float]:
    """Train; the mean score of the first and of the last iteration."""
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=2**28, ignore_reinit_error=True)
    config = (
        PPOConfig()
        .environment("textgen", env_config={"id": env_id, "kl_coef": 0.01, **task})
        .env_runners(num_env_runners=2, num_envs_per_env_runner=8, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=RLModuleSpec(LMHeadModule, model_config={"model": task.get("model", "tiny")}))
        .learners(learner_connector=lambda *spaces: KLPenalty(*spaces, coef=0.01))
        .training(
            train_batch_size=512,
            minibatch_size=128,
            num_epochs=3,
            lr=1e-3,
            gamma=1.0,
            lambda_=0.95,
            entropy_coeff=0.0,
            use_kl_loss=False,
            clip_param=0.2,
        )
        .reporting(metrics_num_episodes_for_smoothing=60)
        .debugging(seed=seed)
    )
    algorithm = config.build_algo()
    scores = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(iterations)]
    algorithm.stop()
    return scores[0], scores[-1]


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
