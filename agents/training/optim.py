"""Optimising half-precision weights without losing small updates.

What lives here: `MasterAdamW`, a torch optimiser whose steps are taken on fp32 master copies of the parameters,
clipping of the gradients that it has accumulated, and the warm-up/decay factor. What does not: losses and the training
loop (``ppo.py``).

Why: bf16 has 8 bits of mantissa, so w + Δ rounds back to w as soon as |Δ| < |w|/256; at a learning rate of 1e-5 almost
every step would be lost. Steps are therefore taken in fp32 and rounded into the bf16 weight afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

WIDE = (torch.float32, torch.float64)
"""Parameters of these types are their own masters."""


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on fp32 masters of parameters of any floating dtype.

    Usage: ``backward()`` → `accumulate()` as often as there are micro-batches, then `step()`, which forgets the
    gradients that it has used. A loop that is written for another optimiser, with one ``backward()`` per step, will do.

    A master is made of its parameter when it is first needed, ``state[parameter]["master"]``, and rules from then on:
    load other weights before that, or make a new optimiser. `state_dict` holds a master for every parameter, wide ones
    included, and `load_state_dict` restores the parameters with them.

    Args:
        groups: parameters, or one mapping per parameter group: ``params``, and ``lr`` (the peak learning rate of the
            group) or any other of the arguments below.
        lr: the peak learning rate of groups that name none.
        betas: decay of the first and second moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, on matrices alone (not on biases or norms).

    Raises:
        ValueError: no parameters, or an argument out of range.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas} must be at least 0 and below 1")
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0")
        copied = [dict(group) if isinstance(group, Mapping) else group for group in groups] or [{"params": []}]
        super().__init__(copied, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        if not self.params:
            raise ValueError("groups holds no trainable parameter; unfreeze at least one")

    @property
    def params(self) -> list[nn.Parameter]:
        """All parameters, group by group."""
        return [param for group in self.param_groups for param in group["params"]]

    @property
    def masters(self) -> list[Tensor]:
        """The master of each of `params`: its copy in fp32, or the parameter itself if it is as precise."""
        return [self._master(param) for param in self.params]

    def _master(self, param: nn.Parameter) -> Tensor:
        if param.dtype in WIDE:
            return param
        state = self.state[param]
        if "master" not in state:
            state["master"] = param.detach().float()
        return state["master"]

    def accumulate(self) -> None:
        """Add the gradients of the parameters to those of the masters, in fp32."""
        for param, master in zip(self.params, self.masters, strict=True):
            if master is param or param.grad is None:
                continue  # the next backward pass itself goes on adding to a gradient in fp32
            master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
            param.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those that were accumulated too."""
        super().zero_grad(set_to_none)
        for state in self.state.values():
            if "master" in state:
                state["master"].grad = None

    def scale_lr(self, factor: float) -> None:
        """Set the learning rates to ``factor`` × the peaks, as a scheduler of torch does."""
        for group in self.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | float | None = None) -> Any:  # type: ignore[override]
        """One AdamW step on the masters, which is written into the parameters; the gradients are forgotten.

        Args:
            closure: computes the loss anew, with its gradients. A number is the factor of `scale_lr`.

        Returns:
            The loss, if there is a closure.
        """
        loss = None
        if callable(closure):
            with torch.enable_grad():
                loss = closure()
        elif closure is not None:
            self.scale_lr(closure)
        self.accumulate()
        for group in self.param_groups:
            for decayed in (True, False):
                params = [param for param in group["params"] if (param.dim() >= 2) is decayed]
                self._update(params, group, group["weight_decay"] if decayed else 0.0)
        self.zero_grad()
        return loss

    def _update(self, params: list[nn.Parameter], group: Mapping[str, Any], weight_decay: float) -> None:
        """Step those of some parameters that have gradients."""
        params = [param for param in params if self._master(param).grad is not None]
        if not params:
            return
        masters = [self._master(param) for param in params]
        states = [self._moments(param, master) for param, master in zip(params, masters, strict=True)]
        adamw(
            masters,
            [master.grad for master in masters if master.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,  # one pass over the memory of each tensor instead of ten, on a CPU five times faster
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=weight_decay,
            eps=group["eps"],
            maximize=False,
        )
        for param, master in zip(params, masters, strict=True):
            # also a parameter onto itself: it raises its version, by which caches notice new weights
            param.copy_(master)

    def _moments(self, param: nn.Parameter, master: Tensor) -> dict[str, Any]:
        state = self.state[param]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state

    def state_dict(self) -> dict[str, Any]:
        """As of any optimiser of torch; for every parameter also its master, wide ones included."""
        packed = super().state_dict()
        masters = enumerate(self.masters)
        packed["state"] = {i: {"master": m.detach(), **packed["state"].get(i, {})} for i, m in masters}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore groups, masters (and with them the parameters) and moments.

        Args:
            state_dict: of `state_dict`; keys of its "state" may have become strings on the way, as in JSON.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        entries = {int(i): dict(entry) for i, entry in state_dict["state"].items()}
        params = self.params
        shapes = [tuple(entries[i]["master"].shape) for i in sorted(entries) if "master" in entries[i]]
        if shapes != [tuple(param.shape) for param in params]:
            raise ValueError(f"the state holds {len(shapes)} tensors that do not fit the {len(params)} trainable ones")
        super().load_state_dict({**state_dict, "state": {}})  # which would round the rest to the type of a parameter
        for i, param in enumerate(params):
            param.copy_(entries[i]["master"])
            if param.dtype in WIDE:
                del entries[i]["master"]
            self.state[param] = {
                name: value.to(param.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in entries[i].items()
            }

    # --- names that these had before this was an optimiser of torch ---------------------------------------------------

    @property
    def adamw(self) -> MasterAdamW:
        """The optimiser itself."""
        return self

    def clip(self, max_norm: float) -> float:
        """See `clip_grad_norm`."""
        return clip_grad_norm(self, max_norm)

    def discard(self) -> None:
        """See `zero_grad`."""
        self.zero_grad()


def clip_grad_norm(optimizer: MasterAdamW, max_norm: float) -> float:
    """Scale the accumulated gradients to a global norm of at most ``max_norm``; returns the norm before."""
    optimizer.accumulate()
    return float(nn.utils.clip_grad_norm_(optimizer.masters, max_norm))


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
