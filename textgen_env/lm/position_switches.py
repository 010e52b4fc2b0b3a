"""Where the position encoding of a model depends on how long the whole text is.

LongRoPE (Phi-3) has two sets of frequencies and takes the longer one for *all* positions as soon as a forward pass
reaches past `original_max_position_embeddings`; dynamic NTK takes new frequencies for every length beyond
`max_position_embeddings`, and keeps them until a shorter text comes. A prefix has the encoding that it has alone, so
texts on different sides of a switch share neither a forward pass nor keys and values. What lives here: which lengths
may share, and putting dynamic frequencies back; reading such texts is up to `prefix_cache.py` and `whole_texts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from textgen_env.lm.backbone import walk
from textgen_env.lm.model_kinds import position_limit


class Switches(NamedTuple):
    """Lengths at which the encoding changes.

    Attributes:
        after: lengths up to each of these, ascending, share an encoding with each other and not with longer ones.
        every_after: each length beyond this one has an encoding of its own; None: there is no such length.
    """

    after: tuple[int, ...] = ()
    every_after: int | None = None

    def __bool__(self) -> bool:
        return bool(self.after) or self.every_after is not None

    def side(self, lengths: np.ndarray) -> np.ndarray:
        """(n,) lengths → (n,) numbers, equal where two prefixes may share a forward pass; above `after` for `alone`."""
        side = np.searchsorted(np.array(self.after, dtype=np.int64), lengths)
        return np.where(self.alone(lengths), len(self.after) + lengths, side)

    def alone(self, lengths: np.ndarray) -> np.ndarray:
        """(n,) bool: which lengths have an encoding that no other length has."""
        return lengths > self.every_after if self.every_after is not None else np.zeros(len(lengths), dtype=bool)

    def spans(self, width: int) -> list[tuple[int, int]]:
        """Split the lengths 1 … width into spans (low, high], each of one side."""
        ends = {end for end in self.after if end < width} | {width}
        if self.every_after is not None:
            ends |= set(range(self.every_after, width))
        ordered = sorted(ends)
        return list(zip([0, *ordered[:-1]], ordered, strict=True))


def position_switches(config: Any) -> Switches:
    """Read them from a configuration of transformers."""
    config = config.get_text_config()
    after: set[int] = set()
    every_after = None
    for rope in rope_settings(config):
        if switches_once(rope):
            after.add(int(rope["original_max_position_embeddings"]))
        elif "dynamic" in (rope.get("rope_type") or ""):
            every_after = int(config.max_position_embeddings)
    return Switches(tuple(sorted(after)), every_after)


def text_limit(model: Any) -> int | None:
    """Tokens of the longest text a model can read, or None; dynamic NTK stretches its positions as far as need be."""
    return None if position_switches(model.config).every_after is not None else position_limit(model)


@contextmanager
def fresh_frequencies(model: nn.Module, switches: Switches) -> Iterator[None]:
    """Inside the block a dynamic encoding knows nothing of texts read before; afterwards it is as it was."""
    if switches.every_after is None:
        yield
        return
    ropes: list[Any] = [module for module in walk(model) if hasattr(module, "max_seq_len_cached")]
    saved = [(rope, {name: getattr(rope, name) for name in _state_names(rope)}) for rope in ropes]
    try:
        for rope, state in saved:
            for name in state:
                if name.endswith("max_seq_len_cached"):
                    setattr(rope, name, rope.original_max_seq_len)
                elif name.endswith("inv_freq"):
                    original = getattr(rope, name.removesuffix("inv_freq") + "original_inv_freq", None)
                    setattr(rope, name, state[name] if original is None else original.to(state[name].device))
        yield
    finally:
        for rope, state in saved:
            for name in set(_state_names(rope)) - state.keys():  # made inside the block, one for a kind of layers
                delattr(rope, name)
            for name, value in state.items():
                setattr(rope, name, value)


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """The settings of the rotary encoding: one set, or one for each kind of layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    if not isinstance(rope, dict):
        return []
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def switches_once(rope: dict[str, Any]) -> bool:
    """Whether there is one encoding up to `original_max_position_embeddings` and another beyond."""
    return rope.get("rope_type") == "longrope" or "long_mscale" in rope


def _state_names(rope: nn.Module) -> list[str]:
    names = [*rope._buffers, *vars(rope)]
    ends = ("max_seq_len_cached", "inv_freq", "attention_scaling")
    return [name for name in names if name.endswith(ends) and not name.endswith("original_inv_freq")]
