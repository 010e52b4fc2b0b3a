"""Numbers of held-out pairs, worked out by hand and by brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from textgen_env.agents.preferences.calibration import (
    Bin,
    calibration_error,
    draw_calibration,
    preference_metrics,
    reliability,
)
from textgen_env.agents.training.evaluate import jackknife


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_reliability_by_hand():
    """The likelier response at .6 (won), .6 (lost: predicted .4 for the first, who won), .9 (won), .9 (a tie)."""
    differences = torch.tensor([logit(0.6), logit(0.4), logit(0.9), logit(0.9)])
    table = reliability(differences, torch.tensor([1.0, 1.0, 1.0, 0.5]), bins=2)
    assert [(b.low, b.high, b.pairs) for b in table] == [(0.5, 0.75, 2), (0.75, 1.0, 2)]
    assert [x for b in table for x in b[3:]] == pytest.approx([0.6, 0.5, 0.9, 0.75])
    assert calibration_error(table) == pytest.approx((2 * 0.1 + 2 * 0.15) / 4)


def test_the_ends_of_the_table():
    table = reliability(torch.tensor([0.0, 800.0, -800.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert table == [Bin(0.5, 0.6, 1, 0.5, 0.5), Bin(0.9, 1.0, 2, 1.0, 0.5)]


def test_pairs_drawn_from_their_own_predictions_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    differences = 2 * torch.randn(20_000, generator=generator)
    first_won = torch.rand(20_000, generator=generator) < differences.sigmoid()
    ordered = torch.where(first_won, differences, -differences)  # the preferred response first, as in our data
    assert calibration_error(reliability(ordered, torch.ones(20_000))) < 0.01
    assert calibration_error(reliability(3 * ordered, torch.ones(20_000))) > 0.1  # too sure


def test_metrics_and_their_standard_errors_by_hand():
    """log σ(0) = −ln 2; a mean's jackknife error is s/√n."""
    differences, targets = torch.tensor([logit(0.8), 0.0, logit(0.2)]), torch.tensor([1.0, 1.0, 1.0])
    found = preference_metrics(differences, targets)
    each = [-math.log(0.8), math.log(2), -math.log(0.2)]
    assert found["accuracy"] == pytest.approx([0.5, 0.25, 0.5, 0.75])
    assert found["log_loss"] == pytest.approx([sum(each) / 3, *((sum(each) - one) / 2 for one in each)])
    mean = sum(each) / 3
    s = math.sqrt(sum((one - mean) ** 2 for one in each) / 2)
    assert jackknife(found["log_loss"][1:]) == pytest.approx(s / math.sqrt(3))


def test_standard_errors_leave_out_prompts():
    """Pairs of one prompt are one sample: of four pairs, three are right; the prompts have 1, 2 and 1 of them."""
    differences = torch.tensor([1.0, 1.0, -1.0, 1.0])
    found = preference_metrics(differences, torch.ones(4), ["p", "q", "q", "r"])
    assert found["accuracy"] == pytest.approx([3 / 4, 2 / 3, 2 / 2, 2 / 3])
    assert preference_metrics(differences, torch.ones(4), ["p"] * 4)["accuracy"] == [3 / 4, 0]  # nothing is left


def test_the_plot_is_drawn(tmp_path: Path):
    path = tmp_path / "plot.png"
    records = [{"update": 1, "train/accuracy": 0.5}, {"update": 2, "train/accuracy": 0.75, "eval/log_loss": 0.6}]
    draw_calibration(path, records, [Bin(0.5, 0.75, 3, 0.6, 0.5)], "a $ sign", 0.8)
    assert path.read_bytes().startswith(b"\x89PNG")
