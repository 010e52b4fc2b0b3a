"""What became of a policy, stage by stage: the hidden judge's score beside the reward model's, on held-out prompts.

What lives here: the measurement, and its table. What does not: the stages (``../rlhf.py``), playing and standard errors
(``../training/evaluate.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from gymnasium.vector import VectorEnv

from textgen_env.lm.sampling import SamplingParams
from textgen_env.scorers.base import call_scorer

from ..policy import ActorCritic, Reference
from ..rollout import Rollout
from ..training.evaluate import EvalReport, play, standard_error_of_difference, summarize
from ..training.extra import Table
from ..training.report import with_error

COLUMNS = (
    ("judge", "judge", "{:.3f}"),
    ("reward_model", "reward model", "{:.2f}"),
    ("kl_per_response", "KL, nats", "{:.2f}"),
    ("response_length", "tokens", "{:.1f}"),
)


def measure_stage(
    venv: VectorEnv,
    policy: ActorCritic,
    reference: Reference,
    reward_model: Callable[..., Any],
    sampling: SamplingParams | None = None,
) -> EvalReport:
    """A policy on held-out prompts, as `evaluate` has it, with the metrics ``judge`` and ``reward_model``.

    Args:
        venv: an environment on the held-out prompts, whose scorer is the judge.
        policy: whom to measure.
        reference: what KL is measured from.
        reward_model: a scorer, which is asked about the same responses.
        sampling: see `play`.

    Raises:
        ScorerError: a scorer failed.
    """
    played = play(venv, policy, reference, sampling=sampling)
    report = summarize(played)
    found = {"judge": report.scores, "reward_model": rescore(venv, played.rollout, reward_model)}
    report.metrics |= {name: _mean(scores) for name, scores in found.items()}
    report.left_out |= {name: _without_each(scores) for name, scores in found.items()}
    return report


def rescore(venv: VectorEnv, rollout: Rollout, scorer: Callable[..., Any]) -> list[float]:
    """What another scorer says of the responses to all prompts of an environment, in their order.

    Raises:
        ScorerError: the scorer failed.
    """
    prompts = list(cast(Any, venv.unwrapped).prompts)
    names = {name for prompt in prompts for name in prompt.extra}
    columns: dict[str, Any] = {name: [prompt.extra.get(name) for prompt in prompts] for name in names}
    if any(prompt.messages for prompt in prompts):
        columns["messages"] = [p.messages and list(p.messages) for p in prompts]
    columns |= {"prompts": [p.text for p in prompts], "references": [list(p.references) for p in prompts]}
    return call_scorer(scorer, rollout.texts, **columns, finish_reasons=list(rollout.finish_reasons))


def stages_table(stages: Mapping[str, EvalReport]) -> Table:
    """One row per stage: each metric ± its standard error; below both scores, their paired difference to the first."""
    first = next(iter(stages.values()))
    title = f"{len(first.texts)} held-out prompts, per response (± standard error; Δ to the first line)"
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("policy")
    for _, label, _ in COLUMNS:
        table.add_column(label, justify="right", no_wrap=True)
    for stage, report in stages.items():
        table.add_row(stage, *(_cell(first, report, name, form) for name, _, form in COLUMNS))
    return table


def _cell(first: EvalReport, report: EvalReport, name: str, form: str) -> str:
    value = with_error(form, report.metrics[name], form, report.standard_error(name))
    if report is first or name not in ("judge", "reward_model"):
        return value
    difference = report.metrics[name] - first.metrics[name]
    error = standard_error_of_difference(first, report, name)
    return f"{value}\nΔ {with_error(form.replace('{:', '{:+'), difference, form, error)}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _without_each(values: Sequence[float]) -> list[float]:
    """Means of all but the first, all but the second, …; none of a single value."""
    total, rest = math.fsum(values), len(values) - 1
    return [(total - value) / rest for value in values] if rest else []
