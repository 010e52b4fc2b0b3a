"""Losses against numbers worked out by hand, brute-force loops, finite differences and exact enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from textgen_env.agents import losses


def random_tokens(seed: int, n: int = 24) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(n, generator=generator, dtype=torch.float64) * 4
    new = old + 0.4 * torch.randn(n, generator=generator, dtype=torch.float64)
    return new, old, torch.randn(n, generator=generator, dtype=torch.float64)


def test_clipped_surrogate_by_hand():
    """ρ = (1.5, 1.5, .5, .5), A = (1, −1, 1, −1), ε = .2 → objectives (1.2, −1.5, .5, −.8): loss .6/4 = .15."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    loss = losses.clipped_surrogate(ratio.log(), torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2)
    assert loss.item() == pytest.approx(0.15)


def test_clipped_surrogate_gradient_is_zero_only_where_the_clip_binds():
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    losses.clipped_surrogate(log_prob, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).backward()
    # d(−ρA/4)/d log π = −ρA/4 where the minimum is the unclipped term
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 0.375, -0.125, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_clipped_surrogate_is_the_loop(seed):
    new, old, advantage = random_tokens(seed)
    total = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantage.tolist(), strict=True):
        rho = math.exp(n - o)
        total += min(rho * a, min(max(rho, 0.8), 1.2) * a)
    assert losses.clipped_surrogate(new, old, advantage, 0.2).item() == pytest.approx(-total / len(new))


def test_value_loss_by_hand():
    """V=(2, .1), V_old=0, R=(1, 1), ε=.5: clipped (.5, .1); max squares (1, .81) → ½·.905."""
    value, old, returns = torch.tensor([2.0, 0.1]), torch.zeros(2), torch.ones(2)
    assert losses.clipped_value_loss(value, old, returns, 0.5).item() == pytest.approx(0.4525)
    assert losses.clipped_value_loss(value, old, returns, None).item() == pytest.approx((1 + 0.81) / 4)


@pytest.mark.parametrize("off_policy", [0.0, 0.7])
def test_expected_gradient_of_kl_loss_is_that_of_the_exact_kl(off_policy: float):
    """By enumeration of four actions, each weighted with the probability with which the old policy draws it."""
    generator = torch.Generator().manual_seed(0)
    logits, ref, shift = torch.randn(3, 4, generator=generator, dtype=torch.float64).unbind()
    ref, old = ref.log_softmax(-1), (logits + off_policy * shift).log_softmax(-1)
    logits.requires_grad_()
    log_prob, one = logits.log_softmax(-1), torch.ones(1)
    expected = sum(
        old[a].exp() * losses.kl_loss(log_prob[a : a + 1], ref[a : a + 1], one, old_log_prob=old[a : a + 1])
        for a in range(4)
    )
    exact = (log_prob.exp() * (log_prob - ref)).sum()
    torch.testing.assert_close(expected, exact, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (expected, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_single_token_cannot_carry_approx_kl_away():
    old = torch.zeros(1000)
    new = torch.cat([torch.tensor([12.0, -40.0]), torch.zeros(998)])
    assert losses.approx_kl(new, old).item() < 0.01


def test_kl_loss_is_the_exact_kl_in_expectation():
    """Over all actions of a tiny vocabulary, weighted with π, k3 sums to KL(π‖π_ref)."""
    pi, ref = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
    exact = sum(p * math.log(p / q) for p, q in zip(pi.tolist(), ref.tolist(), strict=True))
    expected = sum(
        p
        * losses.kl_loss(
            pi[i : i + 1].log(), ref[i : i + 1].log(), torch.ones(1), old_log_prob=pi[i : i + 1].log()
        ).item()
        for i, p in enumerate(pi.tolist())
    )
    assert expected == pytest.approx(exact, rel=1e-5)
    assert losses.kl_loss(pi.log(), pi.log(), torch.ones(3), old_log_prob=pi.log()).item() == 0


def test_approx_kl_and_clip_fraction_by_hand():
    new, old = torch.tensor([math.log(1.5), 0.0]), torch.zeros(2)
    assert losses.approx_kl(new, old).item() == pytest.approx((0.5 - math.log(1.5)) / 2)
    assert losses.clip_fraction(new, old, 0.2).item() == 0.5
    assert losses.approx_kl(old, old).item() == 0


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 2.0, 4.0])
    assert losses.explained_variance(returns, returns).item() == 1
    assert losses.explained_variance(torch.full((3,), 9.0), returns).item() == 0
    assert losses.explained_variance(-returns, returns).item() == pytest.approx(-3)
    assert losses.explained_variance(returns, torch.ones(3)).item() == 0


def test_entropy_and_language_model_loss_are_negative_means():
    assert losses.entropy_loss(torch.tensor([1.0, 3.0])).item() == -2
    assert losses.language_model_loss(torch.tensor([-1.0, -3.0]), torch.tensor([0, 1])).item() == 3


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences(seed):
    new, old, advantage = (x.clone() for x in random_tokens(seed))
    new.requires_grad_()
    assert gradcheck(lambda x: losses.clipped_surrogate(x, old, advantage), new)
    assert gradcheck(lambda x: losses.clipped_value_loss(x, old, advantage, 0.3), new)
    assert gradcheck(lambda x: losses.kl_loss(x, advantage, torch.ones(24), old_log_prob=old), new)
    assert gradcheck(lambda x: losses.language_model_loss(x), new)


def test_rectangles_with_a_mask_equal_packed_tokens_even_with_infinities_outside():
    new, old, advantage = (x.view(4, 6) for x in random_tokens(0))
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    junk = torch.where(mask, 0.0, -torch.inf)
    wide = (new + junk).requires_grad_()
    for loss in (
        lambda n, o, a, m: losses.clipped_surrogate(n, o, a, 0.2, m),
        lambda n, o, a, m: losses.kl_loss(n, a, torch.ones_like(n) if m is None else m, old_log_prob=o),
        lambda n, o, a, m: losses.approx_kl(n, o, m),
        lambda n, o, a, m: losses.clip_fraction(n, o, 0.2, m),
    ):
        rectangular = loss(wide, old + junk, advantage, mask)
        torch.testing.assert_close(rectangular, loss(new[mask], old[mask], advantage[mask], None))
    losses.clipped_surrogate(wide, old + junk, advantage, 0.2, mask).backward()
    assert wide.grad is not None
    assert wide.grad.isfinite().all()
    assert wide.grad[~mask].eq(0).all()
