"""Next-token logits of a batch of prefixes, at the cost of the tokens that are new since the last call.

`PrefixCache` is a pure function of its input with a memory: it compares each prefix with what that row held, reads
what differs and remembers the rest. What to read is decided here, and in which way; how is `slot_attention.py`'s
affair, or, for models it does not know, `fallback_cache.py`'s, or `log_probs.py`'s where nothing can be kept. Sampling
is in `sampling.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from textgen_env.lm.backbone import evaluating, split, unwrap, walk
from textgen_env.lm.fallback_cache import FallbackReader
from textgen_env.lm.log_probs import states, way_of
from textgen_env.lm.logits_memo import Memo
from textgen_env.lm.position_switches import fresh_frequencies, position_switches, text_limit
from textgen_env.lm.slot_attention import SlotStore, UnsupportedModel, read
from textgen_env.lm.upcast_linear import upcast_linear
from textgen_env.lm.verification import ROWS, Oracle, undisturbed

logger = logging.getLogger(__name__)

PATHS_IN_WORDS = {
    "slots": "slot attention",
    "library": "the library's own cache",
    "whole": "reading each prefix anew at every step",
}
PATHS = tuple(PATHS_IN_WORDS)  # from fast to faithful
TOLERANCES = {"slots": 1e-4, "library": 2e-5}  # what the library keeps may drift as a text grows (NemotronH)
TOKENS_AT_A_TIME = 1 << 12  # padded tokens in a forward pass that reads prefixes anew; bounds memory

_eligible: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # model -> slot attention gives its own results
_fallback: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # model -> which path does, slots left aside


class PrefixCache:
    """Rows of prefixes whose keys and values are kept between calls.

    The result never depends on what was asked before: a row may restart, jump, shrink or rest, and the parameters may
    change in between (an optimiser step, `load_state_dict`, a parameter exchanged: each empties the cache). Changes
    that bypass torch's version counters without moving the data (`p.data.add_(…)`, numpy views) need `invalidate()`.
    Logits come from the model in evaluation mode, whatever mode it is in. A row that begins as another one does takes
    over its keys and values (slot attention alone), so that the prompt of a group, or what branches share, is read
    once.

    A prefix is read in the first of three ways that gives the model's own results (see `verification.py`): slot
    attention, the library's cache, or all of it anew at every step. Where the position encoding depends on the length
    of the whole text, prefixes on different sides of a switch are read apart, and one that crosses it is read anew.

    Args:
        model: a causal LM of transformers, or one wrapped by peft.
        rows: how many prefixes are held.
        vocab_size: logits columns that are tokens; the rest is cut off. None keeps all.
        context: entered around each use of the model, e.g. `model.disable_adapter` for the reference policy of a LoRA
            model.
        fast: False leaves the work to the library's own cache.
        path: one of `PATHS`, whether it fits the model or not; None finds out.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: int,
        *,
        vocab_size: int | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        fast: bool = True,
        path: str | None = None,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        self.model, self.rows, self.vocab_size = model, rows, vocab_size
        self._context = context
        self._inner = unwrap(model)
        self._limit = text_limit(self._inner)
        self._switches = position_switches(self._inner.config)
        self._fast, self._path = fast, path
        self._signature: object = None
        self.invalidate()

    def invalidate(self) -> None:
        """Forget everything; the memory is given back."""
        self._store = SlotStore(self.rows)
        self._copies: dict[int, torch.Tensor] = {}  # weights widened for decoding, see `upcast_linear.py`
        self._library: dict[int, FallbackReader] | None = None  # one for each side of a switch
        self._tokens = np.zeros((self.rows, 0), dtype=np.int64)
        self._held = np.zeros(self.rows, dtype=np.int64)  # tokens of each row whose keys and values are stored
        self._memo = Memo(self.rows)
        adapters = [module for module in self.model.modules() if hasattr(module, "_disable_adapters")]
        self._adapters = list({type(module): module for module in adapters}.values())  # those of a kind switch together

    def next_logits(self, input_ids: Any, lengths: Any, rows: Any = None) -> torch.Tensor:
        """Raw logits (n, vocab_size) float32 of the token after each prefix; see `next_logits_and_hidden`."""
        return self.next_logits_and_hidden(input_ids, lengths, rows)[0]

    def next_logits_and_hidden(
        self, input_ids: Any, lengths: Any, rows: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the token after each prefix, and the hidden states they come from.

        Args:
            input_ids: (n, L) integers, right-padded; array or tensor.
            lengths: (n,) real tokens of each, >= 1.
            rows: (n,) distinct rows of this cache that hold them; default the first n.

        Returns:
            logits (n, vocab_size) float32, neither tempered nor masked, and last hidden states (n, hidden) in the
            model's dtype, both without gradient. A prefix asked for again gets the remembered logits; they may be
            changed in place (the memory notices).

        Raises:
            ValueError: a shape is wrong, a row repeats or does not exist, a prefix is empty or longer than the model's
                positions; the model is no causal language model.
        """
        ids, lengths, rows = self._checked(input_ids, lengths, rows)
        with self._context(), torch.inference_mode(False), torch.no_grad():  # the memory counts versions
            if (signature := _signature(self.model, self._adapters)) != self._signature:
                self.invalidate()
                self._signature = signature
            starts = self._common_prefix(ids, lengths, rows)
            known = (starts == lengths) & (self._held[rows] == lengths) & self._memo.valid(rows)
            new = np.flatnonzero(~known)
            if len(new):
                self._read_once(ids[new], lengths[new], rows[new], np.minimum(starts, lengths - 1)[new])
            return self._memo.get(rows)

    def _read_once(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> None:
        """Read prefixes, but none that another row holds, or is to read in the same call."""
        path = self._path or path_of(self._inner, self._fast)
        if path != "slots" or self._switches or (lengths - starts <= 1).all():
            self._read(path, ids, lengths, rows, starts)
            return
        starts = self._take_over(ids, lengths, rows, starts)
        seen: set[bytes] = set()
        again = np.zeros(len(rows), dtype=bool)
        for place in np.flatnonzero(lengths - starts > 1):
            prefix = ids[place, : lengths[place]].tobytes()
            again[place] = prefix in seen
            seen.add(prefix)
        for part in (np.flatnonzero(~again), np.flatnonzero(again)):
            if len(part):
                given = ids[part, : lengths[part].max()], lengths[part], rows[part]
                self._read(path, *given, starts[part] if not again[part[0]] else self._take_over(*given, starts[part]))

    def _take_over(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Copy keys and values from the rows that hold most of these prefixes; how many tokens each row holds then."""
        asking = np.flatnonzero(lengths - starts > 1)  # for a single token there is nothing to save
        width = min(ids.shape[1], self._tokens.shape[1])
        usable = np.minimum(self._held, lengths[asking, None] - 1)  # (m, rows); one token is read, for its logits
        differs = (ids[asking, None, :width] != self._tokens[:, :width]) & (np.arange(width) < usable[..., None])
        shared = np.where(differs.any(axis=2), differs.argmax(axis=2), usable) if width else usable
        donors, found = shared.argmax(axis=1), shared.max(axis=1)
        gains = found > starts[asking]
        starts = starts.copy()
        if gains.any():
            targets, starts[asking[gains]] = rows[asking[gains]], found[gains]
            self._store.copy(donors[gains], targets, int(found[gains].max()))
            self._held[targets] = 0  # until they have been read; their columns are written
        return starts

    def _common_prefix(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How many leading tokens of each prefix its row already holds."""
        width = min(ids.shape[1], self._tokens.shape[1])
        shared = np.minimum(lengths, self._held[rows])
        if self._switches:  # what lies on the other side has other keys
            shared[self._switches.side(self._held[rows]) != self._switches.side(lengths)] = 0
        differs = (ids[:, :width] != self._tokens[rows, :width]) & (np.arange(width) < shared[:, None])
        return np.where(differs.any(axis=1), differs.argmax(axis=1), shared) if width else shared

    def _read(self, path: str, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> None:
        """Run the model on what is new and remember the outcome."""
        if self._tokens.shape[1] < ids.shape[1]:
            self._tokens = np.pad(self._tokens, ((0, 0), (0, ids.shape[1] - self._tokens.shape[1])))
        self._held[rows] = 0  # until the read has succeeded
        with evaluating(self._inner), upcast_linear(self._inner, self._copies):
            if path == "whole" or not self._switches:
                logits, hidden = self._read_side(path, 0, ids, lengths, rows, starts)
            else:
                logits, hidden = self._read_by_side(path, ids, lengths, rows, starts)
        self._tokens[rows, : ids.shape[1]] = ids
        self._held[rows] = lengths
        self._memo.put(rows, logits[:, : self.vocab_size].float(), hidden)

    def _read_by_side(
        self, path: str, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sides = np.where(self._switches.alone(lengths), -1, self._switches.side(lengths))
        members = [np.flatnonzero(sides == side) for side in np.unique(sides)]
        parts = [
            self._read_side(
                "whole" if sides[part[0]] < 0 else path,
                int(sides[part[0]]),
                ids[part, : lengths[part].max()],
                *(array[part] for array in (lengths, rows, starts)),
            )
            for part in members
        ]
        back = torch.from_numpy(np.concatenate(members).argsort())
        logits, hidden = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return logits[back.to(logits.device)], hidden[back.to(hidden.device)]

    def _read_side(
        self, path: str, side: int, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, V) and hidden states (n, d) of prefixes that may share a forward pass."""
        if path == "whole":
            return read_whole(self._inner, ids, lengths)
        halves = split(self._inner)
        with fresh_frequencies(self._inner, self._switches):
            if path == "library":
                self._library = {} if self._library is None else self._library
                reader = self._library.setdefault(side, FallbackReader(self._inner, halves))
                return reader.read(ids, lengths, rows, starts)
            if halves is None:
                raise UnsupportedModel("it cannot be taken apart into body and head")
            columns = np.arange(ids.shape[1])
            new = ids[(columns >= starts[:, None]) & (columns < lengths[:, None])]
            in_use = int(self._held.max())
            hidden = read(halves, self._inner.config, self._store, new, rows, starts, lengths - starts, in_use)
        return halves.head(hidden), hidden

    def _checked(self, input_ids: Any, lengths: Any, rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids, lengths = _integers(input_ids), _integers(lengths)
        rows = np.arange(len(lengths)) if rows is None else _integers(rows)
        if ids.ndim != 2 or lengths.shape != (len(ids),) or rows.shape != (len(ids),) or not len(ids):
            shapes = f"{ids.shape}, {lengths.shape}, {rows.shape}"
            raise ValueError(f"input_ids, lengths, rows: expected shapes (n, L), (n,), (n,) with n >= 1, got {shapes}")
        if rows.min() < 0 or rows.max() >= self.rows or len(np.unique(rows)) < len(rows):
            raise ValueError(f"rows: expected distinct numbers from 0 to {self.rows - 1}, got {rows.tolist()}")
        if lengths.min() < 1 or lengths.max() > ids.shape[1]:
            raise ValueError(
                f"lengths: expected numbers from 1 to {ids.shape[1]} (width of input_ids), got {lengths.tolist()}"
            )
        if self._limit is not None and lengths.max() > self._limit:
            raise ValueError(
                f"lengths: a prefix of {lengths.max()} tokens is longer than the {self._limit} positions of "
                f"{type(self._inner).__name__}; shorten prompts or responses"
            )
        return ids, lengths, rows


def _integers(values: Any) -> np.ndarray:
    return (values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)).astype(
        np.int64, copy=False
    )


def _signature(model: nn.Module, adapters: list[nn.Module]) -> object:
    """Changes when parameters are written, moved or exchanged, or adapters (a layer of each kind is given) switched."""
    parameters = [
        (parameter.data_ptr(), parameter._version)
        for module in walk(model)
        for parameter in module._parameters.values()
        if parameter is not None
    ]
    states = [
        (
            getattr(layer, "disable_adapters", None),
            *getattr(layer, "active_adapters", ()),
            getattr(layer, "merged", None),
        )
        for layer in adapters
    ]
    return parameters, states


def _note_fused_step(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Fused optimisers of torch write parameters without raising their versions; do it for them."""
    for group in optimiser.param_groups:
        if group.get("fused"):
            torch.autograd.graph.increment_version([p for p in group["params"] if p.grad is not None])


register_optimizer_step_post_hook(_note_fused_step)


def read_whole(inner: Any, ids: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Read right-padded prefixes (n, L) from the first token on: logits (n, V) and hidden states (n, d) at the last."""
    device = next(inner.parameters()).device
    logits, hidden = [], []
    for part in np.array_split(np.arange(len(ids)), -(-ids.size // TOKENS_AT_A_TIME)):
        if len(part):
            columns = np.arange(lengths[part].max())
            mask = (columns < lengths[part, None]).astype(np.int64)
            tensors = (ids[part][:, columns], mask, columns == lengths[part, None] - 1)
            found, logits_at = states(inner, *(torch.from_numpy(array).to(device) for array in tensors))
            logits.append(logits_at(torch.arange(len(found), device=device)))
            hidden.append(found)
    return torch.cat(logits), torch.cat(hidden)


def path_of(inner: Any, fast: bool = True) -> str:
    """The first of `PATHS` (fast=False: the second) that gives the model's own logits; tried once, logged if slow.

    Raises:
        ValueError: the model is no causal language model.
    """
    if fast and _eligible.get(inner):
        return "slots"
    if inner not in _fallback:
        with undisturbed(inner):
            if inner not in _fallback and not (fast and _eligible.get(inner)):
                return _find_path(inner, fast)
    return _fallback[inner]


def _find_path(inner: Any, fast: bool) -> str:
    oracle, reasons = Oracle(inner), []
    way_of(inner, oracle)  # while the oracle is at hand
    for path in PATHS[:-1] if fast else PATHS[1:-1]:
        reason = _why_not(oracle, path)
        if path == "slots":
            _eligible[inner] = not reason
        if not reason:
            break
        reasons.append(f"{PATHS_IN_WORDS[path]}: {reason}")
    else:
        path = "whole"
    if path != "slots":
        _fallback[inner] = path
    if reasons:
        told = (type(inner).__name__, PATHS_IN_WORDS[path], "; ".join(reasons))
        logger.warning("%s: decoding falls back to %s, which is slower (%s)", *told)
    return path


def _why_not(oracle: Oracle, path: str) -> str:
    """Why a path does not fit the model; empty if it does."""
    inner = oracle.model
    kinds = set(getattr(inner.config.get_text_config(), "layer_types", None) or ["full_attention"])
    exchangeable = getattr(inner, "_supports_attention_backend", False)
    if path == "slots" and (not exchangeable or kinds - {"full_attention", "sliding_attention"}):
        return f"layers {sorted(kinds)}, exchangeable attention: {exchangeable}"
    try:
        return oracle.compare_decoding(PrefixCache(inner, ROWS, path=path).next_logits, TOLERANCES[path])
    except Exception as error:  # whatever a model's own code raises
        return f"{type(error).__name__}: {error}"
