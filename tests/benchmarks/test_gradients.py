"""The gradient laboratory: its oracles against finite differences and plain loops, its verdicts on what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from benchmarks import gradient_kl_rows as kl_rows
from benchmarks import gradient_rows as rows
from benchmarks.enumerated import EnumeratedTask
from benchmarks.gradients import angle, measure, moments, sections, table, verdict
from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig

ONLY_KL: dict[str, Any] = {"kl_coef": 1.0, "scored": False}


def objective(task: EnumeratedTask) -> float:
    """E[score − β·KL] with the weights as they are, prefix by prefix, by the library's float32 forward."""
    total = 0.0
    for response in task.possible:
        log_prob = ref = 0.0
        for t, token in enumerate(response):
            ids = torch.tensor([[1, 2, *response[:t]]])
            with torch.no_grad():
                own, other = (lm.model.double()(ids).logits[0, -1] for lm in (task.policy, task.reference))
            log_prob += float(own.log_softmax(-1)[token])
            ref += float(other.log_softmax(-1)[token])
        score = task.score([task.policy.decode(list(response))])[0]
        total += math.exp(log_prob) * (score - task.kl_coef * (log_prob - ref))
    return total


def test_the_true_gradient_is_that_of_finite_differences():
    """Along a random direction, of the score and of the KL together."""
    task = EnumeratedTask(kl_coef=0.7)
    exact = task.gradient()
    weights = list(task.policy.model.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    along = float(exact @ torch.cat([d.flatten() for d in direction]))
    task.policy.model.double()
    found = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for weight, d in zip(task.policy.model.parameters(), direction, strict=True):
                weight += step * d
            found.append(objective(task))
            for weight, d in zip(task.policy.model.parameters(), direction, strict=True):
                weight -= step * d
    assert along == pytest.approx((found[0] - found[1]) / 2e-5, rel=5e-3)
    assert abs(along) > 0.01


def test_what_batches_can_be_by_a_plain_loop():
    """Mean and variance over ordered pairs."""
    task = EnumeratedTask()
    loss = rows.plugged_in(rows.weighted(rows.token_ratio))(task)
    found = moments(loss, task, 2, 1)
    mean, second = torch.zeros(()), 0.0
    for pair in product(range(7), repeat=2):
        weight = math.prod(task.probabilities[i] for i in pair)
        gradient = task.flat(loss(task.rollout([task.possible[i] for i in pair])))
        mean, second = mean + weight * gradient, second + weight * float(gradient @ gradient)
    torch.testing.assert_close(found.mean, mean, rtol=1e-4, atol=1e-6)
    assert found.variance == pytest.approx(second - float(mean @ mean), rel=1e-5)


def test_two_groups_are_drawn_independently():
    """Each unordered pair of groups by its probability, groups adjacent."""
    task = EnumeratedTask()
    texts: dict[str, float] = {}
    for weight, rollout in task.samples(2, 2):
        key = "|".join(sorted(" ".join(sorted(rollout.texts[i : i + 2])) for i in (0, 2)))
        texts[key] = texts.get(key, 0.0) + weight
    by_loop: dict[str, float] = {}
    decoded = [task.policy.decode(list(response)) for response in task.possible]
    for four in product(range(7), repeat=4):
        key = "|".join(sorted(" ".join(sorted(decoded[i] for i in four[j : j + 2])) for j in (0, 2)))
        by_loop[key] = by_loop.get(key, 0.0) + math.prod(task.probabilities[i] for i in four)
    assert texts == pytest.approx(by_loop)


def test_an_endless_batch_has_each_response_as_often_as_it_is_likely():
    task = EnumeratedTask()
    rollout = task.proportional(1, total=1000)
    for response, probability in zip(task.possible, task.probabilities, strict=True):
        text = task.policy.decode(list(response))
        count = sum(t == text and int(n) == len(response) for t, n in zip(rollout.texts, rollout.lengths, strict=True))
        assert abs(count - 1000 * probability) < 1
    assert len(rollout.texts) == 1000


def test_values_are_what_bellman_says():
    """V(s) = Σ_a π(a|s)·(r(s, a) − β·log π/π_ref + V(s′)), from the end to the beginning."""
    task = EnumeratedTask(kl_coef=0.3)
    values = task.values()
    for state in ((1,), (2,), ()):
        total = 0.0
        for token in range(3):
            response = (*state, token)
            ended = token == 0 or len(response) == 2
            tail = task.log_probs[response] if ended else task.log_probs[(*response, 0)]
            ref = task.ref_log_probs[response] if ended else task.ref_log_probs[(*response, 0)]
            log_prob = float(tail[len(state)].detach())
            paid = task.score([task.policy.decode(list(response))])[0] if ended else values[response]
            total += math.exp(log_prob) * (paid - 0.3 * (log_prob - float(ref[len(state)])))
        assert values[state] == pytest.approx(total, abs=1e-9)


def test_the_policies_of_an_older_rollout_are_two():
    """Advantages are made with the weights that sampled, the loss with those that learn; and they are given back."""
    task = EnumeratedTask(off_policy=True)
    before = [p.clone() for p in task.policy.model.parameters()]
    with task.behaving():
        inside = [p.clone() for p in task.policy.model.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, task.policy.model.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(before, inside, strict=True))
    ratios = [(task.log_probs[r] - task.old_log_probs[r]).exp() for r in task.possible]
    assert all(bool(((ratio > 0.8) & (ratio < 1.2)).all()) for ratio in ratios)
    assert max(float((ratio - 1).detach().abs().max()) for ratio in ratios) > 0.05


@pytest.mark.parametrize(
    ("angles", "limit", "wanted"),
    [([0.01, 0.02], 0.03, "unbiased"), ([4.0, 2.0], 0.03, "consistent"), ([4.0, 2.0], 1.0, "biased")],
)
def test_verdicts(angles: list[float], limit: float, wanted: str):
    assert verdict(angles, limit) == wanted


def test_angles():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    found = [angle(x, x), angle(3 * x, x), angle(x, y), angle(-x, x), angle(torch.tensor([0.0, 2.0]), x)]
    assert found == pytest.approx([0, 0, 45, 180, 90])


def test_values_without_the_kl_of_the_state_itself():
    """V(s) = Σ_a π(a|s)·(r(s, a) + V(s′) − β·KL(s′)), by torch's KL between two categorical distributions."""
    task = EnumeratedTask(kl_coef=0.3)

    def kl(state: tuple[int, ...]) -> float:
        with torch.no_grad():
            logits = [lm.model(torch.tensor([[1, 2, *state]])).logits[0, -1] for lm in (task.policy, task.reference)]
        return float(torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in logits)))

    values = task.values(later_kl=True)
    for state in ((1,), (2,), ()):
        total = 0.0
        for token in range(3):
            response = (*state, token)
            ended = token == 0 or len(response) == 2
            log_probs = task.log_probs[response if ended else (*response, 0)]
            later = task.score([task.policy.decode(list(response))])[0] if ended else 0.0
            later += 0.0 if ended else values[response] - 0.3 * kl(response)
            total += math.exp(float(log_probs[len(state)].detach())) * later
        assert values[state] == pytest.approx(total, abs=1e-6)


PAIRS = ((2, 1),)
KNOWN = [
    (rows.Row("RLOO", rows.trained_by(Reinforce, ReinforceConfig, group_size=2), PAIRS), {}, "unbiased"),
    (rows.Row("GRPO", rows.trained_by(GRPO, GRPOConfig, group_size=2), PAIRS), {}, "unbiased"),
    (
        rows.Row("per response", rows.trained_by(GRPO, GRPOConfig, group_size=2, length_norm="response"), PAIRS),
        {},
        "biased",
    ),
    (rows.Row("k1, loss", rows.plugged_in(kl_rows.in_the_loss(kl_rows.k1)), PAIRS), ONLY_KL, "no gradient"),
    (rows.Row("k2, loss", rows.plugged_in(kl_rows.in_the_loss(kl_rows.k2)), PAIRS), ONLY_KL, "right, states fixed"),
    (rows.Row("k3, loss", rows.plugged_in(kl_rows.in_the_loss(kl_rows.k3)), PAIRS), ONLY_KL, "biased"),
    (rows.Row("full, reward", rows.plugged_in(kl_rows.full_in_the_reward), PAIRS), ONLY_KL, "biased"),
    (rows.Row("full, both", rows.plugged_in(kl_rows.full_in_both), PAIRS), ONLY_KL, "unbiased"),
    (rows.Row("nucleus", rows.trained_by(Reinforce, ReinforceConfig, group_size=2), PAIRS), {"top_p": 0.8}, "unbiased"),
    (rows.Row("all tokens", rows.plugged_in(rows.of_all_tokens), PAIRS), {"top_p": 0.8}, "biased"),
    (rows.Row("ρ", rows.plugged_in(rows.weighted(rows.response_ratio)), PAIRS), {"off_policy": True}, "unbiased"),
    (
        rows.Row("stale, weighed", rows.trained_by(Reinforce, ReinforceConfig, group_size=2, **rows.STALE), PAIRS),
        {"off_policy": True, "kl_coef": 0.5},
        "unbiased",
    ),
    (
        rows.Row("stale, GRPO", rows.trained_by(GRPO, GRPOConfig, group_size=2, **rows.STALE), PAIRS),
        {"off_policy": True},
        "unbiased",
    ),
    (
        rows.Row("stale", rows.trained_by(Reinforce, ReinforceConfig, group_size=2, first_pass=True), PAIRS),
        {"off_policy": True, "kl_coef": 0.5},
        "biased",
    ),
    (
        rows.Row("nucleus, weighed", rows.trained_by(Reinforce, ReinforceConfig, group_size=2, **rows.STALE), PAIRS),
        {"top_p": 0.8},
        "unbiased",
    ),
    *[(row, {"kl_coef": 0.3}, "consistent" if "PPO" in row.name else "unbiased") for row in kl_rows.in_both()],
    (kl_rows.in_both()[0], {"kl_coef": 0.3, "top_p": 0.8}, "unbiased"),
    (kl_rows.in_both()[2], {"kl_coef": 0.3, "top_p": 0.8}, "consistent"),
    (kl_rows.GRPO_LOSS, {"kl_coef": 0.3}, "biased"),
    (
        rows.Row("stale, both", rows.trained_by(GRPO, GRPOConfig, group_size=2, kl_in="both", **rows.STALE), PAIRS),
        {"off_policy": True, "kl_coef": 0.5},
        "unbiased",
    ),
    (rows.Row("ρ_t", rows.plugged_in(rows.weighted(rows.token_ratio)), PAIRS), {"off_policy": True}, "biased"),
]


@pytest.mark.parametrize(("row", "arguments", "wanted"), KNOWN, ids=lambda value: getattr(value, "name", ""))
def test_what_is_known(row: rows.Row, arguments: dict[str, Any], wanted: str):
    record = measure(replace(row, batches=row.batches[:1]), EnumeratedTask(**arguments))
    assert record["verdict"] == wanted


@pytest.mark.parametrize(("steps", "least", "most"), [(0, 1.0, 1.5), (10, 8.0, 20.0)])
def test_near_the_optimum_k1_in_the_reward_takes_the_noise_of_the_score_with_it(steps: int, least: float, most: float):
    """There the score less β·log π/π_ref is the same for all responses, and an exact KL leaves the score alone."""
    task = EnumeratedTask(kl_coef=0.5, ascended=steps)
    best = 0.5 * math.log(sum(p * math.exp(s / 0.5) for p, s in of_reference(task)))
    assert (best - float(task_objective(task)) < 0.01) == (steps > 0)
    noises = [math.sqrt(moments(row.make(task), task, 2, 1).variance) for row in (kl_rows.in_both()[0], RLOO)]
    assert least < noises[0] / noises[1] < most


RLOO = kl_rows.in_the_rewards()[0]


def of_reference(task: EnumeratedTask) -> list[tuple[float, float]]:
    """What the reference writes: probability and score."""
    scores = [task.score([task.policy.decode(list(response))])[0] for response in task.possible]
    return [(float(task.ref_log_probs[r].sum().exp()), s) for r, s in zip(task.possible, scores, strict=True)]


def task_objective(task: EnumeratedTask) -> torch.Tensor:
    """J, by the oracles of the task."""
    paid = [(x.detach().sum().exp() * task.returns(r, x.detach())) for r, x in task.log_probs.items()]
    return torch.stack(paid).sum()


DEFAULTS = [(title, arguments, row) for title, arguments, of_section in sections() for row in of_section if row.default]


@pytest.mark.parametrize(("title", "arguments", "row"), DEFAULTS, ids=lambda value: getattr(value, "name", ""))
def test_every_default_is_right(title: str, arguments: dict[str, Any], row: rows.Row):
    """For score, KL and both, under a nucleus, too: unbiased, or but for what goes with larger batches."""
    record = measure(replace(row, batches=row.batches[:1]), EnumeratedTask(**arguments))
    assert record["verdict"] == ("consistent" if row.name.startswith("PPO") else "unbiased")


def test_each_trainer_has_its_default_among_the_rows_of_score_and_kl():
    (of_section,) = (found for title, _, found in sections() if title == "Score and KL")
    assert [row.name.split(":")[0] for row in of_section if row.default] == ["RLOO", "PPO, V right", "GRPO"]


def test_the_table():
    found = [
        {"name": "one", "default": True, "batch": [2, 4], "angle_J": [1.0, 0.5], "limit_J": 0.0, "noise": 2.04}
        | {"verdict": "consistent"},
        {"name": "two", "default": False, "batch": [2], "verdict": "no gradient"},
    ]
    lines = table(found).splitlines()
    assert lines[0] == "| estimator | batch | angle to ∇J | limit | noise | verdict |"
    assert lines[2] == "| one * | 2, 4 | 1.0°, 0.5° | 0.0° | 2.0 | consistent |"
    assert lines[3] == "| two | 2 | – | – | – | no gradient |"
