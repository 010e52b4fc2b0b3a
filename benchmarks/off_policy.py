"""How far a sampler is from what learns, and what importance weights make of it, here and in TRL.

    python -m benchmarks.off_policy
    python -m benchmarks.off_policy --trl     # by TRL's own code, where it is installed

What lives here: one rollout of the embedded model per case (the same weights under several warps, decoding in bfloat16,
weights of some updates ago), and the weights of its tokens. What does not: whether a weighed gradient is right
(``gradients.py``), the weights themselves (``agents/training/importance.py``).

    gap      mean |log π − log π_sampler| of a token
    mean     mean weight of a token; 1 in expectation if sampler and learner have the same support
    ess      (Σw)²/(n·Σw²)
    theirs   the same mean where log π is over all tokens, as TRL's trainer scores (logits over temperature, no top-k,
             no top-p), and log π_sampler that of what was drawn from, as vLLM reports it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor

from benchmarks.report import keep, markdown
from textgen_env import LanguageModel
from textgen_env.agents.advantages import masked_mean
from textgen_env.agents.losses import approx_kl
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.rollout import Rollout, collect
from textgen_env.agents.training.importance import effective_share, importance_weights
from textgen_env.lm.log_probs import response_log_probs
from textgen_env.lm.sampling import SamplingParams

WARPS: dict[str, dict[str, Any]] = {"none": {}, "top-p 0.9": {"top_p": 0.9}, "top-k 50": {"top_k": 50}}
NO_CAP = 1e6


@dataclass
class OffPolicySettings:
    """Measure weights of importance."""

    episodes: int = 128
    """Responses per case."""
    updates: int = 5
    """How many updates ago stale weights are from."""
    trl: bool = False
    """Let TRL's own code score the responses of the column "theirs", instead of ours over all tokens."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def make_trainer(episodes: int, **settings: Any) -> Reinforce:
    """RLOO on the sentiment task, with the embedded model."""
    venv = gym.make_vec("textgen/Sentiment-v0", num_envs=16, autoreset_mode=AutoresetMode.DISABLED)
    policy = ActorCritic(LanguageModel("tiny"), ActorConfig())
    return Reinforce(venv, policy, ReinforceConfig(episodes=episodes, kl_coef=0.0, **settings))


@torch.no_grad()
def log_probs_of(trainer: Reinforce, rollout: Rollout, sampling: SamplingParams) -> Tensor:
    """(B, T) log π of the learner under a warp."""
    lm = trainer.policy.language_model
    mask = rollout.masks(torch.arange(len(rollout.texts)))
    return response_log_probs(lm.model, rollout.tokens, sampling, vocab_size=lm.vocab_size, mask=mask).log_probs


def of_all_tokens(trainer: Reinforce, rollout: Rollout, trl: bool) -> Tensor:
    """(B, T) log π of the learner as TRL scores it."""
    if not trl:
        return log_probs_of(trainer, rollout, SamplingParams(trainer.sampling.temperature))
    from benchmarks.peers.trl_losses import token_log_probs

    return token_log_probs(trainer.policy.language_model.model, rollout.tokens, trainer.sampling.temperature)


def record(case: str, trainer: Reinforce, rollout: Rollout, trl: bool = False) -> dict[str, Any]:
    """The weights of one rollout."""
    mask, sampled = rollout.response_mask, rollout.sampled_log_probs
    ours = log_probs_of(trainer, rollout, trainer.sampling)
    theirs = of_all_tokens(trainer, rollout, trl)
    told: dict[str, Any] = {"benchmark": "off_policy", "case": case}
    told["gap"] = float(masked_mean((ours - sampled).abs(), mask))
    told["kl"] = float(approx_kl(ours, sampled, mask))
    for level in ("token", "response"):
        weights = importance_weights(ours, sampled, mask, NO_CAP, of_responses=level == "response")
        told[f"ess_{level}"] = float(effective_share(weights, mask, of_responses=level == "response"))
        of_them = weights.amax(dim=1) if level == "response" else weights[mask.bool()]
        told[f"beyond_2_{level}"] = float((of_them > 2).double().mean())
    told["mean"] = float(masked_mean(importance_weights(ours, sampled, mask, NO_CAP), mask))
    told["theirs"] = float(masked_mean(importance_weights(theirs, sampled, mask, NO_CAP), mask))
    return told


def records(settings: OffPolicySettings) -> Iterator[dict[str, Any]]:
    """Every case."""
    for name, warp in WARPS.items():
        trainer = make_trainer(settings.episodes, **warp)
        yield record(f"equal weights, {name}", trainer, trainer.collect(), settings.trl)
        half = LanguageModel("tiny", dtype="bfloat16")
        given: dict[str, Any] = {"generator": trainer.sampler, "sampling": trainer.sampling}
        yield record(
            f"bfloat16, {name}", trainer, collect(trainer.venv, half, settings.episodes, **given), settings.trl
        )
        rollout = trainer.collect()
        trainer.train(settings.updates)
        yield record(f"{settings.updates} updates old, {name}", trainer, rollout, settings.trl)


COLUMNS = ("gap", "kl", "mean", "theirs", "ess_token", "ess_response", "beyond_2_token", "beyond_2_response")


def main(settings: OffPolicySettings) -> None:
    """Print the records, then the table."""
    found = keep(records(settings), settings.out)
    print(markdown(("case", *COLUMNS), [[r["case"], *(f"{r[name]:.3g}" for name in COLUMNS)] for r in found]))


if __name__ == "__main__":
    main(tyro.cli(OffPolicySettings, description=__doc__))
