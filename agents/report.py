"""What a run shows people: tables on the terminal and a plot.

What lives here: rich tables and a matplotlib figure made of finished numbers. What does not: measuring them
(``evaluate.py``), writing them down (``metrics.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from .evaluate import Evaluation
from .rollout import Rollout

ROWS = (
    ("score", "score", "{:.3f}"),
    ("kl_per_token", "KL to the reference, nats per token", "{:.3f}"),
    ("kl_per_response", "KL to the reference, nats per response", "{:.2f}"),
    ("reference_perplexity", "perplexity under the reference", "{:.1f}"),
    ("response_length", "response length, tokens", "{:.1f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
    ("eos_rate", "responses that end with EOS", "{:.0%}"),
)


def before_after_table(before: Evaluation, after: Evaluation) -> Table:
    """The held-out metrics of the policy before and after training."""
    table = Table(title=f"{len(before.texts)} held-out prompts, before and after training", title_justify="left")
    table.add_column("")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for key, label, form in ROWS:
        table.add_row(label, form.format(before.metrics[key]), form.format(after.metrics[key]))
    return table


def answers_table(before: Evaluation, after: Evaluation, count: int = 5) -> Table:
    """The first prompts with both answers side by side."""
    table = Table(title="The same prompts, both policies", title_justify="left", show_lines=True)
    for name in ("prompt", "before", "after"):
        table.add_column(name, ratio=1, overflow="fold")
    rows = zip(before.prompts, before.texts, before.scores, after.texts, after.scores, strict=True)
    for prompt, old, old_score, new, new_score in list(rows)[:count]:
        table.add_row(_plain(prompt), f"{_plain(old)} ({old_score:.2f})", f"{_plain(new)} ({new_score:.2f})")
    return table


def samples_table(update: int, rollout: Rollout, count: int = 3) -> Table:
    """Some trajectories of an update."""
    table = Table(title=f"update {update}: samples", title_justify="left", show_lines=True)
    for name in ("prompt", "response"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_column("score", justify="right")
    for prompt, text, score in list(zip(rollout.prompts, rollout.texts, rollout.scores.tolist(), strict=True))[:count]:
        table.add_row(_plain(prompt), _plain(text), f"{score:.2f}")
    return table


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Score, KL and length over the updates, training and held-out, as a PNG.

    Args:
        records: lines of a metrics file.
        path: where to write.
    """
    panels = {"score": "mean score", "kl_per_token": "KL, nats per token", "response_length": "response length, tokens"}
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for prefix, style in (("train", "-"), ("eval", "o--")):
            points = [(r["update"], r[f"{prefix}/{name}"]) for r in records if f"{prefix}/{name}" in r]
            if points:
                axes.plot(*zip(*points, strict=True), style, label="training" if prefix == "train" else "held out")
        axes.set(xlabel="update", title=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def _plain(text: str) -> str:
    """Square brackets would be read as markup."""
    return text.replace("[", r"\[").strip()
