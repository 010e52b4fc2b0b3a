"""Attention of short texts in half precision on a CPU, with gradient: two matrix products for all queries of a group.

The fused kernel is slow there: forward and backward of 16 texts of 42 tokens take it four times as long, of 128 tokens
twice. Used while scoring (`log_probs.py`); decoding has its own (`slot_attention.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from textgen_env.lm.backbone import HALF, checkpoints_activations
from textgen_env.lm.slot_attention import attention_of

ATTENTION = "textgen_grouped"
LONGEST = 256  # tokens; the scores of all queries are in memory at once, and the fused kernel catches up
_HARMLESS = {"position_ids", "use_cache", "is_causal", "output_attentions", "sliding_window"}


def gqa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers: query (B, heads, T, head_dim) → (B, T, heads, head_dim).

    The mask is the additive one, with any sliding window in it. What this function does not know is left to the
    library's own.
    """
    unknown = [name for name, given in kwargs.items() if name not in _HARMLESS and given is not None]
    if unknown or attention_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    length = query.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = (query * scaling).unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # (B, kv_heads, grouped·T, head_dim)
    scores = (grouped @ key.transpose(2, 3)).unflatten(2, (-1, length)) + attention_mask.unsqueeze(2)
    weights = scores.softmax(dim=-1).flatten(2, 3)  # in float32 inside, whatever the dtype outside
    if dropout:
        weights = nn.functional.dropout(weights, p=dropout)
    attended = (weights @ value).unflatten(2, (-1, length)).flatten(1, 2)  # (B, heads, T, head_dim)
    return attended.transpose(1, 2), None


AttentionInterface.register(ATTENTION, gqa_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def best_attention(inner: Any, length: int) -> AbstractContextManager[None]:
    """Within it the model attends in the faster of the two ways to texts of this length."""
    config = inner.config
    suits = (
        inner.device.type == "cpu"
        and inner.dtype in HALF
        and length <= LONGEST
        and config._attn_implementation == "sdpa"
        and getattr(inner, "_supports_attention_backend", False)
        and not checkpoints_activations(inner)
    )
    return attention_of(config, ATTENTION) if suits else nullcontext()
