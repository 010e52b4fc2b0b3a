"""Whether predicted preferences come true: accuracy, log-loss, the reliability table and its plot.

What lives here: numbers of held-out pairs, made of reward differences. What does not: the model that gives them
(``../reward_model.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..preference_losses import preference_accuracy, preference_loss


class Bin(NamedTuple):
    """Pairs whose likelier response is preferred with a predicted probability in [low, high)."""

    low: float
    high: float
    pairs: int
    predicted: float  # mean of the predicted probabilities
    observed: float  # share in which the likelier response was preferred; a tie counts ½


def reliability(differences: Tensor, targets: Tensor, bins: int = 5) -> list[Bin]:
    """The reliability table over [½, 1], without empty bins.

    Args:
        differences: (N,) r(first) − r(second); P(first ≻ second) = σ of it.
        targets: (N,) 1 where the first is preferred, ½ for a tie.
        bins: of equal width.
    """
    confidence = differences.double().abs().sigmoid()  # of the likelier response
    likelier_won = torch.where(differences == 0, 0.5, torch.where(differences > 0, targets, 1 - targets)).double()
    number = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    table = []
    for i in range(bins):
        if count := int((chosen := number == i).sum()):
            predicted, observed = float(confidence[chosen].mean()), float(likelier_won[chosen].mean())
            table.append(Bin(0.5 + i / (2 * bins), 0.5 + (i + 1) / (2 * bins), count, predicted, observed))
    return table


def calibration_error(table: Sequence[Bin]) -> float:
    """Expected calibration error: Σ_b n_b/N·|predicted_b − observed_b| (Naeini et al. 2015)."""
    return sum(b.pairs * abs(b.predicted - b.observed) for b in table) / sum(b.pairs for b in table)


def preference_metrics(
    differences: Tensor, targets: Tensor, prompts: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """``accuracy`` and ``log_loss`` (nats) of N pairs, then of all but the first prompt's, all but the second's, …

    Pairs of one prompt share responses, so that they say less together than as many of different prompts: standard
    errors are to leave out prompts, not pairs.

    Args:
        differences: (N,) r(first) − r(second).
        targets: (N,) 1 where the first is preferred, ½ for a tie.
        prompts: of the pairs; None: each has a prompt of its own.
    """
    number: dict[str, int] = {}
    names = map(str, range(len(targets))) if prompts is None else prompts
    groups = torch.tensor([number.setdefault(name, len(number)) for name in names])
    left = len(groups) - groups.bincount()  # (prompts,) pairs of the others
    found = {}
    for name, measure in (("accuracy", preference_accuracy), ("log_loss", preference_loss)):
        each = torch.stack(
            [measure(*pair) for pair in zip(differences[:, None], targets[:, None], strict=True)]
        ).double()
        others = (each.sum() - torch.zeros(len(left)).double().index_add(0, groups, each)) / left.clamp(min=1)
        found[name] = [float(each.mean()), *others.tolist()]
    return found


CURVES = {"train/accuracy": "accuracy, training", "eval/accuracy": "accuracy, held out", "eval/log_loss": "log-loss"}


def draw_calibration(
    path: Path,
    records: Sequence[dict[str, float]],
    table: Sequence[Bin],
    title: str = "",
    judge_agreement: float | None = None,
) -> None:
    """Accuracy and log-loss over the updates beside the reliability diagram, as a PNG.

    Args:
        path: where to write.
        records: lines of a metrics file.
        table: of the last evaluation.
        title: of the figure.
        judge_agreement: how often who labelled agrees with themselves, if it is known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, label in CURVES.items():
        if points := [(r["update"], r[name]) for r in records if name in r]:
            left.plot(*zip(*points, strict=True), "o-", markersize=3, label=label)
    if judge_agreement is not None:
        left.axhline(judge_agreement, color="black", linewidth=0.8, label="the judge with itself")
    left.set(xlabel="update", title="pairs")
    left.legend()
    right.plot([0.5, 1], [0.5, 1], color="black", linewidth=0.8, label="calibrated")
    right.plot([b.predicted for b in table], [b.observed for b in table], "o-", label="held out")
    for b in table:
        right.annotate(str(b.pairs), (b.predicted, b.observed), xytext=(4, -10), textcoords="offset points")
    right.set(xlabel="predicted probability of the likelier response", ylabel="share preferred", title="reliability")
    right.legend()
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)
