"""The task of ``ppo.py`` with Stable-Baselines3: its own PPO, on the same environment, model and held-out prompts.

What lives here: the mapping of the settings (``sb3_config.py``) onto SB3, and the door of the command line
(``python -m textgen_env.agents.sb3_ppo``). What does not: the policy, the buffer and the KL penalty, which are
`textgen_env.integrations.sb3`; the run (``training/run.py``), which is the native trainer's.

A run that was stopped goes on with ``--resume`` from a checkpoint of safetensors and JSON: weights, optimiser, learning
rate, adaptive β and the environment's generators as they were. SB3's own ``model.zip`` is written for `PPO.load` and
never read here, since reading one runs the code in it. Responses in flight are not kept, and SB3 draws from global
generators, so that samples, and with them numbers, differ from those of a run that was never stopped; the native
trainer's do not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError as error:
    message = f"this trainer needs Stable-Baselines3 ({error}): pip install 'textgen_env[agents,sb3]'"
    raise ImportError(message, name=error.name) from error

from textgen_env.integrations.sb3 import EpisodeRolloutBuffer, KLPenaltyCallback, LMActorCriticPolicy, SB3VecEnv
from textgen_env.kl import AdaptiveKLCoefficient, FixedKLCoefficient
from textgen_env.lm.adapters import save_merged
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import response_log_probs
from textgen_env.lm.sampling import SamplingParams
from textgen_env.lm.token_batch import TokenBatch

from .policy import ActorCritic, Reference, TokenEvaluation, frozen_reference
from .rollout_metrics import response_metrics
from .sb3_config import SB3Settings
from .training.command_line import parse, resume_command
from .training.command_line import run as run_program
from .training.evaluate import EvalReport
from .training.extra import Console
from .training.files import replace_file
from .training.run import Run

__all__ = ["SB3Run", "SB3Settings", "SB3Trainer", "main", "make_run", "run"]


class SteppedPPO(PPO):
    """SB3's PPO, called for one update at a time, whose learning rate falls over all of them.

    Attributes:
        planned_timesteps: of the whole run.
    """

    planned_timesteps = 0

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self.planned_timesteps or total_timesteps)


class Judged:
    """An SB3 policy in the form that a run judges and saves."""

    def __init__(self, model: SteppedPPO, tokenizer: Any) -> None:
        self.model = model
        policy = cast(LMActorCriticPolicy, model.policy)
        self.language_model = LanguageModel.from_modules(policy.actor, tokenizer)
        self.device, self.named_parameters = policy.device, policy.named_parameters

    def __call__(self, batch: TokenBatch, sampling: SamplingParams, **options: Any) -> TokenEvaluation:
        """Teacher-forced log-probabilities of the response tokens, see `ActorCritic`; its critic is not asked."""
        model = self.language_model
        scores = response_log_probs(model.model, batch, sampling, vocab_size=model.vocab_size, **options)
        return TokenEvaluation(scores.log_probs, None, scores.entropy)

    def save(self, path: Path) -> None:
        """Write a folder that transformers' ``from_pretrained`` loads (LoRA merged)."""
        save_merged(self.language_model.model, self.language_model.tokenizer, path)


class Responses(BaseCallback):
    """The responses that ended in a rollout."""

    prompts: list[str]
    texts: list[str]
    scores: Any
    lengths: list[int]
    finish_reasons: list[str]

    def _on_rollout_start(self) -> None:
        self.prompts, self.texts, self.scores, self.lengths, self.finish_reasons = [], [], np.zeros(0), [], []

    def _on_step(self) -> bool:
        for row in np.flatnonzero(self.locals["dones"]):
            info = self.locals["infos"][row]
            if "score" in info:  # not of a response that was cut from outside
                self.prompts.append(info["prompt"])
                self.texts.append(info["text"])
                self.scores = np.append(self.scores, info["score"])
                self.lengths.append(info["response_length"])
                self.finish_reasons.append(info["finish_reason"])
        return True

    def metrics(self) -> dict[str, float]:
        """`response_metrics` of them; empty if there are none."""
        columns = torch.from_numpy(self.scores), torch.tensor(self.lengths), self.finish_reasons
        return {name: float(values[0]) for name, values in response_metrics(*columns).items()} if self.texts else {}


class SB3Trainer:
    """SB3's PPO in the form that a run drives: one rollout and the update from it at a time."""

    NAMES = {
        "kl/per_token": "kl_per_token",
        "kl/per_token_k3": "kl_per_token_k3",
        "kl/per_response": "kl_per_response",
        "kl/coef": "kl_coef",
        "train/loss": "loss",
        "train/policy_gradient_loss": "policy_loss",
        "train/value_loss": "value_loss",
        "train/approx_kl": "approx_kl",
        "train/clip_fraction": "clip_fraction",
        "train/learning_rate": "lr",
    }

    def __init__(self, settings: SB3Settings, venv: VectorEnv, model: SteppedPPO) -> None:
        self.settings, self.model, self.updates = settings, model, 0
        self.env = cast(Any, venv.unwrapped)
        self.sampling = SamplingParams(self.env.temperature)
        self.beta = FixedKLCoefficient(settings.kl_coef)
        if settings.adaptive_kl_target is not None:
            self.beta = AdaptiveKLCoefficient(settings.kl_coef, settings.adaptive_kl_target)
        cast(Any, model).kl_coefficient = self.beta  # SB3 saves and loads what a model has
        self.penalty, self.responses = KLPenaltyCallback(self.beta), Responses()
        model.planned_timesteps = settings.updates * self._tokens

    @property
    def kl_coef(self) -> float:
        """β of the objective, as it is now."""
        return self.beta.value

    @property
    def _tokens(self) -> int:
        """Of a rollout."""
        return self.settings.n_steps * self.settings.num_envs

    def iterate(self) -> tuple[dict[str, float], Responses]:
        """One rollout, and the update from it."""
        begin, callbacks = time.perf_counter(), [self.penalty, self.responses]
        # an interval of 2: SB3 would empty its log before the one update
        self.model.learn(self._tokens, callback=callbacks, log_interval=2, reset_num_timesteps=False)
        self.updates += 1
        logged = self.model.logger.name_to_value
        metrics = self.responses.metrics()
        metrics |= {short: float(logged[name]) for name, short in self.NAMES.items() if name in logged}
        metrics["tokens_per_second"] = self._tokens / (time.perf_counter() - begin)
        return metrics, self.responses

    def held_out(self) -> dict[str, float]:
        """Nothing more."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that can be taken up between two updates, as tensors and JSON values."""
        policy = self.model.policy
        return {
            "updates": self.updates,
            "weights": dict(policy.named_parameters()),  # those that learn
            "optimizer": policy.optimizer.state_dict()["state"],
            "kl": self.beta.state_dict(),
            "env": self.env.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with it; the responses that were in flight are left.

        Raises:
            ValueError: the state is of other weights.
        """
        model, policy = self.model, self.model.policy
        weights, ours = state["weights"], dict(policy.named_parameters())
        if weights.keys() != ours.keys():
            raise ValueError(f"the state holds weights {sorted(weights)[:3]}…, not {sorted(ours)[:3]}…")
        for name, parameter in ours.items():
            parameter.copy_(weights[name])
        moments = {int(index): dict(entry) for index, entry in state["optimizer"].items()}
        groups = policy.optimizer.state_dict()["param_groups"]
        policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.beta.load_state_dict(state["kl"])
        self.updates = int(state["updates"])
        model.num_timesteps = self.updates * self._tokens
        model.set_random_seed((self.settings.seed + self.updates) % 2**32)  # not once more what the first update drew
        cast(Any, model.env).reset()  # takes up that seed, so that what follows stands
        self.env.load_state_dict(state["env"])
        self.env.abandon(np.arange(self.settings.num_envs))


class SB3Run(Run):
    """A run of SB3's PPO: ``model.zip`` lies in its folder, too (`PPO.load`)."""

    autoreset_mode = AutoresetMode.SAME_STEP
    prefix = "sb3-"

    def make_policy(self) -> ActorCritic:
        """What is trained, with SB3's algorithm around it."""
        tokenizer = cast(Any, self.venv.unwrapped).language_model.tokenizer
        return cast(ActorCritic, Judged(make_model(cast(SB3Settings, self.settings), self.venv), tokenizer))

    def make_reference(self) -> Reference:
        """The environment's, whose weights nobody trains."""
        reference = cast(Any, self.venv.unwrapped).reference
        return frozen_reference(reference.model, reference.vocab_size)

    def _save(self) -> None:
        super()._save()
        self._export()

    def _report(self) -> None:
        self._export()  # a kill may have come between a checkpoint and this
        super()._report()

    def _export(self) -> None:
        replace_file(self.folder / "model.zip", lambda path: cast(Any, self.policy).model.save(path))


def make_model(settings: SB3Settings, venv: VectorEnv) -> SteppedPPO:
    """SB3's PPO with the settings, on a SAME_STEP environment."""
    return SteppedPPO(
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


def make_run(arguments: Sequence[str] | None = None) -> SB3Run:
    """Everything up to the first update; see `main`."""
    module = "textgen_env.agents.sb3_ppo"
    return _run(parse(SB3Settings, module, arguments), resume_command=resume_command(module, arguments))


def _run(settings: SB3Settings, console: Console | None = None, **options: Any) -> SB3Run:
    return SB3Run(settings, lambda run: SB3Trainer(settings, run.venv, cast(Any, run.policy).model), console, **options)


def run(settings: SB3Settings, console: Console | None = None) -> tuple[EvalReport, EvalReport]:
    """Train, report and save (see `Run`); the held-out prompts before and after.

    Raises:
        FileExistsError, ValueError, CheckpointError, BlockingIOError: see `Run`.
    """
    running = _run(settings, console)
    running.execute()
    assert running.before is not None
    assert running.after is not None
    return running.before, running.after


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.sb3_ppo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
