"""textgen_env's own PPO on the common work.

Old log-probs and values come from decoding or, with ``--old-log-probs scored``, from a teacher-forced pass of their own
before the update. The value head reads the policy's last hidden state; moments and master weights are fp32 even when
the weights are bf16. Responses never end early because the model is told that it has no EOS, as in the other programs.

    python -m benchmarks.peers.ours_ppo --model FOLDER
"""

from __future__ import annotations

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import textgen_env  # noqa: F401  (registers the environments)
from benchmarks.peers.workload import KL_COEF, LEARNING_RATE, PROMPTS, Work, even_share, parse
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.training.memory import keep_freed_memory
from textgen_env.lm.language_model import LanguageModel


def score(completions: list[str], *, completion_ids: list[list[int]], **_: object) -> list[float]:
    """The common reward in the form of a scorer."""
    return [even_share(token_ids) for token_ids in completion_ids]


def make_trainer(work: Work) -> PPO:
    """Environment, policy and trainer."""
    language_model = LanguageModel(work.model, dtype=work.dtype)
    language_model.eos_token_ids = frozenset()
    venv = gym.make_vec(
        "textgen/TextGen-v0",
        num_envs=work.completions,
        autoreset_mode=AutoresetMode.DISABLED,
        model=language_model,
        prompts=PROMPTS,
        scorer=score,
        max_prompt_tokens=24,
        max_new_tokens=work.new_tokens,
    )
    config = PPOConfig(
        episodes=work.completions,
        epochs=work.epochs,
        minibatch_size=work.completions,
        micro_batch_size=work.micro_batch,
        lr=LEARNING_RATE,
        value_lr=LEARNING_RATE,
        kl_coef=KL_COEF,
        old_log_probs=work.old_log_probs,  # type: ignore[arg-type]
    )
    return PPO(venv, ActorCritic(language_model), config)


def main() -> None:
    """See the module's docstring."""
    work, meter = parse("ours_ppo")
    keep_freed_memory()  # as `python -m textgen_env.agents.ppo` does
    trainer = make_trainer(work)
    while True:
        meter.begin()
        metrics, rollout = trainer.iterate()
        phases = {name: metrics[f"tokens_per_second_{name}"] for name in ("rollout", "scoring", "update")}
        assert int(rollout.response_mask.sum()) == work.tokens
        meter.end(seconds_by_phase={name: work.tokens / speed for name, speed in phases.items()})


if __name__ == "__main__":
    main()
