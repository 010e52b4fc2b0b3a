"""VinePPO: its values against enumeration, its expected gradient against the true one, advantages by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, PROMPT, RESPONSES, TWO_TOKENS, A, B, groups, masked_log_probs, objective, rollout_of, score

from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.vine_ppo import State, VinePPO, VinePPOConfig, play_on
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]
STATES = [(), (A,), (B,)]


def make(make_venv: MakeVenv, source: Path, environment: dict[str, Any] | None = None, **settings: Any) -> VinePPO:
    sizes = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12, "lr": 1e-2, "whiten": False}
    config = VinePPOConfig(**{**sizes, "branch_every": 1, **settings})
    policy = ActorCritic(LanguageModel(source), ActorConfig())
    return VinePPO(make_venv(**{**TWO_TOKENS, **(environment or {})}), policy, config)


def true_values(trainer: VinePPO, source: Path) -> dict[State, float]:
    """V of the three states: score − β·KL of what comes after them, weighted by the policy."""
    reference, model, found = LanguageModel(source).model, trainer.policy.actor, {}
    with torch.no_grad():
        for state in STATES:
            below = [r for r in RESPONSES if tuple(r[: len(state)]) == state]
            log_probs = torch.stack([masked_log_probs(model, r) for r in below])
            refs = torch.stack([masked_log_probs(reference, r) for r in below])
            if state:  # the first token is paid already
                first = [masked_log_probs(lm, [*state]) for lm in (model, reference)]
                log_probs, refs = log_probs - first[0], refs - first[1]
            paid = torch.tensor([score([trainer.policy.language_model.decode(r)])[0] for r in below])
            value = log_probs.exp() @ (paid - trainer.kl.value * (log_probs - refs))
            found[State(0, state)] = float(value)
    return found


def test_values_are_unbiased(make_venv: MakeVenv, word_model: Path):
    """Means of 3,000 continuations from each state, away from the reference, within 4 standard errors of the truth."""
    trainer = make(make_venv, word_model, {"num_envs": 64}, episodes=96, kl_coef=0.3)
    trainer.train(3)
    returns = play_on(trainer, [0] * 3, STATES, 3000)
    truth = torch.tensor(list(true_values(trainer, word_model).values()), dtype=torch.float64)
    errors = (returns.mean(dim=1) - truth) / (returns.std(dim=1) / 3000**0.5)
    assert errors.abs().max() < 4
    assert truth.std() > 0.2


@pytest.mark.parametrize("every", [1, 2])
def test_the_expected_gradient_is_that_of_the_objective(every: int, make_venv: MakeVenv, word_model: Path):
    """E[∇L]·max_new_tokens = −∇(E[score] − β·KL), with values that are right but where nothing asks for it: at s_0."""
    trainer = make(make_venv, word_model, kl_coef=0.3, branch_every=every)
    trainer.train(2)
    values = {**true_values(trainer, word_model), State(0, ()): 7.0}
    trainer._values = lambda rollout: values  # type: ignore[method-assign, assignment]
    params = list(trainer.policy.actor.parameters())
    total = torch.zeros(sum(p.numel() for p in params))
    for weight, rollout in groups(trainer.policy.language_model, 1):
        loss, parts = trainer.loss(trainer.advantages(rollout), torch.arange(1))
        assert parts["ratio_error"] == 0
        total += weight * torch.cat([g.flatten() for g in torch.autograd.grad(2 * loss, params)])
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-objective(trainer, word_model), params)])
    assert exact.norm() > 0.05
    torch.testing.assert_close(total, exact, atol=2e-6, rtol=1e-3)


def test_advantages_by_hand(make_venv: MakeVenv, word_model: Path):
    """Branch points every two tokens of three: the first two tokens share one, the last has its own."""
    trainer = make(make_venv, word_model, {"max_new_tokens": 3}, kl_coef=0.0, branch_every=2)
    rollout = rollout_of([[A, B, EOS], [EOS]], trainer.policy.language_model)
    known = {State(0, ()): 0.5, State(0, (A, B)): 2.0}
    trainer._values = lambda rollout: known  # type: ignore[method-assign, assignment]
    batch = trainer.advantages(rollout)
    start = len(PROMPT)
    paid = [float(rollout.scores[0]), float(rollout.scores[1])]
    assert batch.advantages[0, start : start + 3].tolist() == pytest.approx([1.5, 1.5, paid[0] - 2.0])
    assert batch.advantages[1, start:].tolist() == pytest.approx([paid[1] - 0.5, 0, 0])
    assert batch.values is not None
    assert batch.values[0, start:].tolist() == pytest.approx([0.5, 0.5, 2.0])
    assert batch.returns[0, start:].tolist() == pytest.approx([paid[0]] * 3)
    assert batch.metrics["branch_points"] == 2


def test_each_state_is_played_on_once(make_venv: MakeVenv, word_model: Path, monkeypatch: pytest.MonkeyPatch):
    """However many responses pass through it; and each from its own prompt."""
    trainer = make(make_venv, word_model, {"prompts": ["d e", "a b"]}, continuations=3)
    rollout = rollout_of([[A, A], [A, B], [B, A], [A, A]], trainer.policy.language_model)
    rollout.chosen_prompts = [0, 0, 0, 1]
    asked = []

    def play(trainer: Any, prompts: list[Any], responses: list[Any], count: int) -> torch.Tensor:
        asked.extend(zip(prompts, responses, strict=True))
        assert count == 3
        return torch.zeros(len(prompts), count)

    monkeypatch.setattr("textgen_env.agents.vine_ppo.play_on", play)
    trainer.advantages(rollout)
    assert sorted(asked) == [(0, ()), (0, (A,)), (0, (B,)), (1, ()), (1, (A,))]


def test_what_is_begun_counts_for_nothing(make_venv: MakeVenv, word_model: Path):
    """A scorer that pays each token as it is written: the returns after "a" are without what "a" was paid."""
    trainer = make(make_venv, word_model, {"scorer": {"name": "dense", "scorer": score_by_length}}, kl_coef=0.0)
    whole = play_on(trainer, [0], [()], 200)
    after = play_on(trainer, [0], [(A,)], 200)
    assert set(whole.flatten().tolist()) == {0.0, 1.0, 2.0}
    assert set(after.flatten().tolist()) == {0.0, 1.0}


def score_by_length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


def test_what_it_cannot_do_is_refused(make_venv: MakeVenv, word_model: Path):
    trainer = make(make_venv, word_model)
    rollout = rollout_of([[A, A]], trainer.policy.language_model)
    rollout.chosen_prompts = None
    with pytest.raises(ValueError, match=r"chosen_prompts is None.*collect with prompts="):
        trainer.advantages(rollout)
    with pytest.raises(ValueError, match="this environment answers: use PPO there"):
        make(make_venv, word_model, {"responder": "echo", "turn_strings": ["a"]})
    with pytest.raises(ValueError, match="continuations=0 must be"):
        VinePPOConfig(continuations=0)


def test_it_learns(make_venv: MakeVenv, word_model: Path):
    """The optimum of two tokens is "a a", worth 2.3."""
    trainer = make(make_venv, word_model, {"num_envs": 8}, episodes=32, kl_coef=0.0, lr=3e-3, whiten=True)
    history = trainer.train(12)
    assert history[0]["score"] < 1.3 < 2.0 < history[-1]["score"]
