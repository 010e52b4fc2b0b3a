"""Reading whole right-padded texts, with gradient and without memory: the forward pass behind scoring and recomputing.

Texts are read in a padded batch, or each alone and unpadded where a model cannot take padding (found out in
`log_probs.py`). Texts on different sides of a switch of the position encoding never share a forward pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from textgen_env.lm.position_switches import Switches, fresh_frequencies, position_switches

Around = Callable[[Any, int], AbstractContextManager[Any]]


def accepted(module: Any, **options: Any) -> dict[str, Any]:
    """Those of the options that the module's forward takes, by name or by `**kwargs`."""
    names = _parameters(module.__class__)
    return options if names is None else {name: value for name, value in options.items() if name in names}


@functools.cache
def _parameters(kind: Any) -> frozenset[str] | None:
    parameters = inspect.signature(kind.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def is_body(module: Any) -> bool:
    """Whether a module is a model without a head, or a part of one, that gives hidden states alone."""
    return getattr(module, "base_model", module) is module and module.get_output_embeddings() is None


def own_output(module: Any, input_ids: Tensor) -> Tensor:
    """What a model says of unpadded texts of one length (n, L), unaided: (n, L, V) logits, or states of a bare body."""
    with fresh_frequencies(module, position_switches(module.config)):
        output = module(input_ids=input_ids, **accepted(module, use_cache=False))
    result: Tensor = output.logits if getattr(output, "logits", None) is not None else output.last_hidden_state
    return result


def read_texts(
    module: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    where: Tensor,
    *,
    alone: bool = False,
    around: Around = lambda module, length: nullcontext(),
) -> tuple[Tensor, Tensor | None]:
    """Hidden states, and logits where the module makes any, at chosen places; each as its prefix alone would give it.

    Args:
        module: a causal LM of transformers, or the body of one.
        input_ids, attention_mask: (B, T), right-padded.
        where: (B, T) bool, N of them True.
        alone: read each text by itself and unpadded.
        around: entered around each forward pass of the module over texts of a length.

    Returns:
        (N, d) last hidden states and (N, V) logits or None, in row-major order.
    """
    switches = position_switches(module.config)
    if not alone and not switches:
        with around(module, input_ids.shape[1]):
            hidden, logits = _run(module, input_ids, attention_mask)
        return hidden[where], None if logits is None else logits[where]
    number = where.flatten().cumsum(0).view_as(where) - 1  # of each chosen place
    parts, order = [], []
    for rows, low, high in _jobs(attention_mask, where, switches, alone):
        mask = None if alone else attention_mask[rows, :high]
        with around(module, high), fresh_frequencies(module, switches):
            hidden, logits = _run(module, input_ids[rows, :high], mask)
        chosen = where[rows, :high] & (torch.arange(high, device=where.device) >= low)
        parts.append((hidden[chosen], None if logits is None else logits[chosen]))
        order.append(number[rows, :high][chosen])
    back = torch.cat(order).argsort()
    all_logits = [logits for _, logits in parts if logits is not None]
    return torch.cat([hidden for hidden, _ in parts])[back], torch.cat(all_logits)[back] if all_logits else None


def _jobs(attention_mask: Tensor, where: Tensor, switches: Switches, alone: bool) -> list[tuple[Tensor, int, int]]:
    """Forward passes (rows, low, high): read these rows up to column `high`, and use what stands from `low` on."""
    lengths = attention_mask.sum(dim=1)
    jobs: list[tuple[Tensor, int, int]] = []
    for low, high in switches.spans(where.shape[1]):
        rows = where[:, low:high].any(dim=1).nonzero().squeeze(1)
        for batch in rows.split(1 if alone else max(1, len(rows))):
            if len(batch):
                jobs.append((batch, low, min(high, int(lengths[batch].max()))))
    return jobs or [(lengths.argmax().view(1), 0, 1)]


def _run(module: Any, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    options: dict[str, Any] = {} if attention_mask is None else {"attention_mask": attention_mask}
    if not is_body(module):
        options["output_hidden_states"] = True
    return states_and_logits(module, module(input_ids=input_ids, **accepted(module, use_cache=False, **options)))


def states_and_logits(module: Any, output: Any) -> tuple[Tensor, Tensor | None]:
    """(B, T, d) last hidden states and (B, T, V) logits, None for a body, out of what a forward pass returned.

    Raises:
        ValueError: a language model does not show its hidden states.
    """
    logits = getattr(output, "logits", None)
    if logits is None:
        return output.last_hidden_state, None
    if not getattr(output, "hidden_states", None):
        raise ValueError(f"model: {type(module).__name__} does not return its hidden states")
    return output.hidden_states[-1], logits
