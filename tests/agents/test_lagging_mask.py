"""NLPO: masks of a lagging policy, beside nuclei found by a loop over plain forwards of the weights it should have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from words import WORDS

from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.training.checkpoint import read_state, write_state
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
SIZES = {"episodes": 12, "minibatch_size": 4, "micro_batch_size": 4, "lr": 1e-2}


def make(venv: gym.vector.VectorEnv, source: Path, weights: ActorConfig | None = None, **settings: Any) -> PPO:
    policy = ActorCritic(LanguageModel(source, dtype=settings.pop("dtype", "float32")), weights)
    return PPO(venv, policy, PPOConfig(**{**SIZES, "mask_top_p": 0.7, "mask_every": 2, **settings}))


def nucleus(probs: list[float], mass: float) -> set[int]:
    """The likeliest tokens until their probabilities reach the mass."""
    kept, total = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if total >= mass or probs[token] == 0:
            break
        kept.add(token)
        total += probs[token]
    return kept


@pytest.mark.parametrize("weights", [PolicyConfig(), PolicyConfig(lora_rank=4)], ids=["full", "lora"])
def test_masks_are_nuclei_of_the_weights_of_the_last_refresh(make_venv: MakeVenv, word_model: Path, weights):
    """Every state of a rollout, three updates after the start and one after the copy has caught up."""
    ppo = make(make_venv(temperature=0.8, min_new_tokens=2, forbidden_tokens=["b"]), word_model, weights)
    ppo.train(2)
    lagging = copy.deepcopy(ppo.policy.actor)
    ppo.train(1)
    rollout = ppo.collect()
    differing = 0
    for row in range(len(rollout.texts)):
        rows, at = torch.tensor([row]), rollout.response_mask[row].nonzero().flatten().tolist()
        for written, (column, mask) in enumerate(zip(at, rollout.masks(rows), strict=True)):
            prefix = rollout.input_ids[row : row + 1, :column]
            sets = []
            for model in (lagging, ppo.policy.actor):
                with torch.no_grad():
                    logits = model(prefix).logits[0, -1] / 0.8
                logits[WORDS.index("b")] = -torch.inf
                if written < 2:
                    logits[0] = -torch.inf
                sets.append(nucleus(logits.softmax(-1).tolist(), 0.7))
            assert set(mask.nonzero().flatten().tolist()) == sets[0]
            assert int(rollout.input_ids[row, column]) in sets[0]
            differing += sets[0] != sets[1]
    assert differing > 0, "the policy has moved away from its copy"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", [PolicyConfig(), PolicyConfig(lora_rank=4)], ids=["full", "lora"])
def test_the_first_ratio_is_exactly_one(make_venv: MakeVenv, word_model: Path, weights, dtype):
    ppo = make(make_venv(temperature=0.8, min_new_tokens=2), word_model, weights, dtype=dtype, top_p=0.9)
    assert [metrics["first_ratio_error"] for metrics in ppo.train(3)] == [0, 0, 0]


def test_the_reference_has_the_same_mask(make_venv: MakeVenv, word_model: Path):
    """As long as the policy is the reference there is no KL, however much is masked; later, by plain forwards."""
    ppo = make(make_venv(), word_model, kl_coef=0.1)
    rollout = ppo.collect()
    assert rollout.action_masks is not None
    batch = ppo.advantages(rollout)
    assert batch.metrics["kl_per_response"] == pytest.approx(0, abs=1e-6)
    ppo.train(2)
    rollout = ppo.collect()
    batch, reference = ppo.advantages(rollout), LanguageModel(word_model).model
    (columns,) = rollout.response_mask[0].nonzero(as_tuple=True)
    for column, mask in zip(columns.tolist(), rollout.masks(torch.tensor([0])), strict=True):
        with torch.no_grad():
            logits = reference(rollout.input_ids[:1, :column]).logits[0, -1]
        expected = logits[mask].log_softmax(-1)[mask[: rollout.input_ids[0, column]].sum()].item()
        assert batch.ref_log_probs[0, column].item() == pytest.approx(expected, abs=1e-4)


def test_the_copy_catches_up_on_schedule(make_venv: MakeVenv, word_model: Path):
    ppo = make(make_venv(), word_model, mask_every=3)
    equal = []
    for _ in range(6):
        ppo.train(1)
        pairs = zip(ppo.lagging_mask.model.parameters(), ppo.policy.actor.parameters(), strict=True)
        equal.append(all(torch.equal(own, their) for own, their in pairs))
    assert equal == [False, False, True, False, False, True]


def test_with_lora_only_the_adapters_are_copied(make_venv: MakeVenv, word_model: Path):
    """What does not learn lies in memory once, and is not in checkpoints."""
    ppo = make(make_venv(), word_model, PolicyConfig(lora_rank=2))
    pairs = zip(ppo.lagging_mask.model.named_parameters(), ppo.policy.actor.parameters(), strict=True)
    copied = {name for (name, own), their in pairs if own.data_ptr() != their.data_ptr()}
    assert copied
    assert all("lora_" in name for name in copied)
    assert len(ppo.state_dict()["lagging_mask"]["weights"]) == len(copied)
    assert all(p.requires_grad for name, p in ppo.policy.actor.named_parameters() if "lora_" in name)


def test_a_mass_of_one_changes_no_bit(make_venv: MakeVenv, word_model: Path):
    runs = make(make_venv(), word_model, mask_top_p=1.0), make(make_venv(), word_model, mask_top_p=1.0, mask_every=1)
    policy = ActorCritic(LanguageModel(word_model))
    runs += (PPO(make_venv(), policy, PPOConfig(**SIZES)),)
    for ppo in runs:
        ppo.train(2)
        assert ppo.collect().action_masks is None
    for ppo in runs[1:]:
        pairs = zip(ppo.policy.parameters(), runs[0].policy.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("weights", [PolicyConfig(), PolicyConfig(lora_rank=2)], ids=["full", "lora"])
def test_resumed_between_two_refreshes_it_ends_with_the_same_bits(make_venv, word_model, tmp_path, weights):
    """Through the files of a checkpoint; the copy that it goes on with is not that of a new trainer."""
    straight, resumed = (make(make_venv(), word_model, weights, mask_every=3) for _ in range(2))
    straight.train(4)
    (tmp_path / "state").mkdir()
    write_state(tmp_path / "state", straight.state_dict())
    resumed.load_state_dict(read_state(tmp_path / "state"))
    histories = [ppo.train(4) for ppo in (straight, resumed)]
    assert [m["loss"] for m in histories[0]] == [m["loss"] for m in histories[1]]
    pairs = zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("trainer", "config"),
    [
        (Reinforce, ReinforceConfig(**SIZES, group_size=2, mask_top_p=0.7)),
        (Reinforce, ReinforceConfig(**SIZES, group_size=2, mask_top_p=0.7, baseline="greedy")),
        (GRPO, GRPOConfig(**SIZES, group_size=4, mask_top_p=0.7)),
    ],
    ids=["leave_one_out", "greedy", "grpo"],
)
def test_every_on_policy_trainer_takes_it(make_venv: MakeVenv, word_model: Path, trainer: Any, config: Any):
    learner = trainer(make_venv(min_new_tokens=2), ActorCritic(LanguageModel(word_model), ActorConfig()), config)
    rollout = learner.collect()
    sizes = rollout.masks(torch.arange(12)).sum(dim=1)
    assert sizes.min() >= 1
    assert sizes.max() < len(WORDS)
    assert learner.train(1)[0]["first_ratio_error"] == 0


def test_a_mass_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"mask_top_p=0.0 must be"):
        PPOConfig(mask_top_p=0.0)
    with pytest.raises(ValueError, match="mask_every=0 must be"):
        PPOConfig(mask_every=0)
