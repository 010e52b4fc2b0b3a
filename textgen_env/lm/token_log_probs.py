"""log π(token), entropy and KL of many rows of logits, forward and backward, in pieces that stay in a core's cache.

What `log_softmax` and `gather` give, at a fraction of the time and memory: with 49k tokens a vocabulary, each temporary
of the plain formula is hundreds of megabytes that are written, read once and given back. Here every intermediate value
exists for a few rows at a time; what is kept for the backward pass is the logits, in their own dtypes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 19  # logits worked on at a time: 2 MB in float32, about a core's second-level cache


def token_log_probs(logits: Tensor, tokens: Tensor, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Log-probability of one token per row, and the entropy of each row.

    Args:
        logits: (N, V), any floating dtype; -inf excludes a token. Differentiable, once.
        tokens: (N,) int64.
        with_entropy: also compute H(softmax(logits)).

    Returns:
        (N,) float32 log-probs, and (N,) float32 entropies in nats or None. Everything is computed in float32.
    """
    scores = token_scores(logits, tokens, with_entropy=with_entropy)
    return scores.log_probs, scores.entropy


class TokenScores(NamedTuple):
    """What `token_scores` knows of N rows: (N,) float32 each, nats."""

    log_probs: Tensor  # log π(a|s)
    entropy: Tensor | None = None  # H(π(·|s))
    kl: Tensor | None = None  # KL(π(·|s)‖π_ref(·|s)), summed over the vocabulary
    ref_log_probs: Tensor | None = None  # log π_ref(a|s), a constant


def token_scores(
    logits: Tensor, tokens: Tensor, ref_logits: Tensor | None = None, *, with_entropy: bool = False
) -> TokenScores:
    """`token_log_probs`, and with the logits of a reference (N, V) what it says of the token, and the exact KL to it.

    A token that π excludes (-inf) adds nothing to the KL, whatever the reference says of it; one that the reference
    alone excludes makes it infinite. No gradient goes to the reference.
    """
    log_probs, entropy, kl, ref_log_probs = _TokenScores.apply(logits, tokens, ref_logits, with_entropy)
    scores = TokenScores(log_probs, entropy if with_entropy else None)
    return scores if ref_logits is None else scores._replace(kl=kl, ref_log_probs=ref_log_probs)


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, tokens: Tensor, ref_logits: Tensor | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.with_entropy = with_entropy
        normaliser, entropy, kl, ref_normaliser = logits.new_empty(4, len(logits), dtype=torch.float32)
        for rows in _blocks(logits):
            block = logits[rows].float()
            highest = block.amax(dim=1, keepdim=True)
            shifted = block - highest
            weights = shifted.exp()
            total = weights.sum(dim=1)
            normaliser[rows] = total.log() + highest.squeeze(1)
            if ref_logits is not None:
                ref = ref_logits[rows].float()
                ref_normaliser[rows] = ref.logsumexp(dim=1)
                log_ratio = _log_ratio(block, normaliser[rows], ref, ref_normaliser[rows])
                kl[rows] = log_ratio.mul_(weights).sum(dim=1) / total
            if with_entropy:  # H = log Z - Σ p·(l - max), where excluded tokens give 0 and not 0·inf
                weights.mul_(shifted.masked_fill_(shifted == -torch.inf, 0.0))
                entropy[rows] = total.log() - weights.sum(dim=1) / total
        log_probs = _of_tokens(logits, tokens) - normaliser
        ref_log_probs = ref_normaliser if ref_logits is None else _of_tokens(ref_logits, tokens) - ref_normaliser
        ctx.save_for_backward(logits, tokens, ref_logits, normaliser, entropy, kl, ref_normaliser)
        ctx.mark_non_differentiable(ref_log_probs)
        return log_probs, entropy, kl, ref_log_probs

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, of_log_probs: Tensor, of_entropy: Tensor, of_kl: Tensor, of_ref: Tensor
    ) -> tuple[Tensor, None, None, None]:
        logits, tokens, ref_logits, normaliser, entropy, kl, ref_normaliser = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _blocks(logits):
            block = logits[rows].float()
            log_p = block - normaliser[rows].unsqueeze(1)
            p = log_p.exp()
            slope = -of_log_probs[rows].unsqueeze(1)  # ∂ log π(a) / ∂ l = 1[a] - p
            if ref_logits is not None:  # ∂KL / ∂ l = p·(log p - log q - KL)
                log_ratio = _log_ratio(block, normaliser[rows], ref_logits[rows].float(), ref_normaliser[rows])
                slope = log_ratio.sub_(kl[rows].unsqueeze(1)).mul_(of_kl[rows].unsqueeze(1)).add_(slope)
            if ctx.with_entropy:  # ∂H / ∂ l = -p·(log p + H)
                surprise = log_p.masked_fill_(log_p == -torch.inf, 0.0).add_(entropy[rows].unsqueeze(1))
                slope = surprise.mul_(-of_entropy[rows].unsqueeze(1)).add_(slope)
            p.mul_(slope).scatter_add_(1, tokens[rows].unsqueeze(1), of_log_probs[rows].unsqueeze(1))
            gradient[rows] = p
        return gradient, None, None, None


def _log_ratio(logits: Tensor, normaliser: Tensor, ref_logits: Tensor, ref_normaliser: Tensor) -> Tensor:
    """(n, V) log p - log q, 0 where p is 0: in the sums its weight is 0, and 0·inf would be NaN."""
    shift = (ref_normaliser - normaliser).unsqueeze(1)
    return (logits - ref_logits).add_(shift).masked_fill_(logits == -torch.inf, 0.0)


def _of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """(N,) float32 logits of the tokens."""
    return logits.gather(1, tokens.unsqueeze(1)).squeeze(1).float()


def _blocks(logits: Tensor) -> list[slice]:
    step = max(1, BLOCK // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, len(logits), step)]
