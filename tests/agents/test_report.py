"""Standard errors against bootstrap and formula, paired differences, warnings, the plot's curves, the page."""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console

from textgen_env.agents.optimum import Optimum
from textgen_env.agents.rollout import Rollout
from textgen_env.agents.training.evaluate import (
    EvalReport,
    Played,
    distinct_n,
    distinct_without_each,
    frames,
    jackknife,
    standard_error_of_difference,
    summarize,
)
from textgen_env.agents.training.report import before_after_table, held_out_curve, plot, too_large
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch


def test_the_jackknife_of_a_mean_is_s_over_root_n():
    """Of 1, 2, 4, 9: s² = 38/3, so that s/√4 = 1.7795."""
    values = [1.0, 2.0, 4.0, 9.0]
    left_out = [(sum(values) - value) / 3 for value in values]
    assert jackknife(left_out) == pytest.approx(math.sqrt(38 / 3) / 2)
    assert math.isnan(jackknife([1.0]))


def played(scores: list[float], lengths: list[int], log_prob: float = -1.0, ref: float = -1.5) -> Played:
    """Responses of given lengths behind prompts of one token; the tokens count up from 3, in steps of 1."""
    rows, width = len(scores), 1 + max(lengths)
    columns = torch.arange(width)
    response = torch.stack([(columns > 0) & (columns <= length) for length in lengths]).long()
    rollout = Rollout(
        tokens=TokenBatch(columns.expand(rows, width) + 2, (response.bool() | (columns == 0)).long(), response),
        rewards=torch.zeros(rows, width),
        sampled_log_probs=torch.zeros(rows, width),
        terminated=torch.ones(rows, dtype=torch.bool),
        truncated=torch.zeros(rows, dtype=torch.bool),
        scores=torch.tensor(scores),
        prompts=[f"p{row}" for row in range(rows)],
        texts=["text"] * rows,
        finish_reasons=["eos", *["length"] * (rows - 1)],
        action_masks=None,
    )
    return Played(rollout, log_prob * response, ref * response, None)


def test_metrics_and_their_errors_by_hand():
    """Lengths 1, 2, 3 of tokens 3, 4, 5; KL is half a nat a token."""
    evaluation = summarize(played([1.0, 2.0, 6.0], [1, 2, 3]))
    assert evaluation.metrics == pytest.approx(
        {
            "score": 3,
            "kl_per_token": 0.5,
            "kl_per_response": 1.0,
            "reference_perplexity": math.exp(1.5),
            "response_length": 2,
            "distinct_2": 2 / 3,  # (3, 4) twice, (4, 5) once
            "eos_rate": 1 / 3,
        }
    )
    errors = {name: evaluation.standard_error(name) for name in evaluation.metrics}
    assert errors["score"] == pytest.approx(math.sqrt(7 / 3))  # s² = (4 + 1 + 9) / 2
    assert errors["response_length"] == pytest.approx(math.sqrt(1 / 3))
    assert errors["eos_rate"] == pytest.approx(1 / 3)
    assert (errors["kl_per_token"], errors["reference_perplexity"]) == pytest.approx((0, 0), abs=1e-12)
    assert EvalReport(**json.loads(json.dumps(asdict(evaluation)))) == evaluation


def test_a_response_without_a_score_counts_in_everything_but_the_score():
    evaluation = summarize(played([1.0, math.nan, 6.0], [1, 2, 3]))
    assert evaluation.metrics["score"] == 3.5
    assert evaluation.metrics["response_length"] == 2
    assert math.isfinite(evaluation.standard_error("score"))


def test_the_error_of_a_ratio_agrees_with_the_bootstrap():
    """KL per token is a sum over responses divided by another: no mean of one number per response."""
    draw = random.Random(3)
    lengths = [draw.randint(1, 12) for _ in range(60)]
    kls = [draw.gauss(0.2, 0.3) * length for length in lengths]
    each = played([0.0] * 60, lengths)
    mask = each.rollout.response_mask
    each.log_probs = mask * torch.tensor([kl / n for n, kl in zip(lengths, kls, strict=True)])[:, None]
    each.ref_log_probs = torch.zeros(mask.shape)
    estimates = []
    for _ in range(4000):
        rows = draw.choices(range(60), k=60)
        estimates.append(sum(kls[row] for row in rows) / sum(lengths[row] for row in rows))
    mean = sum(estimates) / len(estimates)
    bootstrap = math.sqrt(sum((x - mean) ** 2 for x in estimates) / len(estimates))
    assert summarize(each).standard_error("kl_per_token") == pytest.approx(bootstrap, rel=0.1)


def test_distinct_without_each_is_distinct_of_the_others():
    draw = random.Random(1)
    responses = [[draw.randint(0, 3) for _ in range(draw.randint(0, 6))] for _ in range(9)]
    wanted = [distinct_n(responses[:i] + responses[i + 1 :], 2) for i in range(9)]
    assert distinct_without_each(responses, 2) == pytest.approx([distinct_n(responses, 2), *wanted])


def test_differences_are_paired():
    """Scores that all rise by the same amount: each mean is uncertain, the difference is not."""
    before, after = (summarize(played([x + rise for x in (0.0, 3.0, 9.0)], [1, 2, 3])) for rise in (0, 0.5))
    assert before.standard_error("score") > 2
    assert standard_error_of_difference(before, after, "score") == pytest.approx(0, abs=1e-6)
    moved = summarize(played([1.0, 2.0, 9.0], [1, 2, 3]))  # differences 1, −1, 0: s² = 1
    assert standard_error_of_difference(before, moved, "score") == pytest.approx(math.sqrt(1 / 3))
    other = EvalReport(**{**asdict(moved), "prompts": ["x", "y", "z"]})
    assert math.isnan(standard_error_of_difference(before, other, "score"))


def shown(table: object) -> str:
    file = io.StringIO()
    Console(file=file, width=150).print(table)
    return file.getvalue()


def test_the_table_shows_values_errors_and_differences():
    before = summarize(played([1.0, 2.0, 6.0], [1, 2, 3]))
    text = shown(before_after_table(before, summarize(played([2.0, 2.0, 2.0], [1, 2, 3], ref=-2.0))))
    (score,) = (line for line in text.splitlines() if "score" in line)
    # differences 1, 0, −4: mean −1, s² = 7
    assert "│ 3.000 ± 1.528 │ 2.000 ± 0.000 │ -1.000 ± 1.528 │" in score
    (kl,) = (line for line in text.splitlines() if "nats per token" in line)
    assert "0.500 ± 0.000 │ 1.000 ± 0.000 │ +0.500 ± 0.000" in kl
    old = EvalReport(before.metrics, before.prompts, before.texts, before.scores)  # written before there were errors
    assert "±" not in shown(before_after_table(old, old)).split("\n", 1)[1]


def test_the_table_says_how_far_the_optimum_is():
    """Before: score 1, no KL. After: score 2 at 2 nats, J = 1.8; the best is 2.6 and begins at 1: half is left."""
    before = summarize(played([0.0, 1.0, 2.0], [4, 4, 4], log_prob=-1.5))
    after = summarize(played([1.0, 2.0, 3.0], [4, 4, 4]))
    optimum = Optimum(kl_coef=0.1, value=2.6, score=3.0, kl=4.0, reference=1.0, interval=(2.5, 2.75))
    rows = [line for line in shown(before_after_table(before, after, optimum)).splitlines() if "│" in line][-3:]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]
    assert cells == [
        ["objective, score − 0.1·KL", "1.000", "1.800", "+0.800"],
        ["best possible of any policy (95 %)", "", "2.600 (2.500 to 2.750)", "+1.600"],
        ["share of the attainable gain", "0%", "50%", ""],
    ]


def test_the_plot_shows_the_frontier_with_the_path_under_it(tmp_path):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    held_out = {0: summarize(played([0.0, 1.0, 2.0], [4, 4, 4])), 3: summarize(played([1.0, 2.0, 3.0], [2, 2, 2]))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
        plot([], tmp_path / "plot.png", "", held_out, [(2.0, 3.0), (0.5, 1.5)])
        plot([], tmp_path / "plot.png", "", held_out)
    with_frontier, without = (figure.axes for figure in drawn)
    assert (len(with_frontier), len(without)) == (4, 3)
    best, path = with_frontier[3].lines
    assert best.get_xydata().tolist() == [[0.5, 1.5], [2.0, 3.0]]
    assert path.get_xydata().tolist() == [[2.0, 1.0], [1.0, 2.0]]  # ½ nat per token


def test_steps_that_are_too_large_are_named_with_what_to_do():
    assert too_large({"clip_fraction": 0.3, "approx_kl": 0.1}, 1e-4) == {}
    assert too_large({"score": 1.0}, None) == {}
    both = too_large({"clip_fraction": 0.43, "approx_kl": 1.9}, 1e-4)
    assert both["clip_fraction"] == (
        "clip fraction 0.43 is above 0.3: the steps are too large; try a lower lr than 0.0001"
    )
    assert both["approx_kl"].startswith("approx-KL 1.90 is above 0.1: ")


def test_the_held_out_curve_begins_at_update_0_and_ends_with_the_run():
    before, after = (summarize(played([x, x + 1, x + 2], [1, 2, 3])) for x in (0.0, 4.0))
    records = [
        {"update": 1, "train/score": 0.5},
        {"update": 2, "eval/score": 3.0, "eval/score_stderr": 0.25},
        {"update": 3, "eval/score": 3.5},  # written before there were errors
    ]
    curve = held_out_curve(records, "score", {0: before, 4: after})
    assert [point[:2] for point in curve] == [(0, 1), (2, 3), (3, 3.5), (4, 5)]
    errors = [point[2] for point in curve]
    assert errors[:2] == pytest.approx([math.sqrt(1 / 3), 0.25])
    assert math.isnan(errors[2])


def test_the_plot_has_a_title_a_band_and_both_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **more: (drawn.append(figure), save(figure, *rest, **more))[1]
    )
    before = summarize(played([0.0, 1.0, 2.0], [1, 2, 3]))
    records = [{"update": n, "train/score": 0.1 * n, "train/kl_per_token": 0.0} for n in (1, 2)]
    plot(records, tmp_path / "plot.png", "task, $model$, seed 1", {0: before, 2: before})
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = drawn
    assert figure.get_suptitle() == "task, $model$, seed 1"
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["training", "held out"]
    assert list(axes.lines[1].get_xdata()) == [0, 2]  # type: ignore[arg-type]
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    error = math.sqrt(1 / 3)
    assert (heights.min(), heights.max()) == pytest.approx((1 - error, 1 + error))
    plot([], tmp_path / "empty.png")


def test_frames_hold_what_the_page_shows(word_model: Path):
    each = played([1.0, 2.0], [2, 3])
    each.rollout.rewards[0, 2] = 1.0
    first, second = frames(each, LanguageModel(str(word_model)))
    assert "".join(first.pieces).split() == ["a", "b"]
    assert (len(second.pieces), first.rewards, first.score) == (3, [0.0, 1.0], 1.0)
    assert first.kls == pytest.approx([0.5, 0.5])
    assert first.ref_log_probs == pytest.approx([-1.5, -1.5])
    assert (first.values, first.finish_reason, second.finish_reason) == (None, "eos", "length")
