"""KL(π‖π_ref) of token distributions: single-sample estimators, the exact sum, and the coefficient β in front.

All four have KL(π‖π_ref) for their expectation (k2 to second order), but not its gradient: paid as a constant reward,
k1 alone is right; differentiated at sampled tokens, k2 and the exact sum are, and k3·ratio (docs/gradients.md).

Pure functions on numpy arrays or torch tensors, element by element; the controllers hold one float. Nothing here
knows an environment or an agent, which both use it, so that there is one definition of the penalty.

References:
    Schulman, "Approximating KL divergence" (2020), for k1, k2, k3.
    Ziegler et al., "Fine-tuning language models from human preferences" (2019), section 2.2, for the adaptive β.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Array = TypeVar("Array", NDArray[Any], torch.Tensor)
KLEstimator = Literal["k1", "k2", "k3", "full"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def k1(log_prob: Array, ref_log_prob: Array) -> Array:
    """log π(a|s) − log π_ref(a|s): unbiased, and rightly negative for single samples."""
    return log_prob - ref_log_prob


def k2(log_prob: Array, ref_log_prob: Array) -> Array:
    """½ (log π(a|s) − log π_ref(a|s))²: never negative, biased, low variance."""
    return 0.5 * (log_prob - ref_log_prob) ** 2


def k3(log_prob: Array, ref_log_prob: Array) -> Array:
    """r − 1 − log r with r = π_ref(a|s) / π(a|s): unbiased and never negative."""
    return k3_of_log_ratio(ref_log_prob - log_prob)


def k3_of_log_ratio(log_ratio: Array) -> Array:
    """e^d − 1 − d with d = log π_ref(a|s) − log π(a|s): k3 where d is known already, masked or clamped."""
    expm1: Any = torch.expm1 if isinstance(log_ratio, torch.Tensor) else np.expm1
    return expm1(log_ratio) - log_ratio


def full_kl(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
    """Σ_a π(a|s) (log π(a|s) − log π_ref(a|s)), exactly, over the last axis.

    Args:
        logits: (..., V) unnormalised log-probabilities of the policy; −inf where an action is masked.
        ref_logits: (..., V) of the reference, masked alike.

    Returns:
        (...) in nats. A masked action adds nothing (0 · log 0 = 0).
    """
    log_p = torch.log_softmax(logits, dim=-1)
    log_q = torch.log_softmax(ref_logits, dim=-1)
    # Zeroed before the product, not after it: the gradient of 0 · (−inf + inf) would be NaN.
    log_ratio = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * log_ratio).sum(dim=-1)


def check_estimator(name: str) -> KLEstimator:
    """Return the estimator's name, or raise ValueError that lists the known ones."""
    if name not in KL_ESTIMATORS:
        raise ValueError(f"kl_estimator={name!r} is unknown; choose one of {', '.join(KL_ESTIMATORS)}")
    return name  # type: ignore[return-value]


def estimate_kl(estimator: str, log_prob: Array, ref_log_prob: Array) -> Array:
    """The single-sample estimate ("k1", "k2" or "k3") in nats, element by element.

    Raises:
        ValueError: an unknown estimator, or "full", which needs both whole distributions (see `full_kl`).
    """
    if check_estimator(estimator) == "full":
        raise ValueError("kl_estimator='full' needs whole distributions: call full_kl(logits, ref_logits)")
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](log_prob, ref_log_prob)


class KLCoefficient(Protocol):
    """β: the price of one nat."""

    value: float

    def update(self, kl: float, n: int) -> None:
        """Learn of the mean KL of n samples."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a checkpoint."""


def _coefficient(value: Any) -> float:
    """β as a finite float ≥ 0."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"kl_coef={value!r} must be a finite number ≥ 0, not {type(value).__name__}")
    if not 0 <= value < np.inf:
        raise ValueError(f"kl_coef={value!r} must be a finite number ≥ 0")
    return float(value)


class FixedKLCoefficient:
    """A β that stays what it was set to."""

    def __init__(self, value: float) -> None:
        self.value = _coefficient(value)

    def update(self, kl: float, n: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        """The value."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a checkpoint."""
        self.value = _coefficient(state["value"])


class AdaptiveKLCoefficient(FixedKLCoefficient):
    """β that steers the mean KL to a target: β ← β · (1 + clip(KL/target − 1, ±0.2) · min(n/horizon, 1)).

    The minimum is ours: a batch larger than five horizons would otherwise turn β negative.

    Args:
        initial: β at the start, > 0 (a zero would stay zero).
        target: the wanted mean KL in nats, in the unit in which `update` is told: per sequence in Ziegler et al.
        horizon: samples over which β can change by about 20 %.
    """

    def __init__(self, initial: float, target: float, horizon: float = 10_000) -> None:
        super().__init__(initial)
        for name, value in (("initial", initial), ("target", target), ("horizon", horizon)):
            if not 0 < value < np.inf:
                raise ValueError(f"{name}={value!r} of an adaptive KL coefficient must be a finite number > 0")
        self.target, self.horizon = float(target), float(horizon)

    def update(self, kl: float, n: int) -> None:
        """Move β after n samples with mean KL `kl` (nats, same unit as the target)."""
        if not np.isfinite(kl):
            raise ValueError(f"kl={kl!r} is not finite; the KL coefficient was left at {self.value}")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        value = self.value * (1.0 + error * min(n / self.horizon, 1.0))
        self.value = min(max(value, sys.float_info.min), sys.float_info.max)  # from 0 or inf it could not come back
