"""Linear layers of half-precision models on processors that multiply faster in float32.

Processors without a matrix unit for bf16 (AMX, for one) multiply bf16 at half the speed of float32 or less. There, and
only there, the matrices of a linear layer are widened to float32, multiplied, and the product is rounded back: the same
sums with no more rounding than the library's own kernel does, forward and backward. Weights and activations stay in
half precision, so memory is that of a half-precision model.

What lives here: which machines this suits (measured once), and a mode under which torch's `linear` works so. Used while
scoring and training (`log_probs.py`) and, with copies that are kept between steps, while decoding (`prefix_cache.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from textgen_env.lm.backbone import HALF, checkpoints_activations

MARGIN = 1.25  # float32 must be this much faster: far from 1, so that every process on a machine decides alike


def upcast_linear(inner: Any, copies: dict[int, Tensor] | None = None) -> AbstractContextManager[Any]:
    """Within it the linear layers of a model take the faster of the two ways.

    Args:
        inner: a transformers model; only one in half precision on a CPU is affected.
        copies: where float32 copies of the weights are kept from call to call, by the id of the weight; whoever owns
            them empties them when weights change. Without gradient only. None: nothing is kept.
    """
    suits = (
        inner.device.type == "cpu"
        and inner.dtype in HALF
        and float32_is_faster(inner.dtype)
        and not checkpoints_activations(inner)  # what is computed anew would be rounded differently
    )
    return UpcastLinear(copies) if suits else nullcontext()


class UpcastLinear(TorchFunctionMode):
    """`linear` of half-precision matrices on the CPU by way of float32; see `upcast_linear`."""

    def __init__(self, copies: dict[int, Tensor] | None = None) -> None:
        super().__init__()
        self._copies = copies
        self._x = self._wide_x = torch.empty(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not linear or kwargs or args[0].dtype not in HALF or args[1].dtype != args[0].dtype:
            return func(*args, **(kwargs or {}))
        x, weight, bias = args if len(args) == 3 else (*args, None)
        if self._copies is None:
            return _WideLinear.apply(x, weight, bias)
        if id(weight) not in self._copies:
            self._copies[id(weight)] = weight.detach().float()
        if x is not self._x:  # queries, keys and values are made of one input
            self._x, self._wide_x = x, x.float()
        return linear(self._wide_x, self._copies[id(weight)], None if bias is None else bias.float()).to(x.dtype)


class _WideLinear(torch.autograd.Function):
    """x Wᵀ + b; what is saved for the backward pass is in half precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wide = grad.flatten(0, -2).float()
        of_x = (wide @ weight.float()).view_as(x).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_weight = (wide.t() @ x.flatten(0, -2).float()).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, wide.sum(dim=0).to(grad.dtype) if ctx.needs_input_grad[2] else None


@functools.cache
def float32_is_faster(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies float32 matrices at least `MARGIN` times faster than those of ``dtype``.

    Measured once in a process, in some 50 ms: the best of alternating rounds at the shape of a small layer, on one
    thread, since threads that wait for each other measure what else the machine does.
    """
    x, weight = torch.zeros(128, 512), torch.zeros(1024, 512)
    pairs = {True: (x, weight), False: (x.to(dtype), weight.to(dtype))}
    best = dict.fromkeys(pairs, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(20):
                for wide, pair in pairs.items():
                    begin = time.perf_counter()
                    linear(*pair)
                    best[wide] = min(best[wide], time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return best[True] * MARGIN < best[False]
