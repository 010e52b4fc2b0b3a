"""Losses against numbers worked out by hand, brute-force loops, finite differences and exact enumeration."""

from __future__ import annotations

import inspect
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
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = losses.clipped_surrogate(ratio.log(), torch.zeros(4), advantage, 0.2, torch.ones(4))
    assert loss.item() == pytest.approx(0.15)


def test_clipped_surrogate_gradient_is_zero_only_where_the_clip_binds():
    log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    losses.clipped_surrogate(log_prob, torch.zeros(4), advantage, 0.2, torch.ones(4)).backward()
    # d(−ρA/4)/d log π = −ρA/4 where the minimum is the unclipped term
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 0.375, -0.125, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_clipped_surrogate_is_the_loop(seed):
    new, old, advantage = random_tokens(seed)
    total = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantage.tolist(), strict=True):
        rho = math.exp(n - o)
        total += min(rho * a, min(max(rho, 0.8), 1.2) * a)
    assert losses.clipped_surrogate(new, old, advantage, 0.2, torch.ones(24)).item() == pytest.approx(-total / len(new))


def test_value_loss_by_hand():
    """V=(2, .1), V_old=0, R=(1, 1), ε=.5: clipped (.5, .1); max squares (1, .81) → ½·.905."""
    value, old, returns = torch.tensor([2.0, 0.1]), torch.zeros(2), torch.ones(2)
    assert losses.clipped_value_loss(value, old, returns, 0.5, torch.ones(2)).item() == pytest.approx(0.4525)
    assert losses.clipped_value_loss(value, old, returns, None, torch.ones(2)).item() == pytest.approx((1 + 0.81) / 4)


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
    assert losses.approx_kl(new, old, torch.ones(1000)).item() < 0.01


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
    both = torch.ones(2)
    assert losses.approx_kl(new, old, both).item() == pytest.approx((0.5 - math.log(1.5)) / 2)
    assert losses.clip_fraction(new, old, 0.2, both).item() == 0.5
    assert losses.approx_kl(old, old, both).item() == 0


def test_explained_variance_by_hand():
    returns, every = torch.tensor([0.0, 2.0, 4.0]), torch.ones(3)
    assert losses.explained_variance(returns, returns, every).item() == 1
    assert losses.explained_variance(torch.full((3,), 9.0), returns, every).item() == 0
    assert losses.explained_variance(-returns, returns, every).item() == pytest.approx(-3)
    assert losses.explained_variance(returns, torch.ones(3), every).item() == 0


def test_entropy_and_language_model_loss_are_negative_means():
    assert losses.entropy_loss(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1, 1, 0])).item() == -2
    assert losses.language_model_loss(torch.tensor([-1.0, -3.0]), torch.tensor([0, 1])).item() == 3


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences(seed):
    new, old, advantage = (x.clone() for x in random_tokens(seed))
    new.requires_grad_()
    mask = torch.arange(24) % 3 > 0
    assert gradcheck(lambda x: losses.clipped_surrogate(x, old, advantage, 0.2, mask), new)
    assert gradcheck(lambda x: losses.clipped_value_loss(x, old, advantage, 0.3, mask), new)
    assert gradcheck(lambda x: losses.kl_loss(x, advantage, mask, old_log_prob=old), new)
    assert gradcheck(lambda x: losses.entropy_loss(x, mask), new)
    assert gradcheck(lambda x: losses.language_model_loss(x, mask), new)


LOSSES = {
    "surrogate": lambda x, old, constant, mask: losses.clipped_surrogate(x, old, constant, 0.2, mask),
    "value": lambda x, old, constant, mask: losses.clipped_value_loss(x, old, constant, 0.2, mask),
    "unclipped value": lambda x, old, constant, mask: losses.clipped_value_loss(x, old, constant, None, mask),
    "entropy": lambda x, old, constant, mask: losses.entropy_loss(x, mask),
    "kl": lambda x, old, constant, mask: losses.kl_loss(x, constant, mask, old_log_prob=old),
    "language model": lambda x, old, constant, mask: losses.language_model_loss(x, mask),
}
DIAGNOSTICS = {
    "approx_kl": lambda x, old, constant, mask: losses.approx_kl(x, old, mask),
    "clip_fraction": lambda x, old, constant, mask: losses.clip_fraction(x, old, 0.2, mask),
    "explained_variance": lambda x, old, constant, mask: losses.explained_variance(x, constant, mask),
}


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*LOSSES, *DIAGNOSTICS])
def test_rectangles_with_a_mask_equal_their_tokens_whatever_stands_outside(name: str, junk: float):
    """In value, and the losses in gradient: that of the tokens is the same, that of everything else 0."""
    new, old, constant = (x.view(4, 6) for x in random_tokens(0))
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    function, tokens = {**LOSSES, **DIAGNOSTICS}[name], new[mask].requires_grad_()
    wide, wide_old, wide_constant = (x.where(mask, junk) for x in (new, old, constant))
    wide.requires_grad_()
    rectangular = function(wide, wide_old, wide_constant, mask)
    expected = function(tokens, old[mask], constant[mask], torch.ones(int(mask.sum())))
    torch.testing.assert_close(rectangular, expected)
    if name in LOSSES:
        rectangular.backward()
        expected.backward()
        assert wide.grad is not None
        assert wide.grad[~mask].eq(0).all()
        torch.testing.assert_close(wide.grad[mask], tokens.grad)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_reinforce_loss_by_hand_whatever_stands_outside(junk: float):
    """Two responses, of two tokens and of one: −½·[(2·−1 + 2·−3) + (−1·−0.5)] = 3.75; ∂/∂ log π = −A/2."""
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
    log_prob = torch.tensor([[junk, -1.0, -3.0], [junk, -0.5, junk]], requires_grad=True)
    loss = losses.reinforce_loss(log_prob, torch.tensor([[junk, 2.0, 2.0], [junk, -1.0, junk]]), mask)
    assert loss.item() == pytest.approx(3.75)
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [[0, -1, -1], [0, 0.5, 0]]


def test_every_function_requires_the_mask():
    functions = [f for _, f in inspect.getmembers(losses, inspect.isfunction) if f.__module__ == losses.__name__]
    assert len(functions) == 13
    for function in functions:
        if function is losses.constant_mean:
            function = function(3)  # type: ignore[operator]
        assert inspect.signature(function).parameters["response_mask"].default is inspect.Parameter.empty
