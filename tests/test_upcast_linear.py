"""Half-precision layers by way of float32, switched on by force: against float64 products and against the model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, random_model
from torch import Tensor, nn

from textgen_env.lm import upcast_linear as module
from textgen_env.lm.log_probs import response_log_probs
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.lm.upcast_linear import UpcastLinear, float32_is_faster, upcast_linear

HALF_ULP = 2**-8  # of bf16, relative: what one rounding may cost


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine multiplies float32 faster, whatever it is."""
    monkeypatch.setattr(module, "float32_is_faster", lambda dtype: True)


def layer(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 24), (7, 24), (7,)))
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = layer(dtype)
    with UpcastLinear():
        ours = nn.functional.linear(x, weight, bias)
    exact = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=HALF_ULP)
    assert ours.dtype == dtype


def test_gradients_are_rounded_once() -> None:
    leaves = layer(torch.bfloat16)
    direction = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    with UpcastLinear():
        ours = torch.autograd.grad(nn.functional.linear(*leaves), leaves, direction)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    theirs = torch.autograd.grad(wide[0] @ wide[1].t() + wide[2], wide, direction.double())
    for mine, other, leaf in zip(ours, theirs, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        assert mine.shape == leaf.shape
        torch.testing.assert_close(mine.double(), other, atol=1e-5, rtol=HALF_ULP)


def test_frozen_weights_get_no_gradient() -> None:
    x, weight, bias = layer(torch.bfloat16)
    with UpcastLinear():
        nn.functional.linear(x, weight.detach(), bias.detach()).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert bias.grad is None


def test_kept_copies_serve_until_they_are_forgotten() -> None:
    x, weight, bias = (tensor.detach() for tensor in layer(torch.bfloat16))
    copies: dict[int, Tensor] = {}
    with UpcastLinear(copies):
        first = nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(first.float(), x.float() @ weight.float().t() + bias, atol=1e-5, rtol=HALF_ULP)
        weight.zero_()
        assert torch.equal(nn.functional.linear(x, weight, bias), first)
        copies.clear()
        assert torch.equal(nn.functional.linear(x, weight, bias), bias.expand(2, 5, 7))


def test_other_layers_are_left_alone() -> None:
    """float32 layers, and layers whose input has another dtype than the weight (an error of torch's own)."""
    x, weight, bias = (tensor.detach() for tensor in layer(torch.float32))
    plain = nn.functional.linear(x, weight, bias)
    with UpcastLinear({}):
        assert torch.equal(nn.functional.linear(x, weight, bias=bias), plain)
        with pytest.raises(RuntimeError, match="dtype"):
            nn.functional.linear(x, weight.bfloat16())


def test_only_half_precision_on_a_cpu_is_affected(forced: None) -> None:
    model: Any = random_model("llama", VOCAB)
    assert not isinstance(upcast_linear(model), UpcastLinear)
    assert isinstance(upcast_linear(model.bfloat16()), UpcastLinear)
    model.gradient_checkpointing_enable()
    assert not isinstance(upcast_linear(model), UpcastLinear)


def test_decision_is_made_once() -> None:
    assert float32_is_faster(torch.bfloat16) is float32_is_faster(torch.bfloat16)
    assert float32_is_faster.cache_info().hits >= 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_and_gradients_of_a_model(kind: str, forced: None) -> None:
    """As close to the float32 model as bf16 gets, in values and in every parameter's gradient."""
    model: Any = random_model(kind, VOCAB)
    ids = torch.randint(3, VOCAB, (3, 10), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(ids)
    response = ones.clone()
    response[:, :4] = 0
    texts = TokenBatch(ids, ones, response)

    def run(of: Any) -> tuple[Tensor, list[Tensor]]:
        log_probs = response_log_probs(of, texts, vocab_size=VOCAB).log_probs[response.bool()]
        return log_probs.detach(), [g.float() for g in torch.autograd.grad(log_probs.mean(), list(of.parameters()))]

    half = copy.deepcopy(model).bfloat16()
    widened = copy.deepcopy(half).float()  # the same weights; what is left is the rounding of activations
    (ours, our_gradients), (theirs, their_gradients) = run(half), run(widened)
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert (mine - other).norm() <= 0.05 * other.norm() + 1e-4


def test_decoding_follows_the_weights(forced: None) -> None:
    model: Any = random_model("llama", VOCAB).bfloat16()
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    ids = np.array([[3, 4, 5, 6], [7, 8, 9, 10]])

    def assert_current() -> None:
        with torch.no_grad():
            theirs = copy.deepcopy(model).float()(torch.from_numpy(ids)).logits[:, -1, :VOCAB]
        ours = cache.next_logits(ids, [4, 4])
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=0.1, rtol=0)

    cache.next_logits(ids, [3, 3])
    assert_current()
    assert cache._copies
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    assert_current()
