"""NaN and infinity, found before they are trained on or saved.

What lives here: the error, and the checks that name the quantity and say what to do. What does not: where they are
called (``ppo.py``, ``run.py``, ``sb3_ppo.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

REMEDIES = {
    "reward": "look at the scorer and at kl_coef",
    "ref_log_probs": "the reference gives a sampled token no probability, or its weights are not finite",
    "old_log_probs": "the policy's weights are not finite, or temperature is too small",
}
LOWER_LR = "lower lr, value_lr or max_grad_norm"


class NonFiniteError(RuntimeError):
    """A loss, reward, gradient, metric or weight is NaN or infinite; no step was taken on it, and it was not saved."""


def check_finite(name: str, values: Tensor, when: str) -> None:
    """Raise if a tensor holds NaN or infinity.

    Args:
        name: of the quantity.
        values: any shape.
        when: "in update 3".

    Raises:
        NonFiniteError: quantity, place, some values, and what to do.
    """
    if torch.isfinite(values).all():
        return
    bad = values[~torch.isfinite(values)].flatten()
    share = f"{bad.numel()} of {values.numel()}: " if values.numel() > 1 else ""
    raise NonFiniteError(f"{name} is not finite {when}: {share}{bad[:4].tolist()}; {REMEDIES.get(name, LOWER_LR)}")


def check_metrics(metrics: Mapping[str, float], when: str) -> None:
    """Raise `NonFiniteError` for the metrics that are not finite, by name."""
    if bad := {name: value for name, value in metrics.items() if not math.isfinite(value)}:
        listed = ", ".join(f"{name}={value}" for name, value in bad.items())
        raise NonFiniteError(f"metrics are not finite {when}: {listed}; {LOWER_LR}, and look at the scorer")


def check_weights(parameters: Iterable[tuple[str, Tensor]], when: str) -> None:
    """Raise `NonFiniteError` for the first of some named weights that is not finite."""
    for name, parameter in parameters:
        check_finite(f"weight {name}", parameter.detach(), when)
