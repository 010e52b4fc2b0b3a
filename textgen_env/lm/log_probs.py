"""Teacher-forced log-probabilities of tokens that are already written, with gradient.

The language-model head is applied only where it is asked for, so that no (B, T, V) tensor ever exists. Sampling,
caching and loading live elsewhere (`sampling.py`, `prefix_cache.py`, `language_model.py`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from textgen_env.lm.backbone import Transform, learn_split, split, unwrap
from textgen_env.lm.gqa_attention import best_attention
from textgen_env.lm.sampling import PLAIN, SamplingParams, warp_logits
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.lm.token_log_probs import TokenScores, token_scores
from textgen_env.lm.upcast_linear import upcast_linear
from textgen_env.lm.verification import Oracle, undisturbed
from textgen_env.lm.whole_texts import is_body, read_texts

logger = logging.getLogger(__name__)

TOKENS_PER_CHUNK = 1024  # rows of the head's output that are in memory at a time: 200 MB in float32 at 49k tokens


LogitsAt: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Indices (n,) into some tokens → raw logits (n, V) of the states before them."""
Readout: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""What reads hidden states, such as a value head: (N, d) in the model's dtype → (N,)."""


class ResponseScores(NamedTuple):
    """What `response_log_probs` knows of the response tokens: all (B, T) float32, 0 elsewhere."""

    log_probs: torch.Tensor  # log π(a_t | s_t)
    entropy: torch.Tensor | None  # H(π(· | s_t)), nats; if asked for
    readout: torch.Tensor | None  # what `readout` made of the hidden state at s_t, the position *before* the token
    kl: torch.Tensor | None = None  # KL(π(· | s_t) ‖ π_ref(· | s_t)), nats, over the whole vocabulary; if asked for
    ref_log_probs: torch.Tensor | None = None  # log π_ref(a_t | s_t), a constant; likewise


def response_log_probs(
    model: nn.Module,
    batch: TokenBatch,
    sampling: SamplingParams = PLAIN,
    *,
    vocab_size: int | None = None,
    mask: torch.Tensor | None = None,
    with_entropy: bool = False,
    readout: Readout | None = None,
    ref_logits: LogitsAt | None = None,
) -> ResponseScores:
    """Log-probability of every response token given all tokens before it.

    One forward of the backbone; the head is applied only where it is needed.

    Args:
        model: a causal LM of transformers, or one wrapped by peft.
        batch: the texts, and which tokens of them are the responses.
        sampling: what the tokens were sampled with.
        vocab_size: number of actions; logits beyond it (padding rows of the embedding) do not exist for the softmax.
            None: all.
        mask: bool (V,), or (N, V) of the N response tokens, row by row: what was allowed.
        with_entropy: also return the entropy of the warped distribution.
        readout: also read the hidden states with this.
        ref_logits: of a reference at the N response tokens (`logits_at`): also return the exact KL to it. It shares
            mask and temperature; outside of its own top-k or nucleus the KL would be infinite.

    Returns:
        `ResponseScores`; gradients flow through all but the reference.
    """
    tokens = batch.input_ids[batch.response_mask.bool()]  # (N,), row by row, as all that follows
    hidden, logits_at = states(model, batch.input_ids, batch.attention_mask, predicting(batch.response_mask))
    # warping widens the whole chunk; where there is none, that is left to `token_scores`, piece by piece
    warped = sampling != PLAIN or mask is not None

    def score(index: torch.Tensor) -> TokenScores:
        chosen = tokens[index]
        rows = mask if mask is None or mask.dim() == 1 else mask[index]
        logits = logits_at(index)[:, :vocab_size]
        ref = None if ref_logits is None else ref_logits(index)[:, :vocab_size]
        if warped:
            logits = warp_logits(logits, sampling, mask=rows, keep=chosen)
            ref = ref if ref is None else warp_logits(ref, sampling.of_reference, mask=rows)
        return token_scores(logits, chosen, ref, with_entropy=with_entropy)

    recompute = (
        torch.is_grad_enabled() and len(tokens) > TOKENS_PER_CHUNK
    )  # logits again in the backward, not kept for all
    chunks = torch.arange(len(tokens), device=tokens.device).split(TOKENS_PER_CHUNK)
    parts = [checkpoint(score, chunk, use_reentrant=False) if recompute else score(chunk) for chunk in chunks]
    columns = zip(*parts, strict=True)
    log_probs, *others = (None if x[0] is None else unpack(torch.cat(x), batch.response_mask) for x in columns)
    assert log_probs is not None
    entropy, kl, ref_log_probs = others
    read = None if readout is None else unpack(readout(hidden), batch.response_mask)
    return ResponseScores(log_probs, entropy, read, kl, ref_log_probs)


@torch.no_grad()
def logits_at(model: nn.Module, batch: TokenBatch) -> LogitsAt:
    """The ``ref_logits`` of `response_log_probs`: the body is run now, the head where logits are asked for."""
    _, found = states(model, batch.input_ids, batch.attention_mask, predicting(batch.response_mask))
    return torch.no_grad()(found)


def has_head(model: nn.Module) -> bool:
    """Whether `logits_at` keeps states, from which logits are made when asked for, and not the logits of all tokens."""
    inner = unwrap(model)
    return not is_body(inner) and split(inner) is not None


def read_states(model: nn.Module, batch: TokenBatch, readout: Readout) -> torch.Tensor:
    """What `readout` makes of the hidden states before the response tokens, (B, T), 0 elsewhere.

    Args:
        model: a causal LM of transformers, or the body of one (a critic).
        batch: the texts.
        readout: such as a value head.
    """
    hidden, _ = states(model, batch.input_ids, batch.attention_mask, predicting(batch.response_mask))
    return unpack(readout(hidden), batch.response_mask)


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
