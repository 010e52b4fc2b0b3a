"""GRPO of TRL on a task of this package: our scorer as its reward function, our prompts as its data set."""

import tempfile

import gymnasium as gym
from trl import GRPOConfig, GRPOTrainer

import textgen_env  # noqa: F401  registers the tasks
from textgen_env.integrations.trl import config_arguments, trainer_arguments


def main(env_id: str = "textgen/Sentiment-v0", steps: int = 30, seed: int = 0, **task) -> tuple[float, float]:
    """Train; the mean score of the first and of the last five batches."""
    env = gym.make(env_id, kl_coef=0.01, **task)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder,
            **config_arguments(env),
            max_steps=steps,
            learning_rate=6e-4,
            lr_scheduler_type="constant",
            num_generations=8,
            per_device_train_batch_size=64,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            seed=seed,
        )
        trainer = GRPOTrainer(**trainer_arguments(env), args=settings)
        trainer.train()
    scores = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    return sum(scores[:5]) / 5, sum(scores[-5:]) / 5


if __name__ == "__main__":
    print("mean score: {:.3f} -> {:.3f}".format(*main()))
