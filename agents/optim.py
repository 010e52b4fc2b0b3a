"""Optimising half-precision weights without losing small updates.

What lives here: `MasterAdamW`, AdamW over fp32 master copies of the trainable parameters, with gradient accumulation
and clipping in fp32, and the warm-up/decay factor. What does not: losses and the training loop (``ppo.py``).

Why: bf16 has 8 bits of mantissa, so w + Δ rounds back to w as soon as |Δ| < |w|/256; at a learning rate of 1e-5 almost
every step would be lost. Steps are therefore taken in fp32 and rounded into the bf16 weight afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019) on fp32 masters of parameters of any floating dtype.

    Usage: ``backward()`` → `accumulate()` as often as there are micro-batches, then `step()`.

    Args:
        groups: one mapping per parameter group: ``params``, and ``lr`` (the peak learning rate of the group).
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, on matrices alone (not on biases or norms).
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.params: list[nn.Parameter] = []
        self.masters: list[Tensor] = []
        master_groups = []
        for group in groups:
            params = list(group["params"])
            # an fp32 parameter is its own master
            masters = [p.data if p.dtype == torch.float32 else p.detach().float() for p in params]
            self.params += params
            self.masters += masters
            for decayed, decay in ((True, weight_decay), (False, 0.0)):
                chosen = [m for m in masters if (m.dim() >= 2) is decayed]
                if chosen:
                    lr = group["lr"]
                    master_groups.append({"params": chosen, "lr": lr, "peak_lr": lr, "weight_decay": decay})
        if not self.params:
            raise ValueError("groups holds no trainable parameter; unfreeze at least one")
        # fused: one pass over the memory of each tensor instead of ten, which on a CPU is five times faster
        self.adamw = torch.optim.AdamW(master_groups, betas=betas, eps=eps, fused=True)

    def accumulate(self) -> None:
        """Add the gradients of the parameters to those of the masters, in fp32."""
        for param, master in zip(self.params, self.masters, strict=True):
            if param.grad is None:
                continue
            if param.dtype == torch.float32:
                master.grad = param.grad  # the next backward pass itself goes on adding to it
                continue
            master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
            param.grad = None

    def clip(self, max_norm: float) -> float:
        """Scale the accumulated gradients to a global norm of at most ``max_norm``; returns the norm before."""
        return float(nn.utils.clip_grad_norm_(self.masters, max_norm))

    @torch.no_grad()
    def step(self, lr_factor: float = 1.0) -> None:
        """One AdamW step at ``lr_factor`` × the peak learning rates; writes the masters into the parameters."""
        for group in self.adamw.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        self.adamw.step()
        self.discard()
        self._publish()

    def discard(self) -> None:
        """Forget the accumulated gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for param in self.params:
            param.grad = None

    @torch.no_grad()
    def _publish(self) -> None:
        for param, master in zip(self.params, self.masters, strict=True):
            # copy_ also where the storage is shared: it raises the parameter's version, by which caches notice
            param.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments, as nested dicts of tensors and numbers keyed by strings."""
        moments = {str(i): dict(state) for i, state in self.adamw.state_dict()["state"].items()}
        return {"masters": {str(i): m for i, m in enumerate(self.masters)}, "moments": moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masters (and with them the parameters) and moments.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        masters = state["masters"]
        shapes = [tuple(masters[str(i)].shape) for i in range(len(masters))]
        if shapes != [tuple(m.shape) for m in self.masters]:
            raise ValueError(
                f"the state holds {len(shapes)} tensors that do not fit the {len(self.masters)} trainable ones"
            )
        for i, master in enumerate(self.masters):
            master.copy_(masters[str(i)])
        moments = {int(i): dict(entry) for i, entry in state["moments"].items()}
        self.adamw.load_state_dict({"state": moments, "param_groups": self.adamw.state_dict()["param_groups"]})
        self._publish()


def lr_factor(step: int, total: int, warmup: int = 0, decay: str = "constant") -> float:
    """Share of the peak learning rate at ``step`` (from 0): linear warm-up, then "constant", "linear" or "cosine".

    Raises:
        ValueError: an unknown ``decay``.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if decay == "constant":
        return 1.0
    if decay == "linear":
        return 1.0 - progress
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f'decay={decay!r} is not one of "constant", "linear", "cosine"')
