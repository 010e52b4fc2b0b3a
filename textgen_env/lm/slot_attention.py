"""Attention of a batch of slots that are at different places: the fast half of `prefix_cache.py`.

All tokens that are to be read in a call, one for each slot that decodes and many for one that starts, form ONE stream
of shape (1, T), so that the model's own code runs unchanged and pays for no padding. Only its attention is ours: a
function registered with transformers under the name `ATTENTION` writes keys and values into each slot's row and
attends to that row alone. Grouped queries run as two batched matrix products, which at query length 1 is several times
faster on a CPU than the fused kernel.

Which tokens are new, and what to do with models this file does not know, is decided in `prefix_cache.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textgen_env.lm.backbone import SplitModel

ATTENTION = "textgen_slots"
PLAN = "textgen_slot_plan"  # the keyword under which the plan travels through the model to its attention layers
MAX_SCORES = 1 << 24  # attention scores computed at a time for starting slots; bounds memory, not results
COLUMNS = 64  # row capacities are multiples of this
_HARMLESS = {"position_ids", "use_cache", "is_causal", "output_attentions", "dropout"}
_switch = threading.RLock()


class UnsupportedModel(Exception):
    """The model hands its attention something that this file does not know."""


@dataclass
class Group:
    """Slots of one call whose queries are computed together, padded to Q queries each.

    Attributes:
        queries: (m, Q) int64, places in the stream; repeats its last entry where a slot has fewer than Q.
        positions: (m, Q) int64, the column of each query.
        rows: the slots' rows, a slice where they lie side by side.
        columns: how many columns to read; at least one more than the largest position.
        places: for rows read as a slice with gaps between the slots, (m,) places inside it; None: no gaps.
        take: what picks the stream's tokens from the flattened (m·Q) queries.
        stream: (k,) places in the stream that `take` fills.
        is_stream: the queries are the whole stream in its order, one for each slot.
    """

    queries: torch.Tensor
    positions: torch.Tensor
    rows: slice | torch.Tensor
    columns: int
    places: torch.Tensor | None
    take: torch.Tensor
    stream: torch.Tensor
    is_stream: bool
    _bias: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """(rows, 1, 1, Q, columns): 0 where a query may look, -inf elsewhere; made once for all layers."""
        if (window, dtype) not in self._bias:
            column = torch.arange(self.columns, device=self.positions.device)
            seen = column <= self.positions.unsqueeze(-1)
            if window is not None:
                seen &= column > self.positions.unsqueeze(-1) - window
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            if self.places is not None and isinstance(self.rows, slice):  # rows in between see everything, to no effect
                bias = bias.new_zeros(self.rows.stop - self.rows.start, *bias.shape[1:]).index_copy_(
                    0, self.places, bias
                )
            self._bias[window, dtype] = bias[:, None, None]
        return self._bias[window, dtype]


@dataclass
class Plan:
    """Where each token of the stream belongs, and in which groups the queries are computed."""

    store: SlotStore
    rows: torch.Tensor  # (T,)
    positions: torch.Tensor  # (T,)
    groups: list[Group]


class SlotStore:
    """Keys and values of n rows for each layer; column = position.

    Keys lie transposed, (n, kv_heads, head_dim, capacity), values as (n, kv_heads, capacity, head_dim): both products
    of decoding then read memory in order. Rows are read over their whole capacity, masked, because slices of them would
    have to be copied together for the matrix product; so the capacity closely follows what is in use.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.capacity = 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fit(self, columns: int) -> None:
        """Make the capacity fit this many columns in use: the next multiple of COLUMNS; far too much is given back."""
        wanted = -(-columns // COLUMNS) * COLUMNS
        if self.capacity // 2 < wanted <= self.capacity:
            return
        kept = min(wanted, self.capacity)
        for index, (old_keys, old_values) in self.layers.items():
            keys = old_keys.new_zeros(*old_keys.shape[:3], wanted)
            values = old_values.new_zeros(*old_values.shape[:2], wanted, old_values.shape[3])
            keys[..., :kept], values[:, :, :kept] = old_keys[..., :kept], old_values[:, :, :kept]
            self.layers[index] = keys, values
        self.capacity = wanted

    @torch.inference_mode()
    def copy(self, sources: np.ndarray, targets: np.ndarray, columns: int) -> None:
        """Copy the first columns of some rows to others; all sources are read before any target is written."""
        for keys, values in self.layers.values():
            keys[targets, ..., :columns] = keys[sources, ..., :columns]
            values[targets, :, :columns] = values[sources, :, :columns]

    def write(
        self, layer: int, plan: Plan, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the stream's keys and values, each (1, kv_heads, T, head_dim), in their places; return all rows."""
        if layer not in self.layers:  # zeros: columns not yet written are read with weight 0, and 0·NaN would be NaN
            shape = (self.rows, key.shape[1])
            self.layers[layer] = (
                key.new_zeros(*shape, key.shape[3], self.capacity),
                value.new_zeros(*shape, self.capacity, value.shape[3]),
            )
        keys, values = self.layers[layer]
        keys.permute(0, 3, 1, 2)[plan.rows, plan.positions] = key[0].transpose(0, 1)
        values.transpose(1, 2)[plan.rows, plan.positions] = value[0].transpose(0, 1)
        return keys, values


def slot_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of transformers: query (1, heads, T, head_dim) → (1, T, heads, head_dim).

    A call without a plan comes from elsewhere (another thread using the same model) and gets the library's own
    attention.
    """
    plan: Plan | None = kwargs.pop(PLAN, None)
    if plan is None:
        kwargs |= {"sliding_window": sliding_window, "softcap": softcap}
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    unknown = sorted(name for name, given in kwargs.items() if name not in _HARMLESS and given is not None)
    if unknown or kwargs.get("is_causal") is False or not hasattr(module, "layer_idx"):
        raise UnsupportedModel(f"attention of {type(module).__name__} asks for {unknown or 'no causal layer index'}")
    if attention_mask is not None and attention_mask.numel() > 1:  # not the one that `read` gave to the model
        raise UnsupportedModel(f"{type(module).__name__} makes a mask or bias of its own")
    keys, values = plan.store.write(module.layer_idx, plan, key, value)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    stream = (query[0] * scaling).transpose(0, 1)  # (T, heads, head_dim)
    if len(plan.groups) == 1 and plan.groups[0].is_stream:  # all slots decode: nothing to sort
        return _attend(plan.groups[0], stream.unsqueeze(1), keys, values, sliding_window, softcap).transpose(0, 1), None
    output = torch.empty(*stream.shape[:2], values.shape[-1], dtype=query.dtype, device=query.device)
    for group in plan.groups:
        attended = _attend(group, stream[group.queries], keys, values, sliding_window, softcap)
        output[group.stream] = attended.flatten(0, 1)[group.take]
    return output.unsqueeze(0), None


def _attend(
    group: Group,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Scaled queries of a group, (m, Q, heads, head_dim) → the same shape, attended."""
    m, q, heads, _ = query.shape
    kv_heads = keys.shape[1]
    key = keys[group.rows, ..., : group.columns]  # (rows, kv_heads, head_dim, columns)
    value = values[group.rows, :, : group.columns]  # (rows, kv_heads, columns, head_dim)
    query = (
        query.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    )  # (m, kv_heads, grouped·Q, head_dim)
    if group.places is not None:
        query = query.new_zeros(len(key), *query.shape[1:]).index_copy_(0, group.places, query)
    scores = torch.matmul(query, key)  # (rows, kv_heads, grouped·Q, columns)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.unflatten(2, (-1, q)) + group.bias(window, query.dtype)
    weights = scores.softmax(dim=-1).flatten(2, 3)  # in float32 inside, whatever the dtype outside
    attended = torch.matmul(weights, value)  # (rows, kv_heads, grouped·Q, head_dim)
    if group.places is not None:
        attended = attended[group.places]
    return attended.unflatten(2, (-1, q)).permute(0, 3, 1, 2, 4).reshape(m, q, heads, -1)


AttentionInterface.register(ATTENTION, slot_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # for calls without a plan; ours hand over a finished mask


@contextmanager
def attention_of(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Let the model attend by `name` inside the block, one thread at a time; afterwards all is as before."""
    with _switch:
        before = config._attn_implementation
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = before


def read(
    halves: SplitModel,
    config: PretrainedConfig,
    store: SlotStore,
    tokens: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    in_use: int = 0,
) -> torch.Tensor:
    """Read new tokens into their rows.

    Args:
        tokens: (T,) the new tokens, slot after slot.
        rows: (n,) distinct rows, starts: (n,) the column of each one's first new token, counts: (n,) how many follow.
        in_use: columns that any row of the store, read now or not, still needs.

    Returns:
        (n, hidden) last hidden states, at each row's last token.

    Raises:
        UnsupportedModel: the model's attention asks for something unknown.
    """
    device = next(halves.body.parameters()).device
    offsets = np.cumsum(counts) - counts
    positions = np.arange(len(tokens)) - np.repeat(offsets - starts, counts)
    with torch.inference_mode(), attention_of(config, ATTENTION):
        store.fit(max(in_use, int(positions.max()) + 1))
        plan = Plan(
            store,
            torch.from_numpy(np.repeat(rows, counts)).to(device),
            torch.from_numpy(positions).to(device),
            [_group(part, rows, starts, counts, offsets, store.capacity, device) for part in _parts(starts, counts)],
        )
        output = halves.body(
            input_ids=torch.from_numpy(tokens).to(device).unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # 4-d masks pass: none is built
            use_cache=False,
            **{PLAN: plan},
        )
        last = output.last_hidden_state[0, torch.from_numpy(offsets + counts - 1).to(device)]
    return last.clone()  # a normal tensor, which autograd may use


def _parts(starts: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Split slots into groups of similar query counts (within a factor of 2), none with more scores than MAX_SCORES."""
    parts: list[np.ndarray] = []
    sizes = np.ceil(np.log2(counts)).astype(int)
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        scores = counts[members].max() * (starts + counts)[members].max()
        parts += np.array_split(members, -(-len(members) * scores // MAX_SCORES)) if size else [members]
    return parts


def _group(
    members: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    offsets: np.ndarray,
    capacity: int,
    device: torch.device,
) -> Group:
    members = members[np.argsort(rows[members])]
    rows, starts, counts, offsets = rows[members], starts[members], counts[members], offsets[members]
    most = int(counts.max())
    step = np.minimum(np.arange(most), counts[:, None] - 1)  # (m, Q)
    real = np.flatnonzero((np.arange(most) < counts[:, None]).ravel())
    queries = offsets[:, None] + step
    low, high = int(rows[0]), int(rows[-1]) + 1
    dense = high - low <= 2 * len(rows)  # reading a few rows too many is cheaper than copying the right ones together
    gaps = dense and high - low > len(rows)
    columns = int((starts + counts).max())

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Group(
        queries=tensor(queries),
        positions=tensor(starts[:, None] + step),
        rows=slice(low, high) if dense else tensor(rows),
        columns=capacity if dense and 2 * columns > capacity else columns,
        places=tensor(rows - low) if gaps else None,
        take=tensor(real),
        stream=tensor(queries.ravel()[real]),
        is_stream=most == 1 and bool((queries[:, 0] == np.arange(len(queries))).all()),
    )
