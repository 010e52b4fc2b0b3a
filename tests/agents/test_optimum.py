"""J*: by closed forms, by enumeration with plain forward passes, and against policies that try to beat it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.optimum import Optimum, ReferenceScores, estimate_optimum, exact_optimum, optimum_values
from textgen_env import TextGenEnv

EOS, ALLOWED, LENGTH, BETA = 0, (0, 3, 4, 5), 3, 0.4  # four actions, 3 + 9 + 4·9·… responses of at most three tokens
WORTH = {"a": 0.2, "b": 1.0, "c": -0.5}


def worth(completions: list[str], **_: Any) -> list[float]:
    """Words have prices, and "b a" in a row is worth more than both."""
    return [sum(WORTH.get(word, 0.0) for word in text.split()) + 2.0 * ("b a" in text) for text in completions]


TASK: dict[str, Any] = {
    "prompts": ["d e", "f"],
    "scorer": worth,
    "max_prompt_tokens": 4,
    "max_new_tokens": LENGTH,
    "forbidden_tokens": [token for token in range(16) if token not in ALLOWED],
    "temperature": 0.7,
}


@pytest.fixture
def env(word_model: Path) -> TextGenEnv:
    return TextGenEnv(model=str(word_model), **TASK)


def all_responses() -> list[tuple[int, ...]]:
    """Every response: three tokens, or fewer with EOS behind them."""
    words = [token for token in ALLOWED if token != EOS]
    ended = [(*start, EOS) for length in range(LENGTH) for start in itertools.product(words, repeat=length)]
    return [*ended, *itertools.product(words, repeat=LENGTH)]


@torch.no_grad()
def plain_log_probs(word_model: Path, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """log π_ref of every response, by one plain forward pass each; temperature and forbidden tokens by hand."""
    model = AutoModelForCausalLM.from_pretrained(word_model).eval()
    log_probs = {}
    for response in all_responses():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double() / 0.7
        at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        kept = logits[list(at)][:, list(ALLOWED)].log_softmax(-1)
        chosen = [ALLOWED.index(token) for token in response]
        log_probs[response] = float(sum(row[index] for row, index in zip(kept, chosen, strict=True)))
    return log_probs


def text_of(response: tuple[int, ...]) -> str:
    return " ".join({3: "a", 4: "b", 5: "c"}[token] for token in response if token != EOS)


def test_exact_optimum_is_the_sum_over_all_responses(env: TextGenEnv, word_model: Path) -> None:
    log_probs = plain_log_probs(word_model, env.tokenizer("d e")["input_ids"])
    assert math.fsum(map(math.exp, log_probs.values())) == pytest.approx(1.0, abs=1e-6)
    scores = {response: worth([text_of(response)])[0] for response in log_probs}
    terms = {response: math.exp(log_probs[response] + scores[response] / BETA) for response in log_probs}
    normaliser = math.fsum(terms.values())
    best = math.fsum(terms[response] / normaliser * scores[response] for response in terms)
    kl = math.fsum(
        terms[response] / normaliser * (math.log(terms[response] / normaliser) - log_probs[response])
        for response in terms
    )
    optimum = exact_optimum(env, BETA, "d e")
    assert optimum.value == pytest.approx(BETA * math.log(normaliser), abs=1e-5)
    assert optimum.score == pytest.approx(best, abs=1e-5)
    assert optimum.kl == pytest.approx(kl, abs=1e-5)
    assert optimum.reference == pytest.approx(
        math.fsum(math.exp(log_probs[response]) * scores[response] for response in scores), abs=1e-5
    )
    assert (optimum.per_prompt[0].prompt, optimum.interval, optimum.ess) == ("d e", None, None)


def test_dense_rewards_have_the_same_optimum(env: TextGenEnv, word_model: Path) -> None:
    """Potential-based rewards add up to the score, so that nothing changes."""
    dense = TextGenEnv(model=str(word_model), **{**TASK, "scorer": {"name": "dense", "scorer": worth}})
    assert exact_optimum(dense, BETA, "f").value == pytest.approx(exact_optimum(env, BETA, "f").value, abs=1e-9)


def test_nothing_is_above_it_and_its_own_policy_reaches_it(env: TextGenEnv, word_model: Path) -> None:
    """Policies as distributions over all responses: random ones stay below, π* itself is there."""
    log_probs = plain_log_probs(word_model, env.tokenizer("f")["input_ids"])
    reference = torch.tensor(list(log_probs.values()), dtype=torch.float64)
    scores = torch.tensor([worth([text_of(response)])[0] for response in log_probs], dtype=torch.float64)
    best = exact_optimum(env, BETA, "f").value

    def objective(log_policy: torch.Tensor) -> float:
        return float((log_policy.exp() * (scores - BETA * (log_policy - reference))).sum())

    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0, 5.0):
        for tilt in (0.5, 1.0, 2.0):
            noise = scale * torch.randn(len(scores), generator=generator, dtype=torch.float64)
            assert objective((reference + tilt * scores / BETA + noise).log_softmax(0)) <= best + 1e-6
    assert objective((reference + scores / BETA).log_softmax(0)) == pytest.approx(best, abs=1e-5)


def test_estimate_finds_the_exact_value(env: TextGenEnv, make_venv: Callable[..., gym.vector.VectorEnv]) -> None:
    exact = [exact_optimum(env, 1.0, prompt) for prompt in ("d e", "f")]
    generator = torch.Generator().manual_seed(1)
    estimate = estimate_optimum(make_venv(num_envs=8, **TASK), 1.0, samples=1500, generator=generator)
    assert [at.prompt for at in estimate.per_prompt] == ["d e", "f"]
    low, high = estimate.interval or (math.nan, math.nan)
    assert low < estimate.value < high < low + 0.15
    for name in ("value", "score", "kl", "reference"):
        assert getattr(estimate, name) == pytest.approx(np.mean([getattr(one, name) for one in exact]), abs=0.08), name
    assert 1 < (estimate.ess or 0) < 1500


def test_estimate_leaves_the_environment_as_it_was(make_venv: Callable[..., gym.vector.VectorEnv]) -> None:
    venv: Any = make_venv(num_envs=8, **TASK, kl_coef=0.3)
    one, again = (
        estimate_optimum(venv, BETA, samples=3, prompts=["f"], generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert one == again
    assert not venv.unwrapped.engine.kl.delegated


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_quantile_rewards_have_a_closed_form(beta: float) -> None:
    """Scores that are uniform on [0, 1] under the reference: J* = β·log(β·(e^(1/β) − 1)) whatever the task."""
    count = 20_000
    scores = (torch.arange(count, dtype=torch.float64)[None] + 0.5) / count
    found = ReferenceScores(["any"], scores).optimum(beta)
    growth = math.expm1(1 / beta)
    assert found.value == pytest.approx(beta * math.log(beta * growth), abs=1e-4)
    assert found.score == pytest.approx((growth + 1) / growth - beta, abs=1e-4)
    assert found.kl == pytest.approx((found.score - found.value) / beta, abs=1e-9)
    assert found.reference == pytest.approx(0.5)


def test_frontier_is_the_optimum_at_each_beta() -> None:
    scores = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = ReferenceScores(["p", "q", "r"], scores)
    points = sampled.frontier([5.0, 0.5, 0.1])
    for beta, (kl, score) in zip([5.0, 0.5, 0.1], points, strict=True):
        assert (kl, score) == pytest.approx((sampled.optimum(beta).kl, sampled.optimum(beta).score))
    assert points == sorted(points)  # more KL, more score


def test_value_by_hand() -> None:
    """Scores 0 and ln 3 at β = 1: the mean of 1 and 3 is 2; w/mean = (½, 3/2), whose variance is ½, over 2n = 4."""
    found = optimum_values(torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64), 1.0)
    assert found.tolist() == pytest.approx([math.log(2.0) + 0.5 / 4])


def test_the_correction_removes_most_of_the_bias_and_the_interval_covers() -> None:
    """A coin with scores 0 and 1 in a thousand small samples, whose J* is known."""
    beta, count, sets = 0.5, 24, 1000
    truth = beta * math.log((1 + math.exp(1 / beta)) / 2)
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(2, size=(sets, count)).astype(np.float64))
    plain = beta * (torch.exp(scores / beta).mean(dim=1)).log()
    corrected = optimum_values(scores, beta)
    assert truth - float(plain.mean()) > 0.004
    assert abs(float(corrected.mean()) - truth) < 0.0025
    intervals = [ReferenceScores(["p"], row[None]).optimum(beta).interval for row in scores[:200]]
    covered = np.mean([low <= truth <= high for low, high in intervals if (low, high)])
    assert 0.88 <= covered <= 0.99


def test_share_of_the_attainable_gain() -> None:
    optimum = Optimum(kl_coef=0.05, value=0.852, score=0.916, kl=1.28, reference=0.5)
    assert optimum.share(0.5, 0.0) == 0.0
    assert optimum.share(0.916, 1.28) == pytest.approx(1.0)
    assert optimum.share(0.879, 2.37) == pytest.approx((0.879 - 0.05 * 2.37 - 0.5) / 0.352)
    assert math.isnan(Optimum(0.05, 0.5, 0.5, 0.0, 0.5).share(0.5, 0.0))


def test_a_constant_score_leaves_nothing_to_gain() -> None:
    found = ReferenceScores(["p"], torch.full((1, 9), 0.3)).optimum(0.1)
    assert (found.value, found.kl) == (pytest.approx(0.3), pytest.approx(0.0, abs=1e-6))
    assert found.ess == pytest.approx(9)


@pytest.mark.parametrize("kl_coef", [0, -1.0, math.nan, math.inf])
def test_beta_out_of_range(env: TextGenEnv, kl_coef: float) -> None:
    with pytest.raises(ValueError, match=r"kl_coef=.* must be a number > 0"):
        exact_optimum(env, kl_coef, "f")
    with pytest.raises(ValueError, match=r"kl_coef=.* must be a number > 0"):
        ReferenceScores(["p"], torch.ones(1, 2)).optimum(kl_coef)


def test_bad_samples(make_venv: Callable[..., gym.vector.VectorEnv]) -> None:
    venv = make_venv(num_envs=2, **TASK)
    for samples in (0, True, 2.0):
        with pytest.raises(ValueError, match=r"samples=.* must be an integer of at least 1"):
            estimate_optimum(venv, 0.1, samples=samples)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts is empty"):
        estimate_optimum(venv, 0.1, prompts=[])
    with pytest.raises(ValueError, match=r"must be finite numbers, got nan"):
        ReferenceScores(["p"], torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match=r"scores of shape \(1, 2\) must be \(P, n\) for 2 prompts"):
        ReferenceScores(["p", "q"], torch.ones(1, 2))


def test_a_tree_too_large_is_refused(env: TextGenEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.enumeration.MAX_STEPS", 20)
    with pytest.raises(ValueError, match=r"prompt='f' has more responses than 20 steps can visit; lower"):
        exact_optimum(env, BETA, "f")
