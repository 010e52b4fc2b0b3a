"""The task of ``ppo.py`` with Stable-Baselines3: its own PPO, on the same environment, model and held-out prompts.

What lives here: the settings, the mapping of them onto SB3, and the door of the command line
(``python -m textgen_env.agents.sb3_ppo``). What does not: the policy, the buffer and the KL penalty, which are
`textgen_env.integrations.sb3`; judging and reporting (``evaluate.py``, ``report.py``), which are the native trainer's.

A run that was stopped goes on with ``--resume`` from SB3's own ``model.zip``: weights, optimiser, learning rate and
adaptive β as they were. SB3 saves neither random generators nor responses in flight, so that its samples, and with them
its numbers, differ from those of a run that was never stopped; the native trainer's do not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console
from rich.progress import Progress
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from textgen_env.adapters import save_merged
from textgen_env.integrations.sb3 import EpisodeRolloutBuffer, KLPenaltyCallback, LMActorCriticPolicy, SB3VecEnv
from textgen_env.kl import AdaptiveKLCoefficient, FixedKLCoefficient, KLCoefficient
from textgen_env.language_model import LanguageModel
from textgen_env.scoring import ResponseScores, response_log_probs

from .checkpoint import replace_file
from .evaluate import Evaluation, evaluate
from .metrics import MetricsLog, read_metrics
from .policy import ActorCritic, frozen_scorer
from .report import answers_table, before_after_table, plot
from .run import TaskSettings, make_environments, open_folder, progress_bar


@dataclass
class SB3Settings(TaskSettings):
    """Train a language model with the PPO of Stable-Baselines3."""

    num_envs: int = 32
    """Slots that are decoded side by side."""
    n_steps: int = 64
    """Tokens per slot and update; SB3 cuts rollouts there, also in the middle of a response."""
    updates: int = 40
    """Rollouts, and updates from them."""
    epochs: int = 2
    """Passes over a rollout."""
    batch_size: int = 512
    """Tokens per optimiser step, about: whole episodes stay together."""
    lr: float = 1e-4
    """Learning rate at the start; falls linearly to 0."""
    value_scale: float = 10.0
    """The value head learns this many times as fast."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """ε of the clipped surrogate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """β, reward per nat of KL(π‖π_ref)."""
    kl_target: float | None = None
    """If set, β adapts so that the mean KL of a whole response stays near this many nats."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains the weights themselves."""
    frozen_layers: int = 0
    """Transformer blocks, from the input up, that do not learn."""
    eval_prompts: int = 64
    """Prompts held out for evaluation; never trained on unless there are too few."""
    output: str | None = None
    """The run's folder; default: runs/sb3-<task>-seed<seed>, with a number behind it if that exists."""
    save_every: int = 10
    """Updates between savings of ``model.zip``."""
    resume: bool = False
    """Go on from the model.zip in the output folder."""
    seed: int = 1
    """Given to SB3, which seeds the global generators of torch, numpy and random."""
    dtype: str = "float32"
    """Type of the weights; bfloat16 goes with lora_rank."""


class Judged:
    """An SB3 policy in the form that `evaluate` judges."""

    def __init__(self, policy: LMActorCriticPolicy, tokenizer: Any) -> None:
        self.language_model = LanguageModel.from_modules(policy.actor, tokenizer)
        self.device = policy.device

    def evaluate(self, *batch: torch.Tensor, **sampling: Any) -> ResponseScores:
        """Teacher-forced log-probabilities of the response tokens."""
        model = self.language_model
        return response_log_probs(model.model, *batch, vocab_size=model.vocab_size, **sampling)


class Watch(BaseCallback):
    """Shows and writes what each rollout brought; saves. Comes after `KLPenaltyCallback`, whose numbers it reads."""

    NAMES = {
        "rollout/score": "score",
        "rollout/response_length": "response_length",
        "kl/per_token": "kl_per_token",
        "kl/per_token_k3": "kl_per_token_k3",
        "kl/per_response": "kl_per_response",
        "kl/coef": "kl_coef",
    }

    def __init__(self, settings: SB3Settings, folder: Path, log: MetricsLog, progress: Progress, done: int) -> None:
        super().__init__()
        self.log, self.progress, self.folder, self.save_every = log, progress, folder, settings.save_every
        self.task = progress.add_task("", total=settings.updates, completed=done, live="")
        self.first, self.updates, self.since = done, done, time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:  # the update before it is complete
        if self.updates > self.first and self.updates % self.save_every == 0:
            save_model(self.folder, cast(PPO, self.model))

    def _on_rollout_end(self) -> None:
        now, self.updates = time.perf_counter(), self.updates + 1
        logged = self.logger.name_to_value
        metrics = {short: float(logged[name]) for name, short in self.NAMES.items() if name in logged}
        metrics["tokens_per_second"] = self.locals["n_rollout_steps"] * self.training_env.num_envs / (now - self.since)
        self.since = now
        self.log.write(self.updates, metrics)
        live = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("score", "kl_per_token") if name in metrics)
        self.progress.update(
            self.task, completed=self.updates, live=f"{live}  {metrics['tokens_per_second']:,.0f} tokens/s"
        )


def make_model(settings: SB3Settings, venv: VectorEnv) -> PPO:
    """SB3's PPO with the settings, on a SAME_STEP environment."""
    return PPO(
        LMActorCriticPolicy,
        SB3VecEnv(venv),
        learning_rate=lambda remaining: settings.lr * remaining,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.lam,
        clip_range=settings.clip,
        ent_coef=settings.entropy_coef,
        vf_coef=settings.value_coef,
        max_grad_norm=settings.max_grad_norm,
        rollout_buffer_class=EpisodeRolloutBuffer,
        policy_kwargs={
            "model": settings.model,
            "dtype": settings.dtype,
            "temperature": settings.temperature,
            "lora_rank": settings.lora_rank,
            "frozen_layers": settings.frozen_layers,
            "value_scale": settings.value_scale,
            "exact_entropy": settings.entropy_coef != 0,
        },
        device=settings.device,
        seed=settings.seed,
    )


def run(settings: SB3Settings, console: Console | None = None) -> tuple[Evaluation, Evaluation]:
    """Train, report and save; the held-out prompts before and after.

    The folder then holds ``settings.json``, ``metrics.jsonl``, ``tensorboard/``, ``before.json``, ``after.json``,
    ``plot.png``, ``model.zip`` (SB3's `PPO.load`) and ``last/`` (transformers format).

    Raises:
        FileExistsError: the output folder holds a run and ``resume`` is off.
        ValueError: it holds a run with other settings.
    """
    console, folder = console or Console(), open_folder(settings, prefix="sb3-")
    disabled, held_out = make_environments(settings)
    venv = same_step(disabled)
    model, done = load_or_make(settings, folder, venv)
    policy = cast(
        ActorCritic, Judged(cast(LMActorCriticPolicy, model.policy), cast(Any, venv).language_model.tokenizer)
    )
    env = cast(Any, held_out.unwrapped)
    reference = frozen_scorer(env.reference.model, env.reference.vocab_size)
    if not done:
        replace_file(folder / "before.json", json.dumps(asdict(evaluate(held_out, policy, reference)), indent=1))
    before = Evaluation(**json.loads((folder / "before.json").read_text(encoding="utf-8")))
    with MetricsLog(folder, after=done) as log, progress_bar(console) as progress:
        callbacks = [
            KLPenaltyCallback(cast(Any, model).kl_coefficient),
            Watch(settings, folder, log, progress, done),
        ]
        left = (settings.updates - done) * settings.n_steps * settings.num_envs
        model.learn(left, callback=callbacks, reset_num_timesteps=not done)
    after = evaluate(held_out, policy, reference)
    save(folder, model, policy.language_model, after)
    console.print(before_after_table(before, after), answers_table(before, after))
    console.print(f"saved in {folder}: model.zip (PPO.load), last/ (transformers format), plot.png, metrics.jsonl")
    return before, after


def load_or_make(settings: SB3Settings, folder: Path, venv: VectorEnv) -> tuple[PPO, int]:
    """The model, and how many updates it has done: 0, or those of the model.zip in the folder."""
    if (folder / "model.zip").is_file():
        model = PPO.load(folder / "model", env=SB3VecEnv(venv), device=settings.device)
        return model, model.num_timesteps // (settings.n_steps * settings.num_envs)
    beta: KLCoefficient = FixedKLCoefficient(settings.kl_coef)
    if settings.kl_target is not None:
        beta = AdaptiveKLCoefficient(settings.kl_coef, settings.kl_target)
    model = make_model(settings, venv)
    cast(Any, model).kl_coefficient = beta  # SB3 saves and loads what a model has
    return model, 0


def same_step(venv: VectorEnv) -> VectorEnv:
    """The same environment in the autoreset mode that SB3 takes; stepping has not begun."""
    spec = cast(Any, venv.spec)
    return gym.make_vec(spec.id, **{**spec.kwargs, "autoreset_mode": AutoresetMode.SAME_STEP})


def save_model(folder: Path, model: PPO) -> None:
    """Write ``model.zip`` at once or not at all."""
    model.save(folder / "model.part.zip")
    os.replace(folder / "model.part.zip", folder / "model.zip")


def save(folder: Path, model: PPO, language_model: LanguageModel, after: Evaluation) -> None:
    """Write what a run leaves behind."""
    replace_file(folder / "after.json", json.dumps(asdict(after), indent=1))
    save_model(folder, model)
    save_merged(language_model.model, language_model.tokenizer, folder / "last")
    plot(read_metrics(folder / "metrics.jsonl"), folder / "plot.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.sb3_ppo --help``"""
    run(tyro.cli(SB3Settings, prog="python -m textgen_env.agents.sb3_ppo", args=arguments))


if __name__ == "__main__":
    main()
