"""Advantages against brute-force sums, numbers worked out by hand, and the statistics module."""

from __future__ import annotations

import statistics

import pytest
import torch

from textgen_env.agents.advantages import (
    gae,
    group_relative,
    leave_one_out,
    masked_mean,
    masked_whiten,
    self_critical,
)


def random_case(seed: int, rows: int = 5, columns: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, columns, generator=generator)
    mask = (torch.rand(rows, columns, generator=generator) < 0.6).long()
    mask[:, 3] = 1
    return rewards, values, mask, torch.randn(rows, generator=generator)


def brute_force_gae(rewards, values, gamma, lam, last_value):
    """A_t = Σ_k (γλ)^k δ_{t+k}, written as the double sum of the paper over python floats."""
    following = [*values[1:], last_value]
    deltas = [r + gamma * v1 - v0 for r, v0, v1 in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_double_sum_over_response_tokens(seed, gamma, lam):
    rewards, values, mask, bootstrap = random_case(seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam, bootstrap)
    for row in range(len(mask)):
        at = mask[row].nonzero().flatten()
        expected = brute_force_gae(rewards[row, at].tolist(), values[row, at].tolist(), gamma, lam, bootstrap[row])
        torch.testing.assert_close(advantages[row, at], torch.tensor(expected))
        torch.testing.assert_close(returns[row, at], torch.tensor(expected) + values[row, at])
        assert advantages[row, mask[row] == 0].eq(0).all()


def test_gae_by_hand():
    """γ=1, λ=.5, V=(1, 2), r=(0, 3): δ=(1, 1), A=(1.5, 1), R=(2.5, 3); a bootstrap of 4 makes δ=(1, 5), A=(3.5, 5)."""
    rewards, values, mask = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2)
    advantages, returns = gae(rewards, values, mask, 1.0, 0.5)
    assert advantages.tolist() == [[1.5, 1.0]]
    assert returns.tolist() == [[2.5, 3.0]]
    advantages, _ = gae(rewards, values, mask, 1.0, 0.5, torch.tensor([4.0]))
    assert advantages.tolist() == [[3.5, 5.0]]


def test_what_stands_outside_the_mask_does_not_matter():
    rewards, values, mask, bootstrap = random_case(0)
    clean = gae(rewards, values, mask, bootstrap_value=bootstrap)
    junk = torch.where(mask.bool(), 0.0, torch.nan)
    for ours, theirs in zip(clean, gae(rewards + junk, values + junk, mask, bootstrap_value=bootstrap), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(masked_whiten(rewards, mask), masked_whiten(rewards + junk, mask))
    assert torch.equal(masked_mean(rewards, mask), masked_mean(rewards + junk, mask))


def test_gae_names_the_argument_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\)"):
        gae(torch.zeros(2, 4), torch.zeros(2, 3), torch.ones(2, 4))


def test_self_critical_by_hand():
    advantages = self_critical(torch.tensor([0.9, 0.2]), torch.tensor([0.5, 0.5]), torch.tensor([[0, 1, 1], [1, 0, 0]]))
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.4, 0.4], [-0.3, 0.0, 0.0]]))


def test_leave_one_out_by_hand():
    """Group (1, 2, 6): baselines (4, 3.5, 1.5)."""
    advantages = leave_one_out(torch.tensor([1.0, 2, 6]), torch.ones(3, 1), group_size=3)
    assert advantages.flatten().tolist() == [-3.0, -1.5, 4.5]


def test_group_relative_against_the_statistics_module():
    groups = [[1.0, 2.0, 6.0], [0.5, 0.25, -1.0]]
    expected = [(x - statistics.mean(g)) / (statistics.stdev(g) + 1e-4) for g in groups for x in g]
    advantages = group_relative(torch.tensor(groups).flatten(), torch.ones(6, 1), group_size=3)
    torch.testing.assert_close(advantages.flatten(), torch.tensor(expected))
    centred = group_relative(torch.tensor(groups).flatten(), torch.ones(6, 1), group_size=3, scale=False)
    torch.testing.assert_close(centred.flatten()[:3], torch.tensor([-2.0, -1.0, 3.0]))
    assert group_relative(torch.full((4,), 0.3), torch.ones(4, 1), group_size=4).abs().max() < 1e-3


@pytest.mark.parametrize("group_size", [1, 4])
def test_group_size_must_divide_the_batch(group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size}"):
        leave_one_out(torch.zeros(6), torch.ones(6, 1), group_size)


def test_whitening_centres_and_scales():
    rewards, _, mask, _ = random_case(1)
    whitened = masked_whiten(rewards + 7, mask)
    chosen = whitened[mask.bool()].tolist()
    assert statistics.fmean(chosen) == pytest.approx(0, abs=1e-5)
    assert statistics.pstdev(chosen) == pytest.approx(1, abs=1e-4)
    assert whitened[mask == 0].eq(0).all()


def test_whitening_by_hand_and_its_edges():
    torch.testing.assert_close(masked_whiten(torch.tensor([1.0, 3.0]), torch.ones(2)), torch.tensor([-1.0, 1.0]))
    assert masked_whiten(torch.tensor([5.0, 9.0]), torch.tensor([1, 0])).tolist() == [0.0, 0.0]
    assert masked_whiten(torch.full((3,), 2.5), torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert masked_mean(torch.ones(3), torch.zeros(3)) == 0
