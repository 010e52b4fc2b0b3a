"""Which weights learn, counted by hand; what an optimiser step then moves; adapters that start as the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_model
from torch import nn

from textgen_env.lm.adapters import trainable

# random_model: width 32, 2 blocks, 4 heads and 2 key-value heads of 8, feed-forward 64
BLOCK = (32 * 32 + 32 * 16 + 32 * 16 + 32 * 32) + 3 * 32 * 64 + 2 * 32  # q, k, v, o; gate, up, down; two norms
EMBEDDING = 40 * 32
EVERYTHING = 2 * BLOCK + 2 * EMBEDDING + 32  # embeddings in and out, and the last norm
LINEAR = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]  # (in, out) in a block
RANK_1 = sum(inputs + outputs for inputs, outputs in LINEAR)  # of LoRA in a block: A (1, in), B (out, 1)
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


@pytest.fixture
def llama() -> nn.Module:
    return random_model("llama", 35)


def learning(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def moved(model: nn.Module) -> set[str]:
    """Names of what three steps of an optimiser change; the first step leaves LoRA's A, whose gradient B = 0 blocks."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, EVERYTHING),
        ({"frozen_layers": 1}, EVERYTHING - EMBEDDING - BLOCK),
        ({"frozen_layers": 2}, EMBEDDING + 32),
        ({"lora_rank": 1}, 2 * RANK_1),
        ({"lora_rank": 3}, 3 * 2 * RANK_1),
        ({"lora_rank": 3, "frozen_layers": 1}, 3 * RANK_1),
    ],
)
def test_as_many_weights_learn_as_counted_by_hand(llama: nn.Module, choice: dict[str, int], expected: int) -> None:
    assert learning(trainable(llama, **choice)) == expected


def test_a_model_that_was_frozen_learns_again(llama: nn.Module) -> None:
    assert learning(trainable(llama.requires_grad_(False))) == EVERYTHING


def test_all_but_the_frozen_blocks_and_embeddings_move(llama: nn.Module) -> None:
    everything = set(llama.state_dict())
    kept = {name for name in everything if "layers.0." in name or "embed_tokens" in name}
    assert len(kept) == 9 + 1
    assert moved(trainable(llama, frozen_layers=1)) == everything - kept


def test_gpt2_keeps_its_tied_head_frozen() -> None:
    """The output head of GPT-2 is its input embedding."""
    changed = moved(trainable(random_model("gpt2", 35), frozen_layers=1))
    assert {name.split(".")[1] for name in changed} == {"h", "ln_f", "wpe"}
    assert {name.split(".")[2] for name in changed if ".h." in name} == {"1"}


def test_only_adapters_above_the_frozen_blocks_move(llama: nn.Module) -> None:
    changed = moved(trainable(llama, lora_rank=2, frozen_layers=1))
    assert len(changed) == 2 * len(LINEAR)
    assert all("lora_" in name and "layers.1." in name for name in changed)


def test_lora_starts_as_the_model_and_adds_alpha_over_rank_b_a(llama: nn.Module) -> None:
    plain = llama(input_ids=IDS).logits.detach()
    weight = llama.get_submodule("model.layers.0.mlp.up_proj").weight.clone()
    adapted = trainable(llama, lora_rank=2, lora_alpha=6)
    assert torch.equal(adapted(input_ids=IDS).logits, plain)
    layer = adapted.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    nn.init.ones_(b)
    x = torch.linspace(-1, 1, 32)
    torch.testing.assert_close(layer(x), weight @ x + 6 / 2 * (b @ (a @ x)))
    assert a.abs().max() <= 32**-0.5  # where nn.Linear draws from
    assert a.abs().max() > 0.9 * 32**-0.5


def test_adapters_come_from_the_generator_alone() -> None:
    def adapters(seed: int | None, elsewhere: int) -> list[torch.Tensor]:
        torch.rand(elsewhere)  # the global generator stands elsewhere
        model, before = random_model("llama", 35), torch.get_rng_state()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        adapted = trainable(model, lora_rank=2, generator=generator)
        assert torch.equal(torch.get_rng_state(), before)
        return [value for name, value in adapted.state_dict().items() if "lora_" in name]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(adapters(5, 1), adapters(5, 2))
    assert same(adapters(None, 3), adapters(0, 4))
    assert not same(adapters(5, 5), adapters(6, 5))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"frozen_layers": 3}, "frozen_layers=3 must be from 0 to the 2 blocks"),
        ({"frozen_layers": -1}, "frozen_layers=-1 must be from 0"),
        ({"lora_rank": -1}, "lora_rank=-1 must be at least 0"),
        ({"lora_rank": 2, "lora_alpha": 0}, "lora_alpha=0 must be above 0"),
        ({"lora_rank": 2, "lora_alpha": float("nan")}, "lora_alpha=nan must be above 0"),
    ],
)
def test_bad_choices_are_named_and_change_nothing(llama: nn.Module, choice: dict[str, Any], message: str) -> None:
    llama.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        trainable(llama, **choice)
    assert learning(llama) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bodies_without_a_head_freeze_alike(kind: str) -> None:
    """What a separate critic is made of."""
    body = random_model(kind, 35).base_model
    whole = learning(body)
    trainable(body, frozen_layers=2)
    norm = {"llama": 32, "gpt2": 2 * 32 + 256 * 32}[kind]  # GPT-2's positions are no token embedding
    assert learning(body) == norm < whole
