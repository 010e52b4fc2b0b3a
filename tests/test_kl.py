"""KL estimators against written-out numbers and exact enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textgen_env.kl import AdaptiveKLCoefficient, FixedKLCoefficient, estimate_kl, full_kl, k1, k2, k3, k3_of_log_ratio

# π = (1/2, 1/4, 1/4), π_ref = (1/4, 1/4, 1/2): KL = 1/2·ln 2 + 0 + 1/4·ln(1/2) = 1/4·ln 2
P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
LN2 = math.log(2)


@pytest.mark.parametrize("as_array", [torch.tensor, np.array])
def test_estimators_by_hand(as_array) -> None:
    log_p, log_q = as_array([math.log(0.5)]), as_array([math.log(0.25)])
    assert float(k1(log_p, log_q)[0]) == pytest.approx(LN2)
    assert float(k2(log_p, log_q)[0]) == pytest.approx(LN2**2 / 2)
    assert float(k3(log_p, log_q)[0]) == pytest.approx(0.5 - 1 + LN2)


def test_full_is_the_sum_over_the_vocabulary() -> None:
    assert float(full_kl(P.log() + 3, Q.log() - 1)) == pytest.approx(LN2 / 4)  # logits need no normalising


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    assert float((P * estimate_kl(estimator, P.log(), Q.log())).sum()) == pytest.approx(LN2 / 4)


def test_masked_actions_add_nothing_and_keep_the_gradient_finite() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf], requires_grad=True)
    kl = full_kl(logits, torch.tensor([math.log(3.0), 0.0, -torch.inf]))
    kl.backward()
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert torch.isfinite(logits.grad).all()


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_k2_and_k3_are_never_negative(log_p: float, log_q: float) -> None:
    assert k2(np.array(log_p), np.array(log_q)) >= 0
    assert k3(np.array(log_p), np.array(log_q)) >= 0


def test_unknown_estimator_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"kl_estimator='k4' is unknown; choose one of k1, k2, k3, full"):
        estimate_kl("k4", np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="full_kl"):
        estimate_kl("full", np.zeros(1), np.zeros(1))


def test_adaptive_coefficient_by_hand() -> None:
    beta = AdaptiveKLCoefficient(0.1, target=6.0, horizon=1000)
    beta.update(6.6, n=100)  # error 0.1 → ·(1 + 0.1·0.1)
    assert beta.value == pytest.approx(0.101)
    beta.update(60.0, n=100)  # error clipped to 0.2 → ·1.02
    assert beta.value == pytest.approx(0.10302)
    beta.update(0.0, n=100_000)  # n/horizon limited to 1 → ·0.8
    assert beta.value == pytest.approx(0.082416)
    restored = AdaptiveKLCoefficient(1.0, target=6.0)
    restored.load_state_dict(beta.state_dict())
    assert restored.value == beta.value


def test_adaptive_coefficient_stays_where_it_can_come_back_from() -> None:
    for kl, extreme in ((0.0, 1e-308), (1e9, 1.7e308)):
        beta = AdaptiveKLCoefficient(extreme, target=1.0, horizon=1)
        for _ in range(20):
            beta.update(kl, n=1)
        assert 0 < beta.value < float("inf")
        before = beta.value
        beta.update(1e9 if kl == 0.0 else 0.0, n=1)
        assert beta.value == pytest.approx(before * (1.2 if kl == 0.0 else 0.8))


@pytest.mark.parametrize("value", ["0.1", None, True, b"1", [0.1]])
def test_coefficients_of_the_wrong_type(value: object) -> None:
    with pytest.raises(TypeError, match="kl_coef="):
        FixedKLCoefficient(value)
    coefficient = FixedKLCoefficient(0.1)
    with pytest.raises(TypeError, match="kl_coef="):
        coefficient.load_state_dict({"value": value})
    assert coefficient.value == 0.1


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_coefficients(value: float) -> None:
    with pytest.raises(ValueError, match="kl_coef"):
        FixedKLCoefficient(value)
    with pytest.raises(ValueError, match="not finite"):
        AdaptiveKLCoefficient(0.1, target=1.0).update(float("nan"), 1)
    with pytest.raises(ValueError, match="target=0"):
        AdaptiveKLCoefficient(0.1, target=0)


@pytest.mark.parametrize("as_array", [torch.tensor, np.array])
def test_k3_of_a_log_ratio_by_hand(as_array) -> None:
    """r = 2 and 1/2: r − 1 − ln r."""
    found = k3_of_log_ratio(as_array([LN2, 0.0, -LN2]))
    assert found.tolist() == pytest.approx([1 - LN2, 0.0, LN2 - 0.5])
