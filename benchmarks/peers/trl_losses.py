"""TRL's own `GRPOTrainer._compute_loss` and `_get_per_token_logps_and_entropies` as functions of tensors.

What lives here: a trainer that has nothing but its settings, and what it reads of a batch. What does not: sampling and
rewards, which TRL does elsewhere, and the comparison (``gradients.py``, ``tests/integrations/test_trl_losses.py``).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gradient_rows import Sample
from textgen_env.agents.advantages import group_relative
from textgen_env.lm.token_batch import TokenBatch


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    max_length: int,
    kl_coef: float = 0.0,
    bias_correction: bool = False,
    **settings: Any,
) -> Tensor:
    """The scalar that TRL minimises.

    Args:
        log_probs, old_log_probs, ref_log_probs: (B, T), the first with gradient.
        advantages: (B,), as TRL makes them of the rewards of a group.
        mask: (B, T), 1 at response tokens.
        max_length: ``max_completion_length``.
        kl_coef: ``beta``.
        bias_correction: ``use_bias_correction_kl``, ratio·k3 instead of k3; off unless asked for, as in TRL.
        settings: others of its `GRPOConfig`, such as ``loss_type``.
    """
    from trl import GRPOTrainer

    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, device="cpu", reduce=lambda x, **_: x)
    defaults = {"loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2}
    trainer = SimpleNamespace(
        **{**defaults, **settings},
        beta=kl_coef,
        max_completion_length=max_length,
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(use_bias_correction_kl=bias_correction, delta=None),
        accelerator=accelerator,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
    )
    prompts = torch.ones(len(mask), 1, dtype=torch.long)
    inputs = {
        **dict.fromkeys(("prompt_ids", "prompt_mask"), prompts),
        **dict.fromkeys(("completion_ids", "completion_mask"), mask),
        "advantages": advantages,
        "old_per_token_logps": old_log_probs,
        "ref_per_token_logps": ref_log_probs,
        "num_items_in_batch": mask.sum(),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@torch.no_grad()
def token_log_probs(model: nn.Module, tokens: TokenBatch, temperature: float) -> Tensor:
    """(B, T) log π as TRL scores responses, which it divides by log π of its sampler; 0 elsewhere.

    Args:
        model: a causal LM; a copy of it gets TRL's head.
        tokens: prompts and responses.
        temperature: what TRL knows of the sampling.
    """
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    model = copy.deepcopy(model)
    add_fused_lm_head(model, temperature=temperature)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext, is_main_process=False))
    kept = tokens.input_ids.shape[1] - 1
    given = (model, tokens.input_ids, tokens.attention_mask, kept)
    log_probs = GRPOTrainer._get_per_token_logps_and_entropies(trainer, *given)[0]
    return torch.where(tokens.response_mask.bool(), torch.nn.functional.pad(log_probs, (1, 0)), 0.0)


def as_plugin(*, scale: bool = True, **settings: Any) -> Callable[[Sample], Tensor]:
    """`grpo_loss` on groups; ``scale``: rewards are divided by the group's deviation, TRL's default."""

    def loss(sample: Sample) -> Tensor:
        advantages = group_relative(sample.scores, sample.mask, sample.group_size, scale=scale)[:, 0]
        tensors = (sample.log_probs, sample.old_log_probs, sample.ref_log_probs, advantages, sample.mask)
        return grpo_loss(*tensors, max_length=2, kl_coef=sample.kl_coef, **settings)

    return loss
