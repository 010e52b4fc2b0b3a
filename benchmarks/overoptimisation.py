"""How far a reward model can be trusted: its score and the hidden judge's along a long run of PPO against it.

    python -m textgen_env.agents.rlhf --output runs/rlhf
    python -m benchmarks.overoptimisation runs/rlhf --figure overoptimisation.png

Against d = √KL(π‖π₀) of a response, what the judge gains is fitted by R(d) = d·(α − β·log d), the law that Gao et al.
found for reinforcement learning; it peaks at d = exp(α/β − 1). Both scores are of the same responses, to held-out
prompts.

What lives here: the run with its two scores, the fit, the figure. What does not: labels and the reward model
(``agents/rlhf.py``, whose folders this reads), PPO (``agents/ppo.py``).

References:
    Gao, Schulman & Hilton, "Scaling laws for reward model overoptimization" (2023).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from benchmarks.report import keep, markdown, read
from textgen_env.agents.ppo import PPO, PPOConfig, PPOSettings
from textgen_env.agents.preferences.stages import rescore
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.evaluate import EvalReport, Played
from textgen_env.agents.training.metrics_log import read_metrics
from textgen_env.agents.training.run import Run
from textgen_env.agents.training.run_settings import TaskSettings


@dataclass
class OveroptimisationSettings:
    """PPO against the reward model of each folder, far beyond what is wise."""

    folders: Positional[list[Path]]
    """Of finished runs of ``textgen_env.agents.rlhf``; their first round's reward model is used."""
    updates: int = 150
    """Iterations of PPO."""
    eval_every: int = 5
    """Updates between measurements."""
    ppo: OmitArgPrefixes[PPOConfig] = field(default_factory=lambda: PPOConfig(kl_coef=0.001, lr=1e-3, episodes=64))
    """The algorithm, with a β that holds next to nothing."""
    out: Path | None = None
    """Also append the JSON lines to this file."""
    figure: Path | None = None
    """Draw the curves and their fits as a PNG."""
    lines: list[Path] = field(default_factory=list)
    """Files of JSON lines, of earlier runs, that are shown too."""


class Fit(NamedTuple):
    """R(d) = d·(α − β·log d) in least squares; R² is of the gains."""

    alpha: float
    beta: float
    r_squared: float

    def __call__(self, distance: float) -> float:
        """R(d)."""
        return distance * (self.alpha - self.beta * math.log(distance)) if distance > 0 else 0.0

    @property
    def peak(self) -> float:
        """The d beyond which the judge's score falls; infinite where it never does."""
        return math.exp(self.alpha / self.beta - 1) if self.beta > 0 else math.inf


def fit(distances: Sequence[float], gains: Sequence[float]) -> Fit:
    """α and β of the gains at some distances d > 0."""
    d, gain = np.array(distances), np.array(gains)
    columns = np.stack([d, -d * np.log(d)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left = gain - columns @ np.array([alpha, beta])
    return Fit(float(alpha), float(beta), float(1 - (left**2).sum() / ((gain - gain.mean()) ** 2).sum()))


class JudgedRun(Run):
    """A run that also asks the judge, on held-out prompts alone; the other arguments are those of `Run`."""

    def __init__(self, judge: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self.judge = judge
        super().__init__(*arguments, **options)

    def _summarize(self, played: Played) -> EvalReport:
        report = super()._summarize(played)
        scores = rescore(self.eval_venv, played.rollout, self.judge)
        report.metrics["judge"] = math.fsum(scores) / len(scores)
        report.left_out["judge"] = [(math.fsum(scores) - each) / (len(scores) - 1) for each in scores]
        return report


def measure(settings: OveroptimisationSettings) -> Iterator[dict[str, Any]]:
    """One record per measurement: distance, both scores, both standard errors."""
    for folder in settings.folders:
        theirs = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        first = folder if theirs["rounds"] == 1 else folder / "round-1"
        task = {name: theirs[name] for name in SHARED}
        if theirs["sft_updates"]:
            task["model"] = str(folder / "sft" / "last")
        run_settings = PPOSettings(
            **{**task, "scorer": (first / "scorer.json").read_text(encoding="utf-8")},
            updates=settings.updates,
            eval_every=settings.eval_every,
            optimum_samples=0,
            ppo=settings.ppo,
            sample_every=settings.updates,
        )
        labels = len((first / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
        named = {"benchmark": "overoptimisation", "labels": labels, "seed": theirs["seed"], "env": theirs["env"]}
        judge = cast(Any, make_environments(PPOSettings(**task))[1].unwrapped).scorer
        for record in train(run_settings, judge):
            yield named | record


SHARED = [each.name for each in fields(TaskSettings) if each.name != "debug"]


def train(settings: PPOSettings, judge: Callable[..., Any]) -> list[dict[str, float]]:
    """A run against the reward model, measured on the way."""
    with tempfile.TemporaryDirectory() as folder:
        settings.output = str(Path(folder) / "run")
        console = Console(stderr=True)
        run = JudgedRun(judge, settings, lambda run: PPO(run.venv, run.policy, settings.ppo, **run.options), console)
        run.execute()
        before = EvalReport(**json.loads((run.folder / "before.json").read_text(encoding="utf-8")))
        found = [r for r in read_metrics(run.folder / "metrics.jsonl") if "eval/judge" in r]
    start = before.metrics | {"judge_stderr": before.standard_error("judge")}
    records = [{"update": 0, **{f"eval/{name}": value for name, value in start.items()}}, *found]
    return [
        {
            "update": record["update"],
            "distance": math.sqrt(max(0.0, record["eval/kl_per_response"])),
            "judge": record["eval/judge"],
            "judge_stderr": record["eval/judge_stderr"],
            "reward_model": record["eval/score"],
        }
        for record in records
    ]


# --- what is said and drawn -------------------------------------------------------------------------------------------


def curves(records: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """The measurements of each run, by its labels and seed, in order."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault((record["labels"], record["seed"]), []).append(record)
    return found


def fit_of(curve: Sequence[dict[str, Any]]) -> Fit:
    """Of the judge's gains."""
    moved = [record for record in curve if record["distance"] > 0 and record["update"] > 0]
    return fit([r["distance"] for r in moved], [r["judge"] - curve[0]["judge"] for r in moved])


def table(records: Sequence[dict[str, Any]]) -> str:
    """One line per run: where the judge's score was best, where it ended, and the fit."""
    rows = []
    for (labels, seed), curve in curves(records).items():
        best, last, law = max(curve, key=lambda r: r["judge"]), curve[-1], fit_of(curve)
        cells = [f"{r['judge']:.3f} at {r['distance']:.1f}" for r in (curve[0], best, last)]
        rows.append(
            [str(labels), str(seed), *cells, f"{last['reward_model']:.2f}", f"{law.alpha:.3f}", f"{law.beta:.3f}"]
            + [f"{law.peak:.1f}" if law.peak < 100 else "beyond 100", f"{law.r_squared:.2f}"]
        )
    columns = ["labels", "seed", "judge at √KL: first", "best", "last", "reward model, last"]
    columns += ["α", "β", "peak of the fit"]
    return markdown(columns + ["R²"], rows)


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Judge with its fit, and reward model, against √KL."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = curves(records)
    figure = Figure(figsize=(4.6 * len(found), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, ((labels, seed), curve) in zip(row, found.items(), strict=True):
        law, start, end = fit_of(curve), curve[0]["judge"], max(r["distance"] for r in curve)
        d, other = [r["distance"] for r in curve], axes.twinx()
        axes.errorbar(d, [r["judge"] for r in curve], [r["judge_stderr"] for r in curve], fmt="o", ms=3, label="judge")
        grid = np.linspace(0, end, 200)
        axes.plot(grid, [start + law(x) for x in grid], color="C0", label=f"d({law.alpha:.2f} − {law.beta:.2f} log d)")
        other.plot(d, [r["reward_model"] for r in curve], "s", ms=3, color="C1", label="reward model")
        axes.set(xlabel="d = √KL, √nats per response", ylabel="judge's score", title=f"{labels} labels, seed {seed}")
        other.set_ylabel("reward model's score")
        axes.legend(handles=[*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]], fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(OveroptimisationSettings)
    records = [*read(settings.lines), *keep(measure(settings), settings.out)]
    print(table(records))
    if settings.figure is not None:
        draw(records, settings.figure)


if __name__ == "__main__":
    main()
