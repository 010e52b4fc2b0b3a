"""Which weights of a model learn: all of them, those above the lowest blocks, or low-rank adapters (LoRA).

What lives here: the choice, made once for every trainer, and saving what came of it. What does not: how they learn
(optimisers, losses), and the forward pass, which is `log_probs.py`'s.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from textgen_env.lm.backbone import unwrap, without_progress_bars


def trainable(
    model: nn.Module,
    *,
    lora_rank: int = 0,
    lora_alpha: int = 32,
    frozen_layers: int = 0,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make exactly the chosen weights of a model ask for gradients.

    LoRA (Hu et al. 2021, arXiv:2106.09685) puts a low-rank update beside every linear layer except the output head,
    h = W·x + (alpha / rank)·B·A·x, of which only A (rank, in) and B (out, rank) learn. B starts at zero, so that the
    adapted model starts as the model; A as `nn.Linear` would start it.

    Args:
        model: a causal language model of transformers, or its body; changed in place.
        lora_rank: of the adapters; 0 adds none and trains the weights themselves.
        lora_alpha: scale of the adapters' update.
        frozen_layers: blocks, from the input up, that do not learn, their adapters included; any number above 0 freezes
            the embeddings too (and an output head that is tied to them).
        generator: source of A; None takes seed 0 on the CPU. Torch's global generator is left alone.

    Returns:
        The model itself, or around it a peft model with the adapter "default".

    Raises:
        ValueError: `lora_rank`, `lora_alpha` or `frozen_layers` is out of range; the model is then unchanged.
        ImportError: `lora_rank` without peft.
    """
    blocks = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    if not 0 <= frozen_layers <= len(blocks):
        raise ValueError(f"frozen_layers={frozen_layers} must be from 0 to the {len(blocks)} blocks of the model")
    if lora_rank < 0:
        raise ValueError(f"lora_rank={lora_rank} must be at least 0 (0: no adapters)")
    if lora_rank and not lora_alpha > 0:
        raise ValueError(
            f"lora_alpha={lora_alpha} must be above 0; the adapters' update is lora_alpha / lora_rank · B·A"
        )
    if lora_rank:
        model = _with_lora(model, lora_rank, lora_alpha, generator or torch.Generator().manual_seed(0))
    else:
        model.requires_grad_(True)
    if frozen_layers:
        for module in (unwrap(model).get_input_embeddings(), *blocks[:frozen_layers]):
            module.requires_grad_(False)
    return model


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers' ``from_pretrained`` loads, with any adapters merged into the weights."""
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _with_lora(model: Any, rank: int, alpha: int, generator: torch.Generator) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model  # slow to import, and needed by few
    except ImportError as error:
        message = f"lora_rank={rank} needs peft ({error}): pip install 'textgen_env[agents]'"
        raise ImportError(message, name=error.name) from error

    kind = "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None  # a body generates nothing
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type=kind)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; what it drew is replaced below
        adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            start = torch.empty(parameter.shape, device=generator.device)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(start)
    return adapted
