"""Log-probs and entropies of tokens, and their gradients, against torch.distributions in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from textgen_env.lm import token_log_probs as module
from textgen_env.lm.token_log_probs import token_log_probs, token_scores


def expected(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=logits)
    return distribution.log_prob(tokens), distribution.entropy()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 40), st.floats(0.01, 60), st.integers(1, 64), st.integers(0, 2**31 - 1))
def test_values_and_gradients_are_exact(rows: int, vocab: int, scale: float, block: int, seed: int) -> None:
    """Whatever the size of a block, of the logits, or the share of excluded tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * scale + 100
    tokens = torch.randint(vocab, (rows,), generator=generator)
    excluded = (torch.rand(rows, vocab, generator=generator) < 0.3).scatter(1, tokens.unsqueeze(1), False)
    weights = torch.randn(2, rows, generator=generator)
    results, gradients = [], []
    for function, dtype, bottom in (
        (lambda x, t: token_log_probs(x, t, with_entropy=True), torch.float32, -torch.inf),
        (expected, torch.float64, -1e9),  # torch.distributions has no gradient of -inf; -1e9 weighs 0 as well
    ):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BLOCK", block)
            log_probs, entropy = function(leaf.masked_fill(excluded, bottom), tokens)
            assert entropy is not None
            (log_probs * weights[0] + entropy * weights[1]).sum().backward()
        results.append(torch.stack([log_probs, entropy]).detach().double())
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    tolerance = 2e-5 * (1 + scale)
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=tolerance, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(2, 40), st.floats(0.01, 20), st.integers(1, 64), st.integers(0, 2**31 - 1))
def test_the_kl_and_its_gradient_are_exact(rows: int, vocab: int, scale: float, block: int, seed: int) -> None:
    """Against torch.distributions over the tokens that are left, row by row; the reference keeps all of its own."""
    generator = torch.Generator().manual_seed(seed)
    logits, ref = (torch.randn(rows, vocab, generator=generator) * scale + shift for shift in (100, -30))
    tokens = torch.randint(vocab, (rows,), generator=generator)
    excluded = (torch.rand(rows, vocab, generator=generator) < 0.3).scatter(1, tokens.unsqueeze(1), False)
    weights = torch.randn(3, rows, generator=generator)
    ours, leaf = logits.clone().requires_grad_(), logits.double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = token_scores(ours.masked_fill(excluded, -torch.inf), tokens, ref, with_entropy=True)
        assert found.kl is not None
        assert found.entropy is not None
        (weights * torch.stack([found.log_probs, found.entropy, found.kl])).sum().backward()
    wanted = []
    for row in range(rows):
        kept = ~excluded[row]
        own = torch.distributions.Categorical(logits=leaf[row, kept])
        log_q = ref[row].double().log_softmax(dim=0)
        token = (torch.arange(vocab)[kept] == tokens[row]).long().argmax()
        kl = (own.probs * (own.logits - log_q[kept])).sum()
        wanted.append(torch.stack([own.log_prob(token), own.entropy(), kl]))
        assert found.ref_log_probs is not None
        assert found.ref_log_probs[row].item() == pytest.approx(log_q[tokens[row]].item(), abs=2e-5 * (1 + scale))
    columns = torch.stack(wanted, dim=1)
    (weights * columns).sum().backward()
    tolerance = 4e-5 * (1 + scale)
    torch.testing.assert_close(found.kl.double(), columns[2].detach(), atol=tolerance, rtol=1e-5)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.double(), leaf.grad, atol=tolerance, rtol=1e-4)


def test_a_token_that_only_the_reference_excludes_makes_the_kl_infinite() -> None:
    ref = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    scores = token_scores(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]), torch.tensor([0, 0]), ref)
    assert scores.kl is not None
    assert scores.kl.tolist() == [torch.inf, 0.0]


def test_half_precision_logits_are_read_exactly() -> None:
    """The sums are those of float32: bf16 in, the same result as of the widened logits."""
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.arange(5)
    ours, _ = token_log_probs(logits.requires_grad_(), tokens)
    torch.testing.assert_close(ours.double(), expected(logits.double(), tokens)[0], atol=1e-5, rtol=0)
    ours.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    slope = -logits.detach().double().softmax(dim=1)
    slope[torch.arange(5), tokens] += 1
    torch.testing.assert_close(logits.grad.double(), slope, atol=1e-6, rtol=2**-8)


def test_the_one_allowed_token_is_certain() -> None:
    logits = torch.full((1, 4), -torch.inf)
    logits[0, 2] = 3.0
    log_probs, entropy = token_log_probs(logits.requires_grad_(), torch.tensor([2]), with_entropy=True)
    assert entropy is not None
    assert log_probs.item() == entropy.item() == 0.0
    (log_probs + entropy).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(1, 4))  # type: ignore[arg-type]


def test_no_rows() -> None:
    log_probs, entropy = token_log_probs(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long), with_entropy=True)
    assert entropy is not None
    assert log_probs.shape == entropy.shape == (0,)


def test_entropy_only_where_asked_for() -> None:
    assert token_log_probs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))[1] is None
