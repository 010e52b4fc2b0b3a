"""Warping of next-token logits and exact sampling from them.

`warp_logits` is the one place where temperature, top-k, top-p and action masks are applied: to the policy when it
samples, to the reference, and to every scored log-probability, so that the three always speak of the same
distribution. `SamplingParams` are its settings, handed on whole by everybody who samples or scores. Nothing here knows
a model.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from textgen_env.notices import warn_user

BLOCK = 256  # tokens per block of the two-level sampler: 49,152 tokens are 192 sums, small enough to search at no cost


@dataclass(frozen=True)
class SamplingParams:
    """How next tokens are drawn. Whatever warps sampling warps the scored log-probabilities, so it is one thing.

    Attributes:
        temperature: divides the logits; > 0.
        top_k: keep the k largest (ties with the k-th stay); 0 keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach this sum (nucleus sampling, Holtzman et al.
            2020); 1 keeps all.

    Raises:
        TypeError, ValueError: a setting of another type or out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number > 0, got {self.temperature!r}")
        if operator.index(self.top_k) < 0:
            raise ValueError(f"top_k: expected an integer >= 0 (0 keeps all tokens), got {self.top_k!r}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p!r}")

    @property
    def of_reference(self) -> SamplingParams:
        """What the reference shares: the temperature. Outside its own nucleus KL(π‖π_ref) would be infinite."""
        return replace(self, top_k=0, top_p=1.0)


PLAIN = SamplingParams()
"""The model's own distribution."""

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_sampling(function: Function) -> Function:
    """Let a function that takes ``sampling`` also be called with its fields, as before there was the type.

    For one release, with a DeprecationWarning.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        fields = {name: options.pop(name) for name in ("temperature", "top_k", "top_p") if name in options}
        if fields:
            given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            message = f"give sampling=SamplingParams({given}); its fields by themselves go with the next release"
            warn_user(message, DeprecationWarning)
            options["sampling"] = SamplingParams(**fields)
        return function(*args, **options)

    return wrapper  # type: ignore[return-value]


@takes_sampling
def warp_logits(
    logits: torch.Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    mask: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turn raw logits into those that are sampled from: mask, then temperature, then top-k, then top-p.

    Args:
        logits: (..., V), any floating type.
        sampling: temperature, top-k and top-p.
        mask: bool, broadcasts to (..., V); True marks the allowed tokens.
        keep: (...) token ids that top-k and top-p may not remove. Give the actions that were taken when old samples
            are scored anew: a rounding difference at the edge of the set would otherwise turn a sampled token into log
                0.

    Returns:
        (..., V) float32; excluded entries are -inf. Differentiable. The input is never modified, but is returned as it
        is when there is nothing to do.
    """
    temperature, top_k, top_p = sampling.temperature, sampling.top_k, sampling.top_p
    logits = logits.float()
    if mask is not None:
        logits = logits.masked_fill(~mask.to(device=logits.device, dtype=torch.bool), -torch.inf)
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        lowest = logits.detach().topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(_spare(logits < lowest, keep), -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.detach().sort(dim=-1, descending=True)
        probs = ordered.softmax(dim=-1)
        outside = probs.cumsum(dim=-1) - probs >= top_p  # the sum before this token already reaches p
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        logits = logits.masked_fill(_spare(outside, keep), -torch.inf)
    return logits


def sample(logits: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row from softmax(logits) by inverting its cumulative distribution in two levels.

    The sums of 256-token blocks choose the block, then the tokens inside it choose the token: the same distribution as
    one long cumulative sum, at a fraction of the cost (and of that of `torch.multinomial`). Sums are kept in float64,
    so that neither large vocabularies nor tiny probabilities are biased; a token of probability 0 is never drawn.

    Args:
        logits: (n, V) float32, already warped (see `warp_logits`).
        generator: source of the uniforms, on the device of the logits; None takes torch's default one.

    Returns:
        tokens (n,) int64 and their log-probabilities (n,) float32.

    Raises:
        ValueError: a row holds NaN or +inf, or allows no token at all.
    """
    if logits.dim() != 2:
        raise ValueError(f"logits: expected shape (n, vocabulary), got {tuple(logits.shape)}")
    n, vocab_size = logits.shape
    highest = logits.max(dim=-1, keepdim=True).values
    if not torch.isfinite(highest).all():
        bad = torch.nonzero(~torch.isfinite(highest[:, 0])).flatten().tolist()
        raise ValueError(f"logits: rows {bad} hold NaN or +inf, or allow no token at all (every entry -inf)")
    blocks = -(-vocab_size // BLOCK)
    weights = logits.new_empty(n, blocks * BLOCK, dtype=torch.float32)
    weights[:, vocab_size:] = 0.0
    torch.sub(logits, highest, out=weights[:, :vocab_size])
    weights[:, :vocab_size].exp_()
    weights = weights.view(n, blocks, BLOCK)
    cumulative = weights.sum(dim=-1).double().cumsum(dim=-1)  # (n, blocks)
    total = cumulative[:, -1:]
    uniform = torch.rand(n, 1, dtype=torch.float64, generator=generator, device=logits.device)
    block, before = _invert(cumulative, uniform * total)
    inside = (
        weights.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    )  # (n, BLOCK)
    token, _ = _invert(inside, uniform * total - before)
    tokens = block * BLOCK + token
    log_probs = (logits.gather(1, tokens) - highest).double() - total.log()
    return tokens.squeeze(1), log_probs.squeeze(1).float()


def _invert(cumulative: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First index whose cumulative sum exceeds target, and the sum before it; both (n, 1).

    Rounding may push a target to the very end; one ulp less brings it back to the last entry that has any mass.
    """
    end = cumulative[:, -1:]
    target = torch.minimum(target, torch.nextafter(end, torch.zeros_like(end)))
    index = torch.searchsorted(cumulative, target.contiguous(), right=True)
    before = cumulative.gather(1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0.0)
    return index, before


def _spare(excluded: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Take the tokens `keep` out of the excluded ones."""
    return excluded if keep is None else excluded.scatter(-1, keep.unsqueeze(-1), False)
