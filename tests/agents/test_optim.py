"""The optimiser against torch's own AdamW, and on the small updates that bf16 weights would lose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from textgen_env.agents.optim import MasterAdamW, lr_factor


def quadratic_steps(optimizer: MasterAdamW, param: nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        (param.float() - 3).square().sum().backward()
        optimizer.accumulate()
        optimizer.step()


def test_fp32_is_torch_adamw():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)) for _ in range(2))
    optimizer = MasterAdamW([{"params": [ours], "lr": 0.1}], weight_decay=0.01)
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    for _ in range(5):
        quadratic_steps(optimizer, ours, 1)
        (theirs - 3).square().sum().backward()
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)  # another order of roundings


def test_small_updates_reach_bf16_weights():
    """500 steps of about 1e-5 from 1.0: plain bf16 AdamW stays at 1.0, the masters arrive at about 1.005."""
    naive = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    plain = torch.optim.AdamW([naive], lr=1e-5, weight_decay=0)
    for _ in range(500):
        (naive.float() - 3).square().sum().backward()
        plain.step()
        plain.zero_grad()
    assert naive.eq(1).all(), "the premise: without masters nothing moves"
    param = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [param], "lr": 1e-5}])
    quadratic_steps(optimizer, param, 500)
    torch.testing.assert_close(optimizer.masters[0], torch.full((4,), 1.005), atol=1e-4, rtol=0)
    assert torch.equal(param, optimizer.masters[0].bfloat16())
    assert param.gt(1).all()
    assert all(s["exp_avg"].dtype == torch.float32 for s in optimizer.adamw.state.values())


def test_gradients_accumulate_in_fp32():
    """256 + 1 + 1 is 256 in bf16 (spacing 2 above 256), 258 in fp32."""
    param = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [param], "lr": 1.0}])
    for slope in (256.0, 1.0, 1.0):
        (param * slope).sum().backward()
        optimizer.accumulate()
    assert optimizer.masters[0].grad.item() == 258
    assert param.grad is None


def test_gradients_of_fp32_parameters_accumulate_in_place():
    param = nn.Parameter(torch.zeros(1))
    optimizer = MasterAdamW([{"params": [param], "lr": 1.0}])
    for slope in (256.0, 1.0, 1.0):
        (param * slope).sum().backward()
        optimizer.accumulate()
    assert optimizer.masters[0].grad.item() == 258
    optimizer.discard()
    (param * 3).sum().backward()
    optimizer.accumulate()
    assert optimizer.masters[0].grad.item() == 3, "nothing is left of what was discarded"


def test_clip_scales_to_the_norm_and_reports_the_one_before():
    param = nn.Parameter(torch.zeros(2))
    optimizer = MasterAdamW([{"params": [param], "lr": 1.0}])
    (param * torch.tensor([3.0, 4.0])).sum().backward()
    optimizer.accumulate()
    assert optimizer.clip(1.0) == pytest.approx(5)
    torch.testing.assert_close(optimizer.masters[0].grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_raises_the_version_of_the_parameter(dtype):
    """Key-value caches notice new weights by this counter."""
    param = nn.Parameter(torch.zeros(2, dtype=dtype))
    before = param._version
    quadratic_steps(MasterAdamW([{"params": [param], "lr": 0.1}]), param, 1)
    assert param._version > before
    assert param.ne(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_continues_bit_for_bit(dtype):
    def build() -> tuple[MasterAdamW, nn.Parameter]:
        param = nn.Parameter(torch.linspace(0, 1, 4).view(2, 2).to(dtype))
        return MasterAdamW([{"params": [param], "lr": 0.01}], weight_decay=0.1), param

    straight, param = build()
    quadratic_steps(straight, param, 7)
    first, other = build()
    quadratic_steps(first, other, 3)
    second, resumed = build()
    second.load_state_dict(first.state_dict())
    quadratic_steps(second, resumed, 4)
    assert torch.equal(param, resumed)
    assert torch.equal(straight.masters[0], second.masters[0])


def test_state_of_other_parameters_is_refused():
    small, large = (MasterAdamW([{"params": [nn.Parameter(torch.zeros(n))], "lr": 1.0}]) for n in (2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        small.load_state_dict(large.state_dict())


def test_lr_factor_by_hand():
    assert [lr_factor(s, 10, warmup=4) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [lr_factor(s, 10, warmup=2, decay="linear") for s in (2, 6, 10)] == [1.0, 0.5, 0.0]
    assert lr_factor(5, 10, decay="cosine") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="decay='step'"):
        lr_factor(1, 10, decay="step")
