"""Teacher-forced log-probabilities of tokens that are already written, with gradient.

The language-model head is applied only where it is asked for, so that no (B, T, V) tensor ever exists. Sampling,
caching and loading live elsewhere (`sampling.py`, `prefix_cache.py`, `language_model.py`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from textgen_env.lm.backbone import Transform, learn_split, split, unwrap
from textgen_env.lm.gqa_attention import best_attention
from textgen_env.lm.sampling import warp_logits
from textgen_env.lm.token_log_probs import token_log_probs
from textgen_env.lm.upcast_linear import upcast_linear
from textgen_env.lm.verification import Oracle, undisturbed
from textgen_env.lm.whole_texts import is_body, read_texts

logger = logging.getLogger(__name__)

TOKENS_PER_CHUNK = 1024  # rows of the head's output that are in memory at a time: 200 MB in float32 at 49k tokens


class ResponseScores(NamedTuple):
    """What `response_log_probs` knows of the N positions where response_mask is 1, in row-major order."""

    log_probs: torch.Tensor  # (N,) float32: log π(a_t | s_t)
    entropy: torch.Tensor | None  # (N,) float32: H(π(· | s_t)), nats
    hidden: (
        torch.Tensor
    )  # (N, d) model's dtype: last hidden state at s_t, the position *before* the token (value heads read it)


def response_log_probs(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    mask: torch.Tensor | None = None,
    with_entropy: bool = False,
) -> ResponseScores:
    """Log-probability of every response token given all tokens before it.

    One forward of the backbone; the head is applied only where it is needed.

    Args:
        model: a causal LM of transformers, or one wrapped by peft.
        input_ids: (B, T) int64, right-padded.
        attention_mask: (B, T), 1 for real tokens, then 0 for padding.
        response_mask: (B, T), 1 where the agent wrote the token; column 0 has nothing before it and must be 0.
        vocab_size: number of actions; logits beyond it (padding rows of the embedding) do not exist for the softmax.
            None: all.
        temperature, top_k, top_p, mask: the warping that the tokens were sampled with (see `warp_logits`); mask is
            (V,) or (N, V).
        with_entropy: also return the entropy of the warped distribution.

    Returns:
        `ResponseScores`; gradients flow through all three. `unpack` spreads a column over (B, T).

    Raises:
        ValueError: shapes differ, the padding is not on the right, or response_mask marks padding or column 0.
    """
    _check_batch(input_ids, attention_mask, response_mask)
    tokens = input_ids[response_mask.bool()]
    hidden, logits_at = states(model, input_ids, attention_mask, predicting(response_mask))
    # warping widens the whole chunk; where there is none, that is left to `token_log_probs`, piece by piece
    warped = (temperature, top_k, top_p) != (1.0, 0, 1.0) or mask is not None

    def score(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        chosen = tokens[index]
        rows = mask if mask is None or mask.dim() == 1 else mask[index]
        logits = logits_at(index)[:, :vocab_size]
        if warped:
            logits = warp_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, mask=rows, keep=chosen)
        return token_log_probs(logits, chosen, with_entropy=with_entropy)

    recompute = (
        torch.is_grad_enabled() and len(tokens) > TOKENS_PER_CHUNK
    )  # logits again in the backward, not kept for all
    chunks = torch.arange(len(tokens), device=tokens.device).split(TOKENS_PER_CHUNK)
    parts = [checkpoint(score, chunk, use_reentrant=False) if recompute else score(chunk) for chunk in chunks]
    log_probs = torch.cat([part[0] for part in parts])
    entropy = torch.cat([part[1] for part in parts if part[1] is not None]) if with_entropy else None
    return ResponseScores(log_probs, entropy, hidden)


def unpack(per_token: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """(N,) values of the response tokens in row-major order → (B, T), 0 elsewhere; differentiable.

    Raises:
        ValueError: N is not the number of response tokens.
    """
    chosen = response_mask.bool()
    if per_token.shape != (count := int(chosen.sum()),):
        raise ValueError(f"per_token has shape {tuple(per_token.shape)}; response_mask marks {count} tokens")
    return torch.zeros(chosen.shape, dtype=per_token.dtype, device=per_token.device).masked_scatter(chosen, per_token)


def predicting(response_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: where the states stand that predict the response tokens, each a column before its token.

    Column 0 of response_mask is 0, so that nothing wraps round.
    """
    return response_mask.bool().roll(-1, dims=1)


def states(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, where: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Hidden states (N, d) where `where` is True, and a function from indices into them to their logits.

    With gradient, in row-major order. Of a body without a head (a critic) the hidden states alone mean anything.

    Raises:
        ValueError: the model is no causal language model, see `verification.py`.
    """
    inner = unwrap(model)
    way = way_of(inner)
    module, head = _halves(inner)
    hidden, logits = read_texts(module, input_ids, attention_mask, where, **_options(way))
    if logits is None:
        return hidden, lambda index: _logits(inner, head, hidden[index], way)
    own = logits
    return hidden, lambda index: own[index]


def _fast(module: Any, length: int) -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(best_attention(module, length))
    stack.enter_context(upcast_linear(module))
    return stack


def _options(way: str) -> dict[str, Any]:
    """Of `read_texts`."""
    options: dict[str, dict[str, Any]] = {"fast": {"around": _fast}, "padded": {}, "alone": {"alone": True}}
    return options[way]


WAYS = ("fast", "padded", "alone")  # this package's attention and products; the library's; without padding
_ways: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # model -> which of WAYS it is read in


def way_of(module: Any, oracle: Oracle | None = None) -> str:
    """The fastest way of reading whole texts that gives this model's own results; tried once, and logged if slow.

    Raises:
        ValueError: the model is no causal language model, see `verification.py`.
    """
    if module not in _ways:
        with undisturbed(module):
            if module not in _ways:
                oracle = oracle or Oracle(module)
                _ways[module] = _find_way(module, oracle)
                learn_split(module, oracle.model)
    return _ways[module]


def _find_way(module: Any, oracle: Oracle) -> str:
    reasons: dict[str, str] = {}
    for way in WAYS[:-1]:
        try:
            reasons[way] = oracle.compare_texts(functools.partial(_all_logits, oracle.model, way))
        except Exception as error:  # whatever a model's own code raises
            reasons[way] = f"{type(error).__name__}: {error}"
        if not reasons[way]:
            return way
    told = "; ".join(f"{way}: {reason}" for way, reason in reasons.items())
    logger.warning("%s: scoring reads one text at a time, which is slower (%s)", type(module).__name__, told)
    return WAYS[-1]


def _all_logits(inner: Any, way: str, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    module, head = _halves(inner)
    hidden, logits = read_texts(module, input_ids, attention_mask, attention_mask.bool(), **_options(way))
    return _logits(inner, head, hidden, way) if logits is None else logits


def _halves(inner: Any) -> tuple[Any, Transform]:
    """What is run, and what makes logits of its hidden states; nothing does if it makes them itself or is a body."""
    halves = None if is_body(inner) else split(inner)
    return (inner, lambda hidden: hidden) if halves is None else (halves.body, halves.head)


def _logits(inner: nn.Module, head: Transform, hidden: torch.Tensor, way: str) -> torch.Tensor:
    with upcast_linear(inner) if way == "fast" else nullcontext():
        return head(hidden)


def _check_batch(input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor) -> None:
    if not input_ids.shape == attention_mask.shape == response_mask.shape or input_ids.dim() != 2:
        shapes = f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)}, {tuple(response_mask.shape)}"
        raise ValueError(f"input_ids, attention_mask, response_mask: expected one shape (B, T), got {shapes}")
    if (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
        raise ValueError("attention_mask: expected right padding (ones, then zeros), got a one after a zero")
    if (response_mask.bool() & ~attention_mask.bool()).any():
        raise ValueError("response_mask: marks positions that attention_mask calls padding")
    if response_mask[:, 0].any():
        raise ValueError("response_mask: column 0 is marked, but no state precedes the first token")
