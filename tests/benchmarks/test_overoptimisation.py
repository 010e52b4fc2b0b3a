"""The law of Gao et al.: found again in numbers made by hand, and in a run of seconds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.overoptimisation import draw, fit, fit_of, table


def test_the_fit_finds_alpha_and_beta():
    """Of d·(2 − 1·log d): at d = 1, e, e² the gain is 2, e and 0, and the peak is at d = e."""
    law = fit([1.0, math.e, math.e**2], [2.0, math.e, 0.0])
    assert law[:3] == pytest.approx((2.0, 1.0, 1.0))
    assert law.peak == pytest.approx(math.e)
    assert law(math.e) == pytest.approx(math.e)
    assert law(0.0) == 0.0
    assert fit([1.0, 2.0], [1.0, 2.0]).peak == math.inf  # a straight line never falls


def test_a_fit_that_explains_half():
    """Gains of 0 and 1 at the same d: the law can only give their mean, and explains none of their variance."""
    assert fit([1.0, 1.0], [0.0, 1.0]).r_squared == pytest.approx(0.0)


def records(judge: list[float]) -> list[dict[str, float]]:
    named = {"labels": 300, "seed": 1, "judge_stderr": 0.01}
    return [{**named, "update": i, "distance": i / 2, "judge": s, "reward_model": i} for i, s in enumerate(judge)]


def test_table_and_figure(tmp_path: Path):
    """Gains are those over the first measurement, which is not fitted itself."""
    curve = records([0.5, 0.7, 0.8, 0.75, 0.6])
    law = fit_of(curve)
    assert law == pytest.approx(fit([0.5, 1.0, 1.5, 2.0], [0.2, 0.3, 0.25, 0.1]))
    line = table(curve).splitlines()[-1]
    assert line.startswith("| 300 | 1 | 0.500 at 0.0 | 0.800 at 1.0 | 0.600 at 2.0 | 4.00 |")
    draw([*curve, *({**each, "seed": 2} for each in curve)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figure.png").stat().st_size < 100_000
