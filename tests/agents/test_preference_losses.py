"""Losses of pairs against numbers worked out by hand, torch's own, and enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from textgen_env.agents.preference_losses import ipo_loss, kto_loss, preference_accuracy, preference_loss


def test_preference_loss_by_hand():
    """σ(0) = ½; σ(ln 3) = ¾, for a tie half of each direction."""
    margin = torch.tensor([0.0, math.log(3)], requires_grad=True)
    target = torch.tensor([1.0, 0.5])
    loss = preference_loss(margin, target)
    assert loss.item() == pytest.approx((0.69314718 + 0.5 * (0.28768207 + 1.38629436)) / 2)
    (gradient,) = torch.autograd.grad(loss, margin)
    torch.testing.assert_close(gradient, torch.tensor([(0.5 - 1) / 2, (0.75 - 0.5) / 2]))
    far = torch.tensor([-1000.0, 1000.0])
    assert preference_loss(far, torch.tensor([1.0, 1.0])).item() == pytest.approx(500)


def test_preference_loss_is_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    margin, target = 5 * torch.randn(100, generator=generator), torch.rand(100, generator=generator)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(margin, target)
    torch.testing.assert_close(preference_loss(margin, target), theirs)


def test_expected_gradient_over_labels_is_that_of_the_cross_entropy():
    """Three items, each pair with each label as likely as the true rewards make it: 0 at the truth, and there alone."""
    true = torch.tensor([1.0, -0.5, 0.2])
    pairs = [(0, 1), (0, 2), (1, 2)]

    def expected(rewards: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(3)
        for i, j in pairs:
            p = 1 / (1 + math.exp(float(true[j] - true[i])))
            for first, second, weight in ((i, j, p), (j, i, 1 - p)):
                r = rewards.clone().requires_grad_()
                loss = preference_loss((r[first] - r[second])[None], torch.ones(1))
                total += weight * torch.autograd.grad(loss, r)[0]
        return total

    def cross_entropy(rewards: torch.Tensor) -> torch.Tensor:
        r = rewards.clone().requires_grad_()
        terms = [
            -torch.sigmoid(true[i] - true[j]) * torch.sigmoid(r[i] - r[j]).log()
            - torch.sigmoid(true[j] - true[i]) * torch.sigmoid(r[j] - r[i]).log()
            for i, j in pairs
        ]
        return torch.autograd.grad(torch.stack(terms).sum(), r)[0]

    elsewhere = torch.tensor([0.3, 0.1, -2.0])
    torch.testing.assert_close(expected(elsewhere), cross_entropy(elsewhere))
    torch.testing.assert_close(expected(true + 7), torch.zeros(3), atol=1e-6, rtol=0)
    assert expected(elsewhere).abs().max() > 0.1


def test_ipo_loss_by_hand():
    """1/(2β) = 2: (3 − 2)² and, of a tie, (1 − 0)²."""
    loss = ipo_loss(torch.tensor([3.0, 1.0]), 0.25, torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((1 + 1) / 2)


def test_kto_loss_by_hand():
    """β = ½, z = 1, σ(ln 3) = ¾: r = 1 + 2·ln 3 is worth ¾ if good, ¼ if bad; r = 1 is worth ½ either way."""
    log_ratio = torch.tensor([1 + 2 * math.log(3), 1 + 2 * math.log(3), 1.0, 1.0], requires_grad=True)
    loss = kto_loss(log_ratio, torch.tensor(1.0), 0.5, torch.tensor([1.0, 0.0, 1.0, 0.5]))
    assert loss.item() == pytest.approx((0.25 + 0.75 + 0.5 + 0.5) / 4)
    loss.backward()
    # −β·σ(1 − σ)/4 if good, the opposite if bad, nothing where nobody can say
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-3 / 128, 3 / 128, -1 / 32, 0.0]))


def test_no_gradient_goes_through_the_reference_point():
    point = torch.tensor(0.5, requires_grad=True)
    kto_loss(torch.tensor([1.0], requires_grad=True), point, 0.1, torch.ones(1)).backward()
    assert point.grad is None


def test_preference_accuracy_by_hand():
    margin, target = torch.tensor([2.0, -1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 0.5])
    assert preference_accuracy(margin, target).item() == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
