"""Judging a policy on held-out prompts.

What lives here: `play`, which plays each prompt with a sampler of its own, so that the training's random numbers
are untouched and two policies meet the same luck, and `evaluate`, the numbers that come of it with their standard
errors. What does not: tables and plots (``report.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor

from textgen_env.kl import k1
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams, takes_sampling
from textgen_env.render import Frame

from ..policy import ActorCritic, Reference
from ..rollout import Rollout, collect
from ..rollout_metrics import rollout_metrics
from .trainer import join

ROWS = 16  # trajectories per teacher-forced pass


@dataclass
class EvalReport:
    """What one policy did on the held-out prompts; JSON when taken apart with `dataclasses.asdict`.

    Attributes:
        metrics: see `evaluate`.
        prompts, texts, scores: one per prompt.
        left_out: each metric without the first, the second, … of the prompts: what standard errors are made of.
    """

    metrics: dict[str, float]
    prompts: list[str]
    texts: list[str]
    scores: list[float]
    left_out: dict[str, list[float]] = field(default_factory=dict)

    def standard_error(self, metric: str) -> float:
        """Of a metric, by the jackknife over prompts; NaN where it is not known. Of a mean it is s/√n."""
        return jackknife(self.left_out.get(metric, []))


Evaluation = EvalReport  # its former name


def standard_error_of_difference(before: EvalReport, after: EvalReport, metric: str) -> float:
    """Of after − before on the same prompts, paired; NaN where it is not known."""
    pairs = (before.left_out.get(metric, []), after.left_out.get(metric, []))
    if before.prompts != after.prompts or len(pairs[0]) != len(pairs[1]):
        return math.nan
    return jackknife([new - old for old, new in zip(*pairs, strict=True)])


def jackknife(left_out: Sequence[float]) -> float:
    """Standard error of a statistic from its n values that leave out one sample each: √((n − 1)/n · Σ(θᵢ − θ̄)²).

    References:
        Efron & Tibshirani, "An introduction to the bootstrap" (1993), chapter 11.
    """
    count = len(left_out)
    if count < 2:
        return math.nan
    mean = math.fsum(left_out) / count
    return math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in left_out))


@dataclass
class Played:
    """Each prompt played: a rollout, and per response token (B, T) float32, 0 elsewhere."""

    rollout: Rollout
    log_probs: Tensor
    ref_log_probs: Tensor
    values: Tensor | None  # of policies that have a critic

    def tokens(self) -> list[list[int]]:
        """The response tokens of each trajectory."""
        return [ids.tolist() for ids in self.rollout.per_response(self.rollout.input_ids)]

    def prefix(self, row: int) -> list[int]:
        """The tokens that one of them begins with: those of the prompt."""
        rollout = self.rollout
        return rollout.input_ids[row][rollout.attention_mask[row] > rollout.response_mask[row]].tolist()


@torch.no_grad()
@takes_sampling
def play(
    venv: gym.vector.VectorEnv,
    policy: ActorCritic,
    reference: Reference,
    *,
    seed: int = 0,
    sampling: SamplingParams | None = None,
    samples: int = 1,
    greedy: bool = False,
) -> Played:
    """Play every prompt of ``venv`` and score the responses under the policy and the reference.

    Args:
        venv: a batched environment on the held-out prompts, with no more slots than it has prompts.
        policy: whom to judge.
        reference: log π_ref of response tokens, see `ActorCritic.reference`.
        seed: of the sampler.
        sampling: how the policy samples; None: at the environment's temperature.
        samples: responses per prompt, which stand side by side.
        greedy: take the likeliest token instead; log-probs are those of ``sampling``.
    """
    env = cast(Any, venv.unwrapped)
    sampling = sampling or SamplingParams(env.temperature)
    generator = torch.Generator(policy.device).manual_seed(seed)
    prompts = [number for number in range(len(env.prompts)) for _ in range(samples)]
    count, model = len(prompts), policy.language_model
    rollout = collect(venv, model, count, generator=generator, sampling=sampling, greedy=greedy, prompts=prompts)
    rollout = rollout.to(policy.device)
    log_probs, ref_log_probs, values = [], [], []
    micro_batches = torch.arange(count, device=policy.device).split(ROWS)
    for rows in micro_batches:
        batch, mask = rollout.rows(rows), rollout.masks(rows)
        scored = policy(batch, sampling, mask=mask)
        log_probs.append(scored.log_probs)
        values += [] if scored.values is None else [scored.values]
        ref_log_probs.append(reference(batch, sampling, mask=mask))
    whole = partial(join, rollout.tokens, micro_batches)
    return Played(rollout, whole(log_probs), whole(ref_log_probs), whole(values) if values else None)


def evaluate(venv: gym.vector.VectorEnv, policy: ActorCritic, reference: Reference, **options: Any) -> EvalReport:
    """`play`, summed up (same arguments).

    Returns:
        Metrics: ``score``, ``kl_per_token`` and ``kl_per_response`` (nats, k1), ``reference_perplexity``,
        ``response_length`` (tokens), ``distinct_2``, ``eos_rate``; and the texts with their scores.
    """
    return summarize(play(venv, policy, reference, **options))


def summarize(played: Played) -> EvalReport:
    """The metrics of `evaluate`, with all that standard errors need."""
    rollout = played.rollout
    metrics = rollout_metrics(rollout, played.log_probs, played.ref_log_probs)
    metrics["distinct_2"] = torch.tensor(distinct_without_each(played.tokens(), 2), dtype=torch.float64)
    left_out = {name: values[1:].tolist() for name, values in metrics.items()} if len(rollout.texts) > 1 else {}
    whole = {name: float(values[0]) for name, values in metrics.items()}
    return EvalReport(whole, rollout.prompts, rollout.texts, rollout.scores.tolist(), left_out)


def distinct_n(responses: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all n-grams in all responses (Li et al. 2016); 0 when there are none."""
    return distinct_without_each(responses, n)[0]


def distinct_without_each(responses: Sequence[Sequence[int]], n: int) -> list[float]:
    """`distinct_n` of all responses, then of all but the first, all but the second, …"""
    grams = [Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for tokens in responses]
    everything: Counter[tuple[int, ...]] = Counter()
    for own in grams:
        everything.update(own)
    shares = []
    for own in (Counter(), *grams):
        total = everything.total() - own.total()
        different = len(everything) - sum(everything[gram] == times for gram, times in own.items())
        shares.append(different / total if total else 0.0)
    return shares


def frames(played: Played, language_model: LanguageModel, count: int = 64) -> list[Frame]:
    """The first responses as `render_html` draws them: each token with its reward, KL, reference and value."""
    rollout = played.rollout
    rewards, ref_log_probs = rollout.per_response(rollout.rewards), rollout.per_response(played.ref_log_probs)
    kls = rollout.per_response(k1(played.log_probs, played.ref_log_probs))
    values = None if played.values is None else rollout.per_response(played.values)
    return [
        Frame(
            prompt=rollout.prompts[row],
            pieces=language_model.token_text.shown_pieces(played.prefix(row), tokens),
            rewards=rewards[row].tolist(),
            ref_log_probs=ref_log_probs[row].tolist(),
            kls=kls[row].tolist(),
            values=None if values is None else values[row].tolist(),
            finish_reason=rollout.finish_reasons[row],
            score=float(rollout.scores[row]),
        )
        for row, tokens in enumerate(played.tokens()[:count])
    ]
