"""The optimiser against torch's own AdamW, and on the small updates that bf16 weights would lose."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from textgen_env.agents.training.checkpoint import read_state, write_state
from textgen_env.agents.training.optim import MasterAdamW, clip_grad_norm, lr_factor
from textgen_env.lm.language_model import LanguageModel

DTYPES = [torch.float32, torch.bfloat16]


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
    (param * 5).sum().backward()
    assert clip_grad_norm(optimizer, 1.0) == 263, "what is not accumulated yet counts too"
    assert optimizer.masters[0].grad.item() == pytest.approx(1)


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


def micro_batches(model: nn.Module, step: int) -> Iterator[torch.Tensor]:
    """Losses of two micro-batches, the same for each model."""
    for i in range(2):
        ids = torch.arange(2 + step + i, 14 + step + i).view(2, 6)
        yield model(input_ids=ids, labels=ids).loss / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_language_model_learns_bit_for_bit_as_with_torchs_adamw_on_its_masters(dtype: torch.dtype) -> None:
    """By hand: fp32 copies, torch's fused AdamW on them, matrices decayed and vectors not, rounded into the weights."""
    model = LanguageModel("tiny", dtype=dtype).model.eval()
    params = list(model.parameters())
    masters = [param.detach().float().clone() for param in params]
    decayed, others = ([m for m in masters if (m.dim() >= 2) is flag] for flag in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    optimizer = MasterAdamW([{"params": params, "lr": 1e-3}], weight_decay=0.1)
    for step in range(3):
        for loss in micro_batches(model, step):
            gradients = torch.autograd.grad(loss, params)
            for param, master, gradient in zip(params, masters, gradients, strict=True):
                param.grad = gradient.clone() if param.grad is None else param.grad + gradient
                master.grad = gradient.float() if master.grad is None else master.grad + gradient
            optimizer.accumulate()
        optimizer.step()
        reference.step()
        reference.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(optimizer.masters, masters, strict=True))
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(params, masters, strict=True))
    assert not torch.equal(params[0], next(LanguageModel("tiny", dtype=dtype).model.parameters()))


def small(dtype: torch.dtype) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).to(dtype)
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return net


def plain_steps(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """A loop that knows nothing of masters."""
    for _ in range(steps):
        net(torch.ones(2, 3, dtype=next(net.parameters()).dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_is_that_of_an_optimizer_of_torch(dtype: torch.dtype) -> None:
    net = small(dtype)
    optimizer = MasterAdamW(net.parameters(), lr=0.01)
    assert isinstance(optimizer, torch.optim.Optimizer)
    plain_steps(net, optimizer, 2)
    packed, plain = optimizer.state_dict(), torch.optim.AdamW(small(dtype).parameters()).state_dict()
    assert packed.keys() == plain.keys()
    assert packed["param_groups"][0]["params"] == plain["param_groups"][0]["params"] == [0, 1, 2, 3]
    for param, entry in zip(net.parameters(), packed["state"].values(), strict=True):
        assert entry.keys() == {"master", "step", "exp_avg", "exp_avg_sq"}
        assert {value.dtype for value in entry.values()} == {torch.float32}
        assert torch.equal(entry["master"].to(dtype), param)
        assert ("master" in optimizer.state[param]) is (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_survives_json_and_a_deep_copy(dtype: torch.dtype, tmp_path: Path) -> None:
    net = small(dtype)
    optimizer = MasterAdamW(net.parameters(), lr=0.01)
    plain_steps(net, optimizer, 2)
    write_state(tmp_path, optimizer.state_dict())
    twin, pair = small(dtype), copy.deepcopy((net, optimizer))
    resumed = MasterAdamW(twin.parameters(), lr=0.5)
    resumed.load_state_dict(read_state(tmp_path))
    for other in ((net, optimizer), (twin, resumed), pair):
        plain_steps(*other, 3)
    for other in (twin, pair[0]):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert json.dumps(resumed.state_dict()["param_groups"]) == json.dumps(optimizer.state_dict()["param_groups"])


def test_a_loaded_state_is_not_shared() -> None:
    net, twin = small(torch.bfloat16), small(torch.bfloat16)
    optimizer, resumed = (MasterAdamW(each.parameters(), lr=0.01) for each in (net, twin))
    plain_steps(net, optimizer, 1)
    resumed.load_state_dict(optimizer.state_dict())
    before = [master.clone() for master in optimizer.masters]
    plain_steps(twin, resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, optimizer.masters, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scheduler_of_torch_drives_it(dtype: torch.dtype) -> None:
    """As the same factors do by hand."""
    nets = small(dtype), small(dtype)
    ours, theirs = (MasterAdamW([{"params": net.parameters(), "lr": 0.1}]) for net in nets)
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: lr_factor(step, 4, warmup=2, decay="linear"))
    for step in range(4):
        ours.scale_lr(lr_factor(step, 4, warmup=2, decay="linear"))
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] == [0.05, 0.1, 0.1, 0.05][step]
        plain_steps(nets[0], ours, 1)
        plain_steps(nets[1], theirs, 1)
        schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_accelerate_takes_it(dtype: torch.dtype) -> None:
    alone, prepared = small(dtype), small(dtype)
    plain_steps(alone, MasterAdamW(alone.parameters(), lr=0.1), 3)
    try:
        net, optimizer = Accelerator(cpu=True).prepare(prepared, MasterAdamW(prepared.parameters(), lr=0.1))
        plain_steps(net, optimizer, 3)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), prepared.parameters(), strict=True))


def test_closures_groups_of_their_own_and_parameters_without_gradients() -> None:
    first, second, idle = (nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)) for _ in range(3))
    optimizer = MasterAdamW([{"params": [first, idle], "weight_decay": 0.5}], lr=0.1)
    optimizer.add_param_group({"params": [second], "lr": 0.2})

    def closure() -> torch.Tensor:
        loss = (first + second).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 8
    # the first step of Adam is lr · sign of the gradient, and decay is lr · 0.5 of the weight
    torch.testing.assert_close(optimizer.masters[0], torch.full((2, 2), 1 - 0.05 - 0.1))
    torch.testing.assert_close(optimizer.masters[2], torch.full((2, 2), 0.8))
    assert idle.eq(1).all()
    assert all(each.grad is None for each in (*optimizer.params, *optimizer.masters))


def test_weights_loaded_before_the_first_step_are_those_that_learn() -> None:
    param = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = MasterAdamW([param], lr=0.5)
    with torch.no_grad():
        param.fill_(4)
    param.sum().backward()
    optimizer.step()
    assert param.tolist() == [3.5, 3.5]


@pytest.mark.parametrize("argument", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1e-8}, {"weight_decay": -0.1}])
def test_arguments_out_of_range_are_named(argument: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(argument))}="):
        MasterAdamW([nn.Parameter(torch.zeros(1))], **argument)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [[], [{"params": []}]])
def test_nothing_to_train_is_refused(groups: list[object]) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        MasterAdamW(groups)


def test_lr_factor_by_hand():
    assert [lr_factor(s, 10, warmup=4) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [lr_factor(s, 10, warmup=2, decay="linear") for s in (2, 6, 10)] == [1.0, 0.5, 0.0]
    assert lr_factor(5, 10, decay="cosine") == pytest.approx(0.5)
    with pytest.raises(ValueError, match="decay='step'"):
        lr_factor(1, 10, decay="step")
