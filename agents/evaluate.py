"""Judging a policy on held-out prompts.

What lives here: `evaluate`, which plays each prompt once with a sampler of its own, so that the training's random
numbers are untouched and two policies meet the same luck. What does not: tables and plots (``report.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor

from .policy import ActorCritic
from .rollout import collect

ROWS = 16  # trajectories per teacher-forced pass


@dataclass
class Evaluation:
    """What one policy did on the held-out prompts; JSON when taken apart with `dataclasses.asdict`."""

    metrics: dict[str, float]
    prompts: list[str]
    texts: list[str]
    scores: list[float]


@torch.no_grad()
def evaluate(
    venv: gym.vector.VectorEnv,
    policy: ActorCritic,
    reference: Callable[..., Tensor],
    *,
    seed: int = 0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Evaluation:
    """Play every prompt of ``venv`` once and compare with the reference.

    Args:
        venv: a batched environment on the held-out prompts, with no more slots than it has prompts.
        policy: whom to judge.
        reference: log π_ref of response tokens, see `ActorCritic.reference`.
        seed: of the sampler.
        top_k, top_p: how the policy samples.

    Returns:
        Metrics: ``score``, ``kl_per_token`` and ``kl_per_response`` (nats, k1), ``reference_perplexity``,
        ``response_length`` (tokens), ``distinct_2``, ``eos_rate``; and the texts with their scores.
    """
    env = cast(Any, venv.unwrapped)
    env.delegate_kl(report_ref_logprob=False)
    sampling = {"temperature": env.temperature, "top_k": top_k, "top_p": top_p}
    generator = torch.Generator(policy.device).manual_seed(seed)
    count = len(env.prompts)
    rollout = collect(venv, policy.language_model, count, generator=generator, prompts=range(count), **sampling)
    rollout = rollout.to(policy.device)
    log_probs, ref_log_probs = [], []
    for rows in torch.arange(count, device=policy.device).split(ROWS):
        batch, mask = rollout.rows(rows), rollout.masks(rows)
        log_probs.append(policy.evaluate(*batch, mask=mask, **sampling).log_probs)
        ref_log_probs.append(reference(*batch, mask=mask, temperature=env.temperature))
    ref = torch.cat(ref_log_probs)
    kl = torch.cat(log_probs) - ref
    tokens = [ids[mask.bool()].tolist() for ids, mask in zip(rollout.input_ids, rollout.response_mask, strict=True)]
    metrics = {
        "score": float(rollout.scores.mean()),
        "kl_per_token": float(kl.mean()),
        "kl_per_response": float(kl.sum() / count),
        "reference_perplexity": float(torch.exp(-ref.mean())),
        "response_length": float(rollout.lengths.float().mean()),
        "distinct_2": distinct_n(tokens, 2),
        "eos_rate": rollout.finish_reasons.count("eos") / count,
    }
    return Evaluation(metrics, rollout.prompts, rollout.texts, rollout.scores.tolist())


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all n-grams in all responses (Li et al. 2016); 0 when there are none."""
    grams = [tuple(tokens[i : i + n]) for tokens in responses for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
