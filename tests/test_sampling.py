"""Warping against hand-computed numbers; the sampler against exact probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from textgen_env.lm.sampling import BLOCK, SamplingParams, sample, warp_logits

INF = float("inf")
LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_temperature_divides() -> None:
    assert warp_logits(LOGITS, SamplingParams(temperature=2.0)).tolist() == [[0.5, 1.5, 1.0, 0.0]]


def test_mask_removes_and_input_is_untouched() -> None:
    mask = torch.tensor([True, False, True, True])
    before = LOGITS.clone()
    assert warp_logits(LOGITS, mask=mask).tolist() == [[1.0, -INF, 2.0, 0.0]]
    assert torch.equal(LOGITS, before)


def test_top_k_keeps_the_largest_and_ties() -> None:
    assert warp_logits(LOGITS, SamplingParams(top_k=2)).tolist() == [[-INF, 3.0, 2.0, -INF]]
    assert warp_logits(torch.tensor([[1.0, 1.0, 0.0]]), SamplingParams(top_k=1)).tolist() == [[1.0, 1.0, -INF]]
    assert torch.equal(warp_logits(LOGITS, SamplingParams(top_k=99)), LOGITS)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {
        p: (warp_logits(logits, SamplingParams(top_p=p)) > -INF).tolist()[0] for p in (0.1, 0.45, 0.55, 0.79, 0.9, 0.99)
    }
    assert kept == {
        0.1: [True, False, False, False],
        0.45: [True, False, False, False],
        0.55: [True, True, False, False],
        0.79: [True, True, False, False],
        0.9: [True, True, True, False],
        0.99: [True, True, True, True],
    }


def test_order_is_mask_temperature_top_k_top_p() -> None:
    logits = torch.tensor([[9.0, math.log(0.5) * 2, math.log(0.3) * 2, math.log(0.2) * 2]])
    sampling = SamplingParams(temperature=2.0, top_k=3, top_p=0.7)
    warped = warp_logits(logits, sampling, mask=torch.tensor([False, True, True, True]))
    torch.testing.assert_close(warped.exp(), torch.tensor([[0.0, 0.5, 0.3, 0.0]]))


def test_keep_spares_taken_actions_from_top_k_and_top_p() -> None:
    kept = warp_logits(LOGITS, SamplingParams(top_k=1), keep=torch.tensor([0]))
    assert kept.tolist() == [[1.0, 3.0, -INF, -INF]]
    assert warp_logits(LOGITS, SamplingParams(top_p=0.1), keep=torch.tensor([3])).tolist() == [[-INF, 3.0, -INF, 0.0]]


def test_warping_is_differentiable() -> None:
    logits = LOGITS.clone().requires_grad_()
    warp_logits(logits, SamplingParams(temperature=2.0, top_k=3)).log_softmax(-1)[0, 1].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 3] == 0.0


def test_half_precision_becomes_float32() -> None:
    assert warp_logits(LOGITS.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", 0.0), ("temperature", -1.0), ("temperature", INF), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_bad_settings_name_argument_and_value(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}: .*{value}"):
        SamplingParams(**{setting: value})  # type: ignore[arg-type]


def test_the_reference_shares_the_temperature_alone() -> None:
    assert SamplingParams(0.7, top_k=3, top_p=0.5).of_reference == SamplingParams(0.7)


def test_fields_alone_are_taken_for_one_release() -> None:
    with pytest.warns(DeprecationWarning, match=r"give sampling=SamplingParams\(temperature=2.0, top_k=3\)"):
        old = warp_logits(LOGITS, temperature=2.0, top_k=3)
    assert torch.equal(old, warp_logits(LOGITS, SamplingParams(2.0, 3)))


@pytest.mark.parametrize("vocab_size", [5, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_frequencies_match_probabilities(vocab_size: int) -> None:
    """Chi-square over 200,000 draws; cells with fewer than 5 expected are pooled; z-score of the statistic below 4."""
    logits = torch.randn(1, vocab_size, generator=generator(1)) * 2
    draws = 200_000
    tokens, _ = sample(logits.expand(draws, -1), generator(2))
    expected = logits[0].double().softmax(-1) * draws
    observed = torch.bincount(tokens, minlength=vocab_size).double()
    small = expected < 5
    expected = torch.cat([expected[~small], expected[small].sum(0, keepdim=True)])
    observed = torch.cat([observed[~small], observed[small].sum(0, keepdim=True)])
    cells = expected > 0
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-12))[cells].sum()
    freedom = int(cells.sum()) - 1
    assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 4


def test_log_probs_are_those_of_log_softmax() -> None:
    logits = torch.randn(50, 700, generator=generator(3)) * 5
    tokens, log_probs = sample(logits, generator(4))
    expected = logits.double().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=0)


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((20_000, 600), -INF)
    allowed = torch.tensor([0, 255, 256, 511, 512, 599])  # first and last of blocks
    logits[:, allowed] = 0.0
    tokens, log_probs = sample(logits, generator(5))
    assert set(tokens.tolist()) == set(allowed.tolist())
    torch.testing.assert_close(log_probs, torch.full((20_000,), -math.log(6)))


@pytest.mark.parametrize("token", [0, 255, 256, 511, 599])
def test_all_mass_on_one_token(token: int) -> None:
    logits = torch.full((3, 600), -INF)
    logits[:, token] = -1000.0
    tokens, log_probs = sample(logits, generator())
    assert tokens.tolist() == [token] * 3
    assert log_probs.tolist() == [0.0] * 3


def test_same_generator_state_same_tokens_and_global_state_untouched() -> None:
    logits = torch.randn(8, 300, generator=generator(6))
    state = torch.random.get_rng_state()
    first, second = sample(logits, generator(7))[0], sample(logits, generator(7))[0]
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_logits_are_not_modified() -> None:
    logits = torch.randn(2, 300, generator=generator(8))
    before = logits.clone()
    sample(logits, generator())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [-INF, float("nan"), INF])
def test_impossible_rows_are_named(bad: float) -> None:
    logits = torch.zeros(3, 10)
    logits[1] = bad
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        sample(logits, generator())


def test_shape_is_checked() -> None:
    with pytest.raises(ValueError, match="shape"):
        sample(torch.zeros(10), generator())
