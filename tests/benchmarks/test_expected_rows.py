"""Expectations over actions and scores that see the policy in the gradient laboratory; what a run of both records."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.enumerated import EOS, RESPONSES, B, EnumeratedTask
from benchmarks.expected import ExpectedBenchmarkSettings, held_out_score, questions, right_word, run, table
from benchmarks.expected_rows import EXPECTED, SEEING, SeeingTask, continued, right
from benchmarks.gradients import measure
from textgen_env import LanguageModel

ROWS = {row.name: row for row in (*EXPECTED, *SEEING)}


@cache
def measured(name: str) -> dict[str, Any]:
    return measure(ROWS[name], EnumeratedTask(kl_coef=0.3))


@pytest.mark.parametrize("name", [row.name for row in EXPECTED])
def test_expectations_over_actions_are_unbiased(name: str):
    assert measured(name)["verdict"] == "unbiased"


def test_they_are_less_noisy_the_more_is_expected():
    names = ["RLOO", "first token, one continuation each; RLOO", "both tokens, one continuation each"]
    noise = [measured(name)["noise"] for name in names]
    assert noise[0] > 1.5 * noise[1] > 1.5 * 1.5 * noise[2]


def test_continuations_have_the_right_mean():
    """Of each first token, over everything that its continuations can be."""
    task = EnumeratedTask(kl_coef=0.3)
    found = list(continued(task))
    assert sum(chance for chance, _ in found) == pytest.approx(1)
    for action, worth in right(task).items():
        assert sum(chance * worths[action] for chance, worths in found) == pytest.approx(worth, abs=1e-9)


def expected_score(task: SeeingTask) -> float:
    """Σ π(y)·π("b" | y) with the weights as they are, prefix by prefix."""

    def log_prob(prefix: list[int], token: int) -> float:
        with torch.no_grad():
            return float(task.policy.model(torch.tensor([[1, 2, *prefix]])).logits[0, -1].log_softmax(-1)[token])

    total = 0.0
    for response in RESPONSES:
        own = sum(log_prob(list(response[:t]), token) for t, token in enumerate(response))
        total += math.exp(own + log_prob([token for token in response if token != EOS], B))
    return total


def test_the_gradient_of_a_score_that_sees_the_policy_is_that_of_finite_differences():
    task = SeeingTask()
    exact = task.gradient()
    weights = list(task.policy.model.double().parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    found = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight += step * d
        found.append(expected_score(task))
    along = float(exact @ torch.cat([d.flatten() for d in direction]))
    assert along == pytest.approx((found[0] - found[1]) / 2e-5, rel=5e-3)
    assert abs(along) > 0.01


def test_what_a_constant_score_leaves_out():
    task = SeeingTask()
    constant, whole = (measure(row, task) for row in SEEING)
    assert constant["verdict"] == "biased"
    assert constant["angle_J"][0] > 10
    assert whole["verdict"] == "unbiased"


# --- the benchmark of both trainers -----------------------------------------------------------------------------------


def test_questions_have_one_right_word():
    asked = questions("price")
    assert {question["references"][0] for question in asked} == {"cheap", "moderate", "expensive"}
    assert all(question["prompt"].endswith(" The prices are") for question in asked)
    assert right_word([" cheap", " a", ""], references=[["cheap"]] * 3) == [1.0, 0.0, 0.0]


def test_the_held_out_score_is_the_probability_of_the_right_word():
    asked, model = questions("price")[:3], LanguageModel("tiny")
    total = 0.0
    for question in asked:
        ids = torch.tensor([model.encode(question["prompt"])])
        with torch.no_grad():
            told = model.model(ids).logits[0, -1, : model.vocab_size].softmax(-1)
        total += float(told[model.encode_plain(" " + question["references"][0])[0]])
    assert held_out_score(model, asked) == pytest.approx(total / 3, abs=1e-5)


@pytest.mark.parametrize("method", ["RLOO", "expected"])
def test_a_run_is_recorded(method: str):
    settings = ExpectedBenchmarkSettings(updates=1, decodes=64, actions=2, held_out=4)
    record = run(method, settings, seed=1)
    assert len(record["scores"]) == 2
    assert record["scores"][0] != record["scores"][1]


def test_the_table():
    rest = {"cpu_seconds": 3.0, "updates_to_0.9": None}
    records = [
        {**rest, "method": method, "scores": [0.25, 0.5, last], "updates_to_0.5": 1}
        for method in ("RLOO", "expected")
        for last in (0.75, 0.5)
    ]
    assert "| RLOO | 0.250 | 1, 1 | never, never | 0.750, 0.500 | 1.50 |" in table(records)
