"""The expected gradient of each estimator and loss, beside the gradient of what it is meant to optimise.

    python -m benchmarks.gradients
    python -m benchmarks.gradients --trl     # also the losses of TRL, where it is installed

What lives here: how a row is measured, the sections, the table, the command. What does not: the rows
(``gradient_rows.py``, ``gradient_kl_rows.py``, ``expected_rows.py``), the task and its oracles (``enumerated.py``), the
losses themselves (``agents/``, and whoever's are plugged in).

On a task of seven responses every batch can be written down, so that E[∇L] and the variance of ∇L are sums, not
estimates. For each row, with B responses in a batch:

    angle   between −E[∇L] and ∇J, in degrees; their scale is left aside, since Adam divides it out
    noise   √(B·E‖∇L − E[∇L]‖²) / ‖E[∇L]‖: what one response would have, were the batch a mean of independent ones
    limit   the angle of an endless batch: one of 16,384 responses, each as often as it is likely
    verdict "unbiased" if all angles are below 0.1°; "consistent" if that of the limit is, so that bias shrinks as
            batches grow; else "biased"; "no gradient" if E[∇L] is 0. A KL in the loss cannot know that π also decides
            which states come next: "right, states fixed" if it is right but for that
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor

from benchmarks import gradient_kl_rows as kl_rows
from benchmarks import gradient_rows as rows
from benchmarks.enumerated import EnumeratedTask
from benchmarks.expected_rows import tasks
from benchmarks.gradient_rows import Loss, Row
from benchmarks.report import keep, markdown

RIGHT = 0.1  # degrees
NOTHING = 1e-5  # of the gradient's root mean square: float32 rounding


@dataclass
class GradientSettings:
    """Compare expected gradients with true ones."""

    trl: bool = False
    """Also the losses of TRL, which must be installed."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


class Moments(NamedTuple):
    """Of ∇L over all batches of one size."""

    mean: Tensor
    variance: float  # E‖∇L − E[∇L]‖²
    size: int


def moments(loss: Loss, task: EnumeratedTask, group_size: int, groups: int) -> Moments:
    """By enumeration."""
    mean, second, total = torch.zeros(()), 0.0, 0.0
    outcomes = getattr(loss, "outcomes", lambda rollout: [(1.0, loss(rollout))])  # of what it draws itself
    for chance, rollout in task.samples(group_size, groups):
        for of_draw, value in outcomes(rollout):
            gradient, weight = task.flat(value), chance * of_draw
            mean, second, total = mean + weight * gradient, second + weight * float(gradient @ gradient), total + weight
    if abs(total - 1) > 1e-6:
        raise RuntimeError(f"the probabilities of all batches add up to {total}")
    return Moments(mean, max(second - float(mean @ mean), 0.0), group_size * groups)


def angle(found: Tensor, wanted: Tensor) -> float:
    """Between two vectors, degrees; by the tangent, since a cosine near 1 tells small angles badly."""
    direction = wanted / wanted.norm()
    along = float(found @ direction)
    return math.degrees(math.atan2(float((found - along * direction).norm()), along))


def measure(row: Row, task: EnumeratedTask) -> dict[str, Any]:
    """One row of a table, as a JSON record."""
    loss = row.make(task)
    found = [moments(loss, task, *batch) for batch in row.batches]
    limit = task.flat(loss(task.proportional(row.batches[0][0])))
    first = found[0]
    record: dict[str, Any] = {"name": row.name, "default": row.default, "batch": [m.size for m in found]}
    if float(first.mean.norm()) < NOTHING * math.sqrt(first.variance):
        return {**record, "verdict": "no gradient"}
    record["noise"] = math.sqrt(first.size * first.variance) / float(first.mean.norm())
    targets = _targets(task)
    for name, target in targets.items():
        record[f"angle_{name}"] = [angle(-m.mean, target) for m in found]
        record[f"limit_{name}"] = angle(-limit, target)
    verdicts = [verdict(record[f"angle_{name}"], record[f"limit_{name}"]) for name in targets]
    fixed = verdicts[0] == "biased" != verdicts[-1]
    return {**record, "verdict": "right, states fixed" if fixed else verdicts[0]}


def _targets(task: EnumeratedTask) -> dict[str, Tensor]:
    """What the gradient should be; of KL alone also what it is if π did not decide which states are visited."""
    targets = {"J": task.gradient()}
    return targets if task.scored else {**targets, "fixed": task.gradient_of_fixed_states()}


def verdict(angles: Sequence[float], limit: float) -> str:
    """See the module's docstring."""
    if max(*angles, limit) < RIGHT:
        return "unbiased"
    return "consistent" if limit < RIGHT else "biased"


def of_trl() -> tuple[list[Row], list[Row], list[Row]]:
    """TRL's losses on scores alone, on KL alone, and on KL alone with responses of an older policy."""
    from benchmarks.peers.trl_losses import as_plugin

    def row(name: str, **settings: Any) -> Row:
        return Row(f"TRL: {name}", rows.plugged_in(as_plugin(**settings), group_size=4), ((4, 1),))

    scores = [row("default (dapo)"), row("grpo", loss_type="grpo"), row("dr_grpo", loss_type="dr_grpo", scale=False)]
    kl = [
        row("dr_grpo, k3", loss_type="dr_grpo"),
        row("dr_grpo, ratio · k3", loss_type="dr_grpo", bias_correction=True),
    ]
    return scores, kl, kl


def sections(*, trl: bool = False) -> list[tuple[str, dict[str, Any], list[Row]]]:
    """Title, arguments of the task, rows; with those of TRL."""
    scores, kl, old_kl = of_trl() if trl else ([], [], [])
    only_kl: dict[str, Any] = {"kl_coef": 1.0, "scored": False}
    return [
        ("Score alone", {}, rows.SCORE + scores),
        ("KL alone", only_kl, kl_rows.KL + kl),
        ("Score and KL", {"kl_coef": 0.3}, kl_rows.SCORE_AND_KL),
        ("Score alone, responses of an older policy", {"off_policy": True}, rows.OFF_POLICY_SCORE),
        ("Score alone, responses of an older policy, by the trainers", {"off_policy": True}, rows.TRAINERS_OFF_POLICY),
        ("KL alone, responses of an older policy", {**only_kl, "off_policy": True}, kl_rows.OFF_POLICY_KL + old_kl),
        ("Score alone, responses drawn from the nucleus", {"top_p": 0.8}, rows.NUCLEUS),
        ("Score and KL, responses drawn from the nucleus", {"kl_coef": 0.3, "top_p": 0.8}, kl_rows.SCORE_AND_KL),
    ]


def records(settings: GradientSettings) -> Iterator[dict[str, Any]]:
    """Every row of every section."""
    own = (
        (title, EnumeratedTask(**arguments), of_section) for title, arguments, of_section in sections(trl=settings.trl)
    )
    for title, task, of_section in (*own, *tasks()):
        for row in of_section:
            yield {"benchmark": "gradients", "section": title, **measure(row, task)}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows of one section in Markdown; a default of this package is marked with a star."""
    targets = {"J": "∇J", "fixed": "∇J, states fixed"}
    shown = [target for target in targets if any(f"angle_{target}" in record for record in found)]
    angles = [title for target in shown for title in (f"angle to {targets[target]}", "limit")]
    lines = []
    for record in found:
        told = [text for target in shown for text in _angles(record, target)]
        noise = f"{record['noise']:.1f}" if "noise" in record else "–"
        name = record["name"] + (" *" if record["default"] else "")
        lines.append([name, ", ".join(map(str, record["batch"])), *told, noise, record["verdict"]])
    return markdown(("estimator", "batch", *angles, "noise", "verdict"), lines)


def _angles(record: dict[str, Any], target: str) -> tuple[str, str]:
    """Of batches, and of an endless one."""
    if f"angle_{target}" not in record:
        return "–", "–"
    return ", ".join(f"{x:.1f}°" for x in record[f"angle_{target}"]), f"{record[f'limit_{target}']:.1f}°"


def main(settings: GradientSettings) -> None:
    """Print the records, then the tables."""
    found = keep(records(settings), settings.out)
    for title in dict.fromkeys(record["section"] for record in found):
        print(f"\n{title}\n\n{table([record for record in found if record['section'] == title])}")


if __name__ == "__main__":
    main(tyro.cli(GradientSettings, description=__doc__))
