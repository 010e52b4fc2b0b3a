"""DPO, IPO and KTO against the formula written out on transformers' own logits, their limits, and where they begin."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch.nn.functional import logsigmoid
from words import WORDS

from textgen_env.agents.dpo import DPO, DPOConfig, PairExample, examples
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.preference_losses import ipo_loss, preference_loss
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
TEXTS = [
    ("a b", "c d e", "f", 1.0),
    ("f", "g", "a b c d e", 1.0),
    ("a", "b", "c", 0.5),
    ("c d e f", "a a", "b b b", 1.0),
    ("d", "", "d d", 1.0),
    ("e a", "b b b", "h", 0.5),
]


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def made(texts: list[tuple[str, str, str, float]] = TEXTS) -> list[PairExample]:
    return [PairExample(p, (a, b), ids(p), ([*ids(a), 0], [*ids(b), 0]), target) for p, a, b, target in texts]


def make(source: Path, *, lora_rank: int = 0, seed: int = 1, total_updates: int = 100, **settings: Any) -> DPO:
    policy = ActorCritic(LanguageModel(source), ActorConfig(lora_rank=lora_rank))
    config = DPOConfig(**{"minibatch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "warmup_updates": 0, **settings})
    held_out = made([("b a", "c", "d d", 1.0), ("g", "f e", "a", 1.0), ("a", "a", "b", 0.5)])
    options = {"reference": policy.reference(), "held_out": held_out, "seed": seed, "total_updates": total_updates}
    return DPO(policy, config, made(), **options)


def moved(trainer: DPO) -> DPO:
    """Its policy no longer the reference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            if parameter.dim() >= 2:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainer


def library_log_prob(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log π of a whole response, token by token from transformers' logits."""
    logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum((logits[len(prompt) + t - 1, token] for t, token in enumerate(response)), torch.zeros(()))


def library_loss(trainer: DPO, kind: str, beta: float) -> torch.Tensor:
    """TRL's formulas, "sigmoid" and "ipo" on summed log-probs, pair by pair; a tie is half of each direction."""
    total = torch.zeros(())
    for example in trainer.examples:
        chosen, rejected = (
            library_log_prob(trainer.policy.actor, example.prompt_ids, response)
            - library_log_prob(trainer.reference.model, example.prompt_ids, response).detach()
            for response in example.response_ids
        )
        for share, logits in ((example.target, chosen - rejected), (1 - example.target, rejected - chosen)):
            loss = -logsigmoid(beta * logits) if kind == "dpo" else (logits - 1 / (2 * beta)) ** 2
            total = total + share * loss / len(trainer.examples)
    if kind == "ipo":  # ½(Δ − c)² + ½(Δ + c)² = Δ² + c²: a constant that ours leaves out
        total = total - sum(e.target == 0.5 for e in trainer.examples) / (2 * beta) ** 2 / len(trainer.examples)
    return total


@pytest.mark.parametrize(("kind", "beta"), [("dpo", 0.1), ("dpo", 2.0), ("ipo", 0.1), ("ipo", 0.5)])
def test_loss_and_gradient_are_those_of_the_formula(word_model: Path, kind: str, beta: float):
    trainer = moved(make(word_model, loss=kind, beta=beta))
    loss, _ = trainer.loss(trainer.batch(trainer.examples), torch.arange(6))
    theirs = library_loss(trainer, kind, beta)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    for ours, other in zip(*(torch.autograd.grad(x, params) for x in (loss, theirs)), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)


def library_kto(trainer: DPO, beta: float) -> tuple[torch.Tensor, float]:
    """TRL's formula, text by text: 1 − σ(β(r − z)) of a chosen response, 1 − σ(β(z − r)) of a rejected one.

    z is the mean of log π/π_ref of all responses, each behind the prompt of the next pair, and at least 0.
    """

    def log_ratio(prompt: list[int], response: list[int]) -> torch.Tensor:
        ours = library_log_prob(trainer.policy.actor, prompt, response)
        return ours - library_log_prob(trainer.reference.model, prompt, response).detach()

    pairs = trainer.examples
    moved_by = [
        log_ratio(pairs[(i + 1) % len(pairs)].prompt_ids, response).item()
        for i, pair in enumerate(pairs)
        for response in pair.response_ids
    ]
    z, losses = max(0.0, sum(moved_by) / len(moved_by)), []
    for pair in pairs:
        for response, good in zip(pair.response_ids, (pair.target, 1 - pair.target), strict=True):
            r = log_ratio(pair.prompt_ids, response)
            losses.append(good * (1 - (beta * (r - z)).sigmoid()) + (1 - good) * (1 - (beta * (z - r)).sigmoid()))
    return torch.stack(losses).mean(), z


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_kto_is_the_formula_whether_z_is_clamped_or_not(word_model: Path, beta: float, swapped: bool):
    """A policy that finds these responses less likely than the reference does, whose z is 0; then the two swapped."""
    trainer = moved(make(word_model, loss="kto", beta=beta))
    if swapped:
        both = trainer.policy.actor, trainer.reference.model
        weights = [{name: value.clone() for name, value in model.state_dict().items()} for model in both]
        for model, other in zip(both, reversed(weights), strict=True):
            model.load_state_dict(other)
    batch = trainer.batch(trainer.examples)
    loss, _ = trainer.loss(batch, torch.arange(6))
    theirs, z = library_kto(trainer, beta)
    assert (z > 0.1) == swapped
    assert batch.reference_point.item() == pytest.approx(z, abs=1e-4)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    for ours, other in zip(*(torch.autograd.grad(x, params) for x in (loss, theirs)), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-3)


def test_z_of_kto_is_that_of_the_whole_minibatch(word_model: Path):
    """The gradient is the same, however the minibatch is cut up; of a pair by itself z is 0."""
    gradients = []
    for micro_batch_size in (6, 2, 1):
        trainer = moved(make(word_model, loss="kto", minibatch_size=6, micro_batch_size=micro_batch_size))
        batch = trainer.batch(trainer.examples)
        trainer._gradient(batch, torch.arange(6).split(micro_batch_size))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-4)
    alone = trainer.batch(trainer.examples[:1])
    trainer.loss(alone, torch.arange(1))
    assert alone.reference_point == 0
    with pytest.raises(ValueError, match=r'minibatch_size=1 must be at least 2 with loss="kto"'):
        DPOConfig(loss="kto", minibatch_size=1, micro_batch_size=1)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_the_gradient_does_not_depend_on_micro_batches(word_model: Path, micro_batch_size: int):
    trainer = moved(make(word_model, minibatch_size=6, micro_batch_size=micro_batch_size))
    trainer._gradient(trainer.batch(trainer.examples), torch.arange(6).split(micro_batch_size))
    params = [p for p in trainer.policy.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(library_loss(trainer, "dpo", 0.1), params)
    for param, other in zip(params, theirs, strict=True):
        torch.testing.assert_close(param.grad, other, atol=1e-5, rtol=1e-3)


def test_the_limits_of_beta():
    """β → 0: the gradient is β/2 of the difference's, whatever its size; β → ∞: only wrong pairs count, in a line."""
    difference = torch.tensor([2.0, -3.0, 0.5], requires_grad=True)
    one = torch.ones(3)
    for beta in (1e-3, 1e-4):
        loss = preference_loss(beta * difference, one)
        (gradient,) = torch.autograd.grad(loss, difference)
        assert loss.item() == pytest.approx(math.log(2), abs=beta)
        torch.testing.assert_close(gradient / beta, torch.full((3,), -0.5 / 3), atol=beta, rtol=0)
    loss = preference_loss(100 * difference, one)
    assert loss.item() == pytest.approx(100 * 3 / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, difference)[0], torch.tensor([0.0, -100 / 3, 0.0]))
    (gradient,) = torch.autograd.grad(ipo_loss(difference, 0.125, one), difference)
    torch.testing.assert_close(gradient, 2 / 3 * (difference.detach() - 4))  # 0 at Δ = 1/(2β)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_implicit_rewards_are_exactly_zero_at_the_start(word_model: Path, lora_rank: int):
    """In the first update, and throughout the first epochs of a policy that does not move."""
    trainer = make(word_model, lora_rank=lora_rank)
    held_out = trainer.held_out()
    metrics, batch = trainer.iterate()
    assert metrics["loss"] == held_out["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for found in (metrics, held_out):
        assert found["reward_margin"] == found["first_reward"] == found["second_reward"] == 0.0
        assert found["accuracy"] == 0.5
    assert set(batch.scores.tolist()) == {0.0}
    still = make(word_model, lora_rank=lora_rank, lr=0.0)
    assert [metrics["reward_margin"] for metrics in still.train(2)] == [0.0, 0.0]
    assert [metrics["reward_margin"] for metrics in still.train(2)] == pytest.approx([0.0, 0.0], abs=1e-5)


def test_the_reference_reads_every_pair_once(word_model: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, read = make(word_model), []
    original = type(trainer.reference).__call__

    def counted(self: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        read.append(len(tokens.input_ids))
        return original(self, tokens, *rest, **options)

    monkeypatch.setattr(type(trainer.reference), "__call__", counted)
    trainer.train(6)
    trainer.held_out()
    trainer.held_out()
    assert sum(read) == 2 * (6 + 3)


def test_it_goes_on_as_if_never_stopped(word_model: Path):
    """In the second epoch, with what the reference said in the first, in other batches."""
    straight, stopped = make(word_model), make(word_model)
    history = straight.train(6)
    stopped.train(3)
    resumed = make(word_model)
    resumed.load_state_dict(stopped.state_dict())
    again = resumed.train(3)
    for a, b in zip(straight.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [m["loss"] for m in again] == [m["loss"] for m in history[3:]]


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_it_learns_what_it_is_told(word_model: Path, kind: str):
    """Preferences are followed; the two ties end nearer to even than any of them; IPO stops at its distance."""
    beta = 0.25 if kind == "ipo" else 0.1
    trainer = make(word_model, loss=kind, beta=beta, minibatch_size=6, micro_batch_size=6, lr_decay="constant")
    trainer.train(60)
    batch = trainer.batch(trainer.examples)
    trainer.loss(batch, torch.arange(6))
    differences = (batch.scores / beta).tolist()
    preferred = [d for d, e in zip(differences, trainer.examples, strict=True) if e.target == 1]
    ties = [d for d, e in zip(differences, trainer.examples, strict=True) if e.target == 0.5]
    assert min(preferred) > max(map(abs, ties))
    if kind == "ipo":
        assert preferred == pytest.approx([2.0] * 4, abs=0.3)  # 1/(2β)
        assert ties == pytest.approx([0.0] * 2, abs=0.3)


def test_examples_are_texts_as_they_are_with_eos_where_they_ended(make_venv: MakeVenv, word_model: Path):
    pairs = [
        Pair("a b", " c", " d e", "b"),
        Pair("f", "g", "h", "cannot tell"),
        Pair("f", "g", "h"),
        Pair("a b c d e f g h i j", "a a a a a a a", "b", "tie", columns={"ended": [True, False]}),
    ]
    with pytest.warns(UserWarning, match="1 of 2 pairs have a response that is longer than max_new_tokens=6"):
        first, second = examples(pairs, make_venv(), LanguageModel(word_model))
    assert first == PairExample("a b", (" d e", " c"), ids("a b"), ([*ids("d e"), 0], [*ids("c"), 0]), 1.0)
    assert second.prompt_ids == ids("c d e f g h i j")
    assert second.response_ids == (ids("a a a a a a"), ids("b"))  # cut, and not ended
    assert second.target == 0.5
