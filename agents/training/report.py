"""What a run shows people: tables on the terminal, a plot and a page of episodes.

What lives here: rich tables, a matplotlib figure and an HTML page made of finished numbers. What does not: measuring
them (``evaluate.py``), writing them down (``metrics_log.py``), printing (``display.py``).

Prompts and responses are a model's and therefore untrusted: they are shown as they are, without markup, and what would
steer a terminal is made visible (`textgen_env.render.visible`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from textgen_env.render import Frame, render_html, visible

from ..optimum import Optimum
from .display import Display
from .evaluate import EvalReport, standard_error_of_difference
from .extra import Table, Text
from .files import replace_file
from .metrics_log import read_metrics
from .run_settings import RunSettings

ROWS = (
    ("score", "score", "{:.3f}"),
    ("kl_per_token", "KL to the reference, nats per token", "{:.3f}"),
    ("kl_per_response", "KL to the reference, nats per response", "{:.2f}"),
    ("reference_perplexity", "perplexity under the reference", "{:.1f}"),
    ("response_length", "response length, tokens", "{:.1f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
    ("eos_rate", "responses that end with EOS", "{:.0%}"),
    ("perplexity", "perplexity of the held-out references", "{:.2f}"),
    ("accuracy", "held-out pairs whose preferred response has the larger reward", "{:.0%}"),
    ("judge_share", "the same, as a share of the judge's agreement with itself", "{:.0%}"),
    ("log_loss", "log-loss of held-out pairs, nats", "{:.3f}"),
    ("calibration_error", "expected calibration error", "{:.3f}"),
    ("disagreement", "disagreement of the ensemble, in rewards", "{:.2f}"),
)
LIMITS = {"clip_fraction": ("clip fraction", 0.3), "approx_kl": ("approx-KL", 0.1)}
"""Beyond these the steps of an update are too large for the surrogate to mean anything."""


class Attainable(NamedTuple):
    """The best that any policy can reach: at the run's β, and (nats per response, score) at others."""

    optimum: Optimum
    frontier: list[tuple[float, float]]


class Samples(Protocol):
    """Some responses and what they were given, as a `Rollout` has them: one entry each."""

    prompts: list[str]
    texts: list[str]
    scores: Any  # a tensor or an array


def too_large(metrics: Mapping[str, float], lr: float | None) -> dict[str, str]:
    """What to say of an update whose steps were too large, by the metric that shows it.

    Args:
        metrics: of the update.
        lr: the peak learning rate of the run, if there is one.
    """
    lower = "the steps are too large; try a lower lr" + ("" if lr is None else f" than {lr:g}")
    return {
        name: f"{label} {metrics[name]:.2f} is above {limit}: {lower}"
        for name, (label, limit) in LIMITS.items()
        if metrics.get(name, 0.0) > limit
    }


def before_after_table(before: EvalReport, after: EvalReport, optimum: Optimum | None = None) -> Table:
    """The held-out metrics of the policy before and after training, and their paired differences, ± standard errors.

    With an optimum also the objective, its best possible value, and the share of the attainable gain.
    """
    title = f"{len(before.texts)} held-out prompts, before and after training (± standard error)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("before", "after", "difference"):
        table.add_column(name, justify="right")
    for key, label, form in (row for row in ROWS if row[0] in before.metrics and row[0] in after.metrics):
        old, new = before.metrics[key], after.metrics[key]
        error = standard_error_of_difference(before, after, key)
        difference = with_error(form.replace("{:", "{:+"), new - old, form, error)
        cells = (with_error(form, side.metrics[key], form, side.standard_error(key)) for side in (before, after))
        table.add_row(label, *cells, difference)
    if optimum is not None:
        _add_objective(table, before, after, optimum)
    return table


def _add_objective(table: Table, before: EvalReport, after: EvalReport, optimum: Optimum) -> None:
    points = [(side.metrics["score"], side.metrics["kl_per_response"]) for side in (before, after)]
    old, new = (score - optimum.kl_coef * kl for score, kl in points)
    shares = [f"{optimum.share(*point):.0%}" for point in points]
    table.add_section()
    table.add_row(f"objective, score − {optimum.kl_coef:g}·KL", f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    best = f"{optimum.value:.3f}"
    if optimum.interval is not None:
        best += " ({:.3f} to {:.3f})".format(*optimum.interval)
    table.add_row("best possible of any policy (95 %)", "", best, f"{optimum.value - optimum.reference:+.3f}")
    table.add_row("share of the attainable gain", *shares, "")


def with_error(form: str, value: float, error_form: str, error: float) -> str:
    """A number ± its standard error, which is left out where it is not known (NaN)."""
    return form.format(value) + ("" if math.isnan(error) else f" ± {error_form.format(error)}")


def answers_table(before: EvalReport, after: EvalReport, count: int = 5) -> Table:
    """The first prompts with both answers side by side."""
    table = Table(title="The same prompts, both policies", title_justify="left", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, ratio=1, overflow="fold")
    rows = zip(before.prompts, before.texts, before.scores, after.texts, after.scores, strict=True)
    for prompt, old, old_score, new, new_score in list(rows)[:count]:
        answers = (f"{text.strip()} ({score:.2f})" for text, score in ((old, old_score), (new, new_score)))
        table.add_row(shown(prompt), *map(shown, answers))
    return table


def samples_table(update: int, samples: Samples, count: int = 3) -> Table:
    """Some responses of an update."""
    table = Table(title=f"update {update}: samples", title_justify="left", show_lines=True)
    for name in ("prompt", "response"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_column("score", justify="right")
    for prompt, text, score in list(zip(samples.prompts, samples.texts, samples.scores.tolist(), strict=True))[:count]:
        table.add_row(shown(prompt), shown(text), f"{score:.2f}")
    return table


def shown(text: str) -> Text:
    """A model's text as it is: brackets are no markup, escapes are visible."""
    return Text(visible(text.strip()))


def plot(
    records: Sequence[dict[str, Any]],
    path: Path,
    title: str = "",
    held_out: Mapping[int, EvalReport] = {},
    frontier: Sequence[tuple[float, float]] = (),
) -> None:
    """Score, KL and length over the updates, training and held-out, as a PNG; bands are ± one standard error.

    With a frontier a fourth panel shows the held-out path under it.

    Args:
        records: lines of a metrics file.
        path: where to write.
        title: of the figure.
        held_out: evaluations by update that are not in the file: the one before training, and the last.
        frontier: the best score at any KL, (nats per response, score) each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"score": "mean score", "kl_per_token": "KL, nats per token", "response_length": "response length, tokens"}
    figure = Figure(figsize=(16 if frontier else 12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes_of_all = figure.subplots(1, len(panels) + bool(frontier))
    for axes, (name, label) in zip(axes_of_all, panels.items(), strict=False):
        training = [(r["update"], r[f"train/{name}"]) for r in records if f"train/{name}" in r]
        if training:
            axes.plot(*zip(*training, strict=True), label="training")
        if curve := held_out_curve(records, name, held_out):
            updates, values, errors = zip(*curve, strict=True)
            (line,) = axes.plot(updates, values, "o--", label="held out")
            low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(updates, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="update", title=label)
        axes.grid(alpha=0.3)
    if frontier:
        _draw_frontier(axes_of_all[-1], records, held_out, frontier)
    if figure.axes[0].lines:
        figure.axes[0].legend()
    figure.suptitle(visible(title), parse_math=False)  # a dollar in a name is a dollar
    figure.savefig(path, dpi=120)


def _draw_frontier(
    axes: Any,
    records: Sequence[dict[str, Any]],
    held_out: Mapping[int, EvalReport],
    frontier: Sequence[tuple[float, float]],
) -> None:
    """How far the held-out path, from the first evaluation to the last, stays below the best score at its KL."""
    scores, kls = (held_out_curve(records, name, held_out) for name in ("score", "kl_per_response"))
    axes.plot(*zip(*sorted(frontier), strict=True), color="black", label="best possible")
    axes.plot([kl for _, kl, _ in kls], [score for _, score, _ in scores], "o--", color="C1", label="held out")
    axes.set(xlabel="KL, nats per response", title="score against KL")
    axes.grid(alpha=0.3)
    axes.legend()


def write_report(
    folder: Path,
    display: Display,
    settings: RunSettings,
    evaluations: tuple[EvalReport, EvalReport],
    episodes: Callable[[], list[Frame]],
    attainable: Attainable | None = None,
) -> None:
    """Plot, page of episodes and tables; what fails is left out and named.

    Args:
        folder: of the run, with its ``metrics.jsonl``.
        display: where tables are printed.
        settings: of the run.
        evaluations: before and after training.
        episodes: those that the page shows, the policy's after training.
        attainable: the best that any policy can reach, if it is known.
    """
    title = f"{settings.env}, {settings.model}, seed {settings.seed}"
    held_out = dict(zip((0, settings.updates), evaluations, strict=True))
    optimum = attainable.optimum if attainable else None

    def draw(path: Path) -> None:
        plot(read_metrics(folder / "metrics.jsonl"), path, title, held_out, attainable.frontier if attainable else ())

    def write_page() -> None:
        replace_file(folder / "episodes.html", render_html(episodes(), title=f"{title}: after training"))

    display.attempt("plot.png", lambda: replace_file(folder / "plot.png", draw))
    display.attempt("episodes.html", write_page)
    display.attempt("the table of before and after", lambda: before_after_table(*evaluations, optimum))
    display.attempt("the table of answers", lambda: answers_table(*evaluations))


def held_out_curve(
    records: Sequence[dict[str, Any]], name: str, held_out: Mapping[int, EvalReport]
) -> list[tuple[int, float, float]]:
    """Update, value and standard error (NaN where it is not known) of a metric, by update; see `plot`."""
    points = {
        r["update"]: (r[f"eval/{name}"], r.get(f"eval/{name}_stderr", math.nan)) for r in records if f"eval/{name}" in r
    }
    points |= {update: (each.metrics[name], each.standard_error(name)) for update, each in held_out.items()}
    return [(update, *points[update]) for update in sorted(points)]
