"""The law of Gao et al.: found again in numbers made by hand, and in a run of seconds."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.overoptimisation import OveroptimisationSettings, draw, fit, fit_of, measure, table
from textgen_env.agents.ppo import PPOConfig
from textgen_env.agents.preferences.loop import LabelConfig
from textgen_env.agents.reward_model import RewardModelConfig
from textgen_env.agents.rlhf import RLHF
from textgen_env.agents.rlhf_config import RLHFSettings


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


def test_a_run_is_measured_by_judge_and_reward_model(tmp_path: Path):
    """On what the pipeline leaves: the scores before training are those of its own table."""
    small = {"eval_prompts": 4, "num_envs": 4, "max_new_tokens": 4, "ppo_updates": 1, "reward_updates": 1}
    sizes = {"minibatch_size": 4, "micro_batch_size": 4}
    rlhf_settings = RLHFSettings(
        output=str(tmp_path / "rlhf"),
        labels=LabelConfig(labels=12, responses=2, held_out_pairs=2),
        reward_model=RewardModelConfig(fresh_layers=0, **sizes),
        ppo=PPOConfig(episodes=4, **sizes),
        **small,
    )
    folder = RLHF(rlhf_settings, Console(file=io.StringIO())).execute()
    config = PPOConfig(episodes=4, kl_coef=0.0, lr=1e-3, **sizes)
    settings = OveroptimisationSettings([folder], updates=2, eval_every=1, ppo=config)
    found = list(measure(settings))
    assert [record["update"] for record in found] == [0, 1, 2]
    assert {record["labels"] for record in found} == {12}
    start = json.loads((folder / "stages.json").read_text())["at the start"]["metrics"]
    assert found[0]["judge"] == pytest.approx(start["judge"], abs=1e-4)
    assert found[0]["reward_model"] == pytest.approx(start["reward_model"], abs=1e-3)
    assert found[0]["distance"] == pytest.approx(0, abs=1e-2)
    assert found[2]["distance"] > found[0]["distance"]
