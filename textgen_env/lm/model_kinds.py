"""What kind of model a configuration describes, and how much text it takes: found out before any weights are read.

How a model is located and loaded is `loading.py`'s affair.
"""

from __future__ import annotations

import re
from typing import Any

import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

_NEEDED = "a causal (decoder-only) language model with its head is needed, such as GPT-2, Llama or Qwen"
_POSITIONS = re.compile(r"^wpe$|^(?!.*relative).*position")


def check_causal(config: Any, role: str, source: str) -> None:
    """Refuse what does not give the next token's distribution from the tokens before it.

    Args:
        config: of transformers.
        role, source: the argument's name and value, for messages.

    Raises:
        ValueError: an encoder–decoder, a model that looks ahead, embeddings alone, or a model of other things than
            text.
    """
    if fault := _looks_elsewhere(config) or _without_head(config, CAUSAL):
        raise ValueError(f"{role}: {source!r} {fault}; {_NEEDED}")


def check_live_causal(model: Any, role: str) -> None:
    """The same for a model in memory.

    Raises:
        TypeError: no model of transformers.
        ValueError: see `check_causal`.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"{role}: expected a transformers model, got {type(model).__name__}")
    fault = _looks_elsewhere(model.config)
    head: Any = getattr(model, "get_output_embeddings", None)
    if not fault and head is not None and head() is None:
        fault = "has no language-modelling head"
    if fault:
        raise ValueError(f"{role}: {type(model).__name__} {fault}; {_NEEDED}")


def check_classifier(config: Any, role: str, source: str) -> None:
    """Refuse what has no classification head.

    Raises:
        ValueError: it has none, by its configuration.
    """
    if fault := _without_head(config, CLASSIFIERS):
        raise ValueError(
            f"{role}: {source!r} {fault}; a sequence classifier or reward model is needed, such as a "
            "LlamaForSequenceClassification"
        )


def check_encoder(config: Any, role: str, source: str) -> None:
    """Refuse what does not give one hidden state per token from the text alone.

    Raises:
        ValueError: an encoder–decoder, or a model without a vocabulary.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{role}: {source!r} is an encoder–decoder ({_class(config)}); an encoder alone is needed")
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise ValueError(f"{role}: {source!r} reads no text ({_class(config)}); a text encoder is needed")


def _looks_elsewhere(config: Any) -> str:
    """Why a model does not only look at the tokens before; empty if it does."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return f"is an encoder–decoder ({_class(config)})"
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    ahead = (kind in MASKED or kind == "bert-generation") and not decoder
    ahead = ahead or (kind == "xlnet" and config.attn_type == "bi")
    text = config.get_text_config()
    ahead = (
        ahead or getattr(text, "use_bidirectional_attention", None) is True or getattr(text, "is_causal", 1) is False
    )
    return f"looks ahead ({_class(config)}; not causal)" if ahead else ""


def _without_head(config: Any, heads: Any) -> str:
    """Why a model has not the wanted head; empty if it has, or if its class is one that transformers does not know."""
    wanted = heads.get(config.model_type)
    if wanted is None:
        return f"is of a kind without the needed head ({_class(config)})"
    wanted = {wanted} if isinstance(wanted, str) else set(wanted)
    named = [name for name in config.architectures or () if hasattr(transformers, name)]
    if named and not wanted & set(named):
        if named[0].endswith("Model"):
            return f"holds a {named[0]} by its config.json, which has no head (embeddings only)"
        return f"holds a {named[0]} by its config.json, and model_type {config.model_type!r} needs {min(wanted)}"
    return ""


def _class(config: Any) -> str:
    return (getattr(config, "architectures", None) or [type(config).__name__])[0]


def position_limit(model: Any) -> int | None:
    """Tokens that a model can number, or None where there is no limit.

    Read from its configuration and from its tables of positions, some of which begin behind the padding's row (RoBERTa)
    or keep rows for other ends (OPT, BART).
    """
    limits = []
    configured = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(configured, int) and configured > 0:
        limits.append(configured)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name.rpartition(".")[2]):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - (getattr(module, "offset", 0) or reserved))
    return min(limits, default=None)
