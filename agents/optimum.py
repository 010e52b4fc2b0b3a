"""The best that any policy can reach: J* of score − β·KL, estimated from reference samples or exact by enumeration.

What lives here: `ReferenceScores` with the estimates, `estimate_optimum`, which samples, `exact_optimum`, which
enumerates, and the command (``python -m textgen_env.agents.optimum``). What does not: training, tables of runs.

The objective J(π) = E_π[score − β·log(π/π_ref)] has its maximum at π*(y) ∝ π_ref(y)·exp(score(y)/β), and the maximum is
J* = β·log E_ref[exp(score/β)]. No policy is above it, whatever it is made of, and all that it takes to know it are the
scores of the reference's own responses.

References:
    Ziegler et al., "Fine-tuning language models from human preferences" (2019): the objective.
    Korbak et al., "RL with KL penalties is better viewed as Bayesian inference" (2022): π*, and J* as its normaliser.
    Donsker & Varadhan (1975): the identity, for any two distributions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from textgen_env.lm.sampling import SamplingParams
from textgen_env.notices import shown

from .enumeration import Enumeration
from .rollout import collect
from .training.command_line import parse
from .training.command_line import run as run_program
from .training.display import Display
from .training.environments import make_environments
from .training.extra import Console, Table
from .training.files import replace_file
from .training.run_settings import TaskSettings
from .training.setting_checks import COUNT, POSITIVE, TEXT, check, optional

RESAMPLES = 1000  # of the bootstrap
DEVIATIONS = 1.96  # of a normal distribution, for 95 %


class PromptOptimum(NamedTuple):
    """The optimum at one prompt; ``ess`` is the effective number of samples behind an estimate, None if exact."""

    prompt: str
    value: float
    score: float
    kl: float
    ess: float | None = None


@dataclass(frozen=True)
class Optimum:
    """The best that any policy can reach, as means over prompts.

    Attributes:
        kl_coef: β, in score per nat.
        value: J* = score − β·kl, in the unit of the score.
        score: E[score] of π*.
        kl: KL(π*‖π_ref), nats per response.
        reference: E[score] of the reference, which is its J: its KL is 0.
        per_prompt: the same at each prompt.
        interval: of ``value``, 95 %: ± 1.96 bootstrap standard errors over the samples at these prompts; None if exact.
        ess: effective samples per prompt behind the estimate, (Σw)²/Σw² with w = exp(score/β), on average; None if
            exact. Near 1, a single lucky response speaks for all, and the estimate is no more than a lower bound.
    """

    kl_coef: float
    value: float
    score: float
    kl: float
    reference: float
    per_prompt: tuple[PromptOptimum, ...] = ()
    interval: tuple[float, float] | None = None
    ess: float | None = None

    def share(self, score: float, kl: float) -> float:
        """What part of the attainable gain a policy has: 0 for the reference, 1 for π*; NaN if there is none to gain.

        Args:
            score: mean score of its responses.
            kl: its KL to the reference, nats per response.
        """
        room = self.value - self.reference
        return (score - self.kl_coef * kl - self.reference) / room if room > 0 else math.nan


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of the reference's responses: all that J* depends on.

    Attributes:
        prompts: P texts.
        scores: (P, n) float64, those of n independent responses to each prompt.

    Raises:
        ValueError: no scores, or some that are not finite.
    """

    prompts: Sequence[str]
    scores: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", self.scores.double())
        if self.scores.dim() != 2 or len(self.scores) != len(self.prompts) or not self.scores.numel():
            raise ValueError(
                f"scores of shape {tuple(self.scores.shape)} must be (P, n) for {len(self.prompts)} prompts"
            )
        if not self.scores.isfinite().all():
            raise ValueError(f"scores must be finite numbers, got {float(self.scores[~self.scores.isfinite()][0])}")

    def optimum(self, kl_coef: float, *, seed: int = 0) -> Optimum:
        """J* at a β; see `optimum_values` for the estimator.

        Args:
            kl_coef: β > 0, in score per nat.
            seed: of the bootstrap.

        Raises:
            ValueError: β is not a positive number.
        """
        values, scores = self._best(kl_coef)
        ess = 1 / _weights(self.scores, kl_coef).square().sum(dim=1)
        kls = (scores - values) / kl_coef
        value, score, kl, reference = (float(column.mean()) for column in (values, scores, kls, self.scores))
        rows = zip(self.prompts, values.tolist(), scores.tolist(), kls.tolist(), ess.tolist(), strict=True)
        per_prompt, interval = tuple(PromptOptimum(*row) for row in rows), self._interval(value, kl_coef, seed)
        return Optimum(kl_coef, value, score, kl, reference, per_prompt, interval, float(ess.mean()))

    def frontier(self, kl_coefs: Sequence[float]) -> list[tuple[float, float]]:
        """The best score at any KL: (nats per response, score) of π* at each β, means over the prompts."""
        points = []
        for kl_coef in kl_coefs:
            value, score = (float(column.mean()) for column in self._best(kl_coef))
            points.append(((score - value) / kl_coef, score))
        return points

    def _best(self, kl_coef: float) -> tuple[Tensor, Tensor]:
        """J* and the score of π* at each prompt, (P,) each."""
        return optimum_values(self.scores, kl_coef), (_weights(self.scores, kl_coef) * self.scores).sum(dim=1)

    def _interval(self, value: float, kl_coef: float, seed: int) -> tuple[float, float]:
        """Of the mean of J* over these prompts: their samples are drawn again, the prompts stay.

        Around the estimate, not by percentiles: samples drawn again hold fewer different ones, and lie too low.
        """
        generator, count = np.random.default_rng(seed), self.scores.shape[1]
        total = torch.zeros(RESAMPLES, dtype=torch.float64)
        for scores in self.scores:
            for part in total.split(max(1, 1_000_000 // count)):  # so many numbers in memory at a time
                drawn = torch.from_numpy(generator.integers(count, size=(len(part), count)))
                part += optimum_values(scores[drawn], kl_coef)
        half = DEVIATIONS * float(total.std()) / len(self.scores)
        return value - half, value + half


def optimum_values(scores: Tensor, kl_coef: float) -> Tensor:
    """β·log E[exp(score/β)] of each row of samples: (P, n) → (P,), in the unit of the score.

    The logarithm of a mean is too low on average, by Var(w)/(2n·E[w]²) to first order in 1/n with w = exp(score/β) (the
    delta method), which is added.

    Raises:
        ValueError: β is not a positive number.
    """
    count = scores.shape[1]
    log_mean = scores.div(_checked(kl_coef)).logsumexp(dim=1) - math.log(count)
    if count == 1:
        return kl_coef * log_mean
    relative = _weights(scores, kl_coef) * count  # w / mean of w
    bias = relative.var(dim=1) / (2 * count)
    return kl_coef * (log_mean + bias)


def _weights(scores: Tensor, kl_coef: float) -> Tensor:
    """π*/π_ref of each sample, each row adding up to 1."""
    return scores.div(_checked(kl_coef)).softmax(dim=1)


def _checked(kl_coef: float) -> float:
    if not 0 < kl_coef < math.inf:
        raise ValueError(f"kl_coef={shown(kl_coef)} must be a number > 0; at 0 the optimum is the best score there is")
    return kl_coef


def estimate_optimum(
    venv: gym.vector.VectorEnv,
    kl_coef: float,
    *,
    prompts: Sequence[Any] | None = None,
    samples: int = 256,
    generator: torch.Generator | None = None,
) -> Optimum:
    """J* of a task, from samples of the environment's reference model; see `ReferenceScores.optimum`.

    Args:
        venv: a batched environment with ``autoreset_mode=DISABLED``.
        kl_coef: β > 0, in score per nat.
        prompts: anything ``reset(options={"prompt": …})`` takes; None: every prompt of the environment.
        samples: responses per prompt.
        generator: source of the samples; None: seed 0.

    Raises:
        ValueError: β or ``samples`` out of range.
    """
    _checked(kl_coef)
    return sample_reference(venv, prompts=prompts, samples=samples, generator=generator).optimum(kl_coef)


def sample_reference(
    venv: gym.vector.VectorEnv,
    *,
    prompts: Sequence[Any] | None = None,
    samples: int = 256,
    generator: torch.Generator | None = None,
) -> ReferenceScores:
    """Let the reference answer each prompt ``samples`` times; arguments as those of `estimate_optimum`.

    Raises:
        ValueError: ``samples`` below 1, no prompts, or responses that were cut before they were scored.
    """
    env = cast(Any, venv.unwrapped)
    _check_scorer(env)
    chosen = list(range(len(env.prompts)) if prompts is None else prompts)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples={shown(samples)} must be an integer of at least 1")
    if not chosen:
        raise ValueError("prompts is empty; name at least one, or None for all of the environment's")
    played = [prompt for prompt in chosen for _ in range(samples)]
    played += played[-1:] * (venv.num_envs - len(played))  # a slot at least must have something to do
    rollout = collect(
        venv,
        env.reference,
        len(played),
        generator=generator or torch.Generator(env.reference.device).manual_seed(0),
        sampling=SamplingParams(env.temperature),
        prompts=played,
    )
    used = len(chosen) * samples
    return ReferenceScores(rollout.prompts[:used:samples], rollout.scores[:used].view(len(chosen), samples))


def exact_optimum(env: gym.Env, kl_coef: float, prompt: Any, *, seed: int = 0) -> Optimum:
    """J* at one prompt by playing every response there is: V(s) = β·log Σ_a π_ref(a|s)·exp((r(s, a) + V(s'))/β).

    For trees of a few ten thousand responses: few actions (``forbidden_tokens``, ``reference_top_k``) or few tokens.
    The episode that was running is lost.

    Args:
        env: a single environment, with any wrappers that leave tokens as actions; what it pays must depend on prompt
            and tokens alone.
        kl_coef: β > 0, in score per nat; the environment's own plays no part.
        prompt: anything ``reset(options={"prompt": …})`` takes.
        seed: of every reset.

    Raises:
        ValueError: β is not a positive number, or the tree is too large.
    """
    _checked(kl_coef)
    _check_scorer(env.unwrapped)
    with cast(Any, env.unwrapped).kl_delegated(report_ref_logprob=True):
        root = Enumeration(env, kl_coef, prompt, seed).node(())
    kl = (root.score - root.value) / kl_coef
    text = root.prompt
    return Optimum(
        kl_coef, root.value, root.score, kl, root.reference, (PromptOptimum(text, root.value, root.score, kl),)
    )


@dataclass
class OptimumSettings(TaskSettings):
    """Estimate the best that any policy can reach on a task's held-out prompts, and the best score at any KL."""

    kl_coef: float = 0.05
    """β of the objective score − β·KL, in score per nat."""
    samples: int = 256
    """Responses of the reference per prompt."""
    output: str | None = None
    """A JSON file to write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"kl_coef": POSITIVE, "samples": COUNT, "output": optional(TEXT)})


class Estimation:
    """The program of the command line."""

    begun = False

    def __init__(self, settings: OptimumSettings, console: Console | None = None) -> None:
        self.settings, self.display = settings, Display(console)
        _, self.venv = make_environments(settings)

    def execute(self) -> Optimum:
        """Sample, print, and write if wanted."""
        settings = self.settings
        generator = torch.Generator(settings.device).manual_seed(settings.seed)
        sampled = sample_reference(self.venv, samples=settings.samples, generator=generator)
        points = {power: sampled.optimum(settings.kl_coef * 2**power) for power in range(5, -3, -1)}
        optimum = points[0]
        if settings.output is not None:
            replace_file(Path(settings.output), json.dumps(asdict(optimum), indent=1))
        self.display.attempt("the table", lambda: optimum_table(list(points.values()), settings))
        return optimum


def _check_scorer(env: Any) -> None:
    if env.scorer_needs_policy:
        what = "the scorer sees the policy: what a response is paid moves with the weights"
        raise ValueError(f"{what}, and no best possible objective is known")


def optimum_table(points: Sequence[Optimum], settings: OptimumSettings) -> Table:
    """The optimum at each β, one line each; the one that was asked for is marked."""
    title = (
        f"{settings.env}: {len(points[0].per_prompt)} held-out prompts × {settings.samples} responses of the reference"
    )
    table = Table(title=f"{title}, mean score {points[0].reference:.3f}", title_justify="left")
    for name in ("β", "best objective (95 %)", "its score", "its KL, nats per response", "effective samples"):
        table.add_column(name, justify="right")
    for at in points:
        low, high = at.interval or (math.nan, math.nan)
        cells = f"{at.value:.3f} ({low:.3f} to {high:.3f})", f"{at.score:.3f}", f"{at.kl:.2f}", f"{at.ess or 0:.1f}"
        table.add_row(f"{at.kl_coef:g}", *cells, style="bold" if at.kl_coef == settings.kl_coef else None)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.optimum --help``"""
    Estimation(parse(OptimumSettings, "textgen_env.agents.optimum", arguments)).execute()


if __name__ == "__main__":
    run_program(lambda: Estimation(parse(OptimumSettings, "textgen_env.agents.optimum")))
