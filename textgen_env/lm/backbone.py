"""A causal language model of transformers, taken apart: the body (hidden states) and the head (logits).

Applying the head only where logits are needed is most of what makes scoring and decoding cheap. Some models transform
the head's output once more (Gemma 2 caps it, Cohere and Granite scale it). What is returned here is checked against
the model's own forward; a model whose logits cannot be reproduced is not taken apart at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.utils import logging

Transform = Callable[[torch.Tensor], torch.Tensor]
HALF = (torch.bfloat16, torch.float16)


class SplitModel(NamedTuple):
    """The two halves; logits = head(body(…).last_hidden_state)."""

    body: nn.Module
    head: Transform


def unwrap(model: Any) -> Any:
    """The transformers model inside a peft wrapper (its adapters stay in place), or the model itself.

    Raises:
        ValueError: the wrapper prepends virtual tokens (prompt learning), which no one-token-per-column code can
            follow.
    """
    if not hasattr(model, "peft_config"):
        return model
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"model: {type(model).__name__} with prompt learning is not supported; use an adapter such as LoRA"
        )
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_names: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()  # model -> the transform that was found to fit


def split(model: nn.Module) -> SplitModel | None:
    """Take a model apart, or return None if body and head do not give its own logits.

    The comparison runs once per model, on four tokens.
    """
    inner = unwrap(model)
    body, linear = getattr(inner, "base_model", inner), inner.get_output_embeddings()
    if body is inner or linear is None:
        return None
    if inner not in _names:
        _names[inner] = _matching_transform(inner, body, linear)
    name = _names[inner]
    if name is None:
        return None
    if name == "plain":
        return SplitModel(body, linear)
    transform = _transforms(inner.config)[name]
    return SplitModel(body, lambda hidden: transform(linear(hidden)))


def learn_split(model: nn.Module, copied: nn.Module) -> None:
    """What was found out of a copy, with the same weights, holds for the model."""
    if copied in _names:
        _names[model] = _names[copied]


def _transforms(config: Any) -> dict[str, Transform]:
    """Candidates for what happens to the logits after the linear head; the names are those of the config's fields.

    "plain" comes last: where logits are small, a cap that exists is hardly visible in the comparison.
    """
    candidates: dict[str, Transform] = {}
    if cap := getattr(config, "final_logit_softcapping", None):
        candidates["final_logit_softcapping"] = lambda logits: torch.tanh(logits / cap) * cap
    if scale := getattr(config, "logit_scale", None):
        candidates["logit_scale"] = lambda logits: logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        candidates["logits_scaling"] = lambda logits: logits / divisor
    return candidates | {"plain": lambda logits: logits}


def _matching_transform(inner: Any, body: nn.Module, linear: nn.Module) -> str | None:
    device = next(inner.parameters()).device
    tokens = torch.arange(1, 5, device=device).unsqueeze(0) % inner.config.get_text_config().vocab_size
    with torch.no_grad(), evaluating(inner):
        own = inner(input_ids=tokens, use_cache=False).logits
        try:
            raw = linear(body(input_ids=tokens, use_cache=False).last_hidden_state)
        except Exception:  # what makes the logits does not fit the body (an adaptive softmax, a projection between)
            return None
        tolerance = 1e-2 if own.dtype in HALF else 1e-5
        for name, transform in _transforms(inner.config).items():
            ours = transform(raw)
            if ours.shape == own.shape and torch.allclose(ours.float(), own.float(), rtol=tolerance, atol=tolerance):
                return name
    return None


def walk(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, as `modules()` gives them but several times faster; shared ones come more than once."""
    stack: list[nn.Module | None] = [module]
    while stack:
        if (current := stack.pop()) is not None:
            yield current
            stack.extend(current._modules.values())


def checkpoints_activations(model: nn.Module) -> bool:
    """Whether backward passes compute activations anew: outside of any context that the forward pass was in."""
    return any(getattr(module, "gradient_checkpointing", False) for module in walk(model))


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence the bars of transformers inside the block: logs are full of them, and small models load in a moment."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside the block; modules that were training are set back at its end."""
    training = [module for module in walk(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
