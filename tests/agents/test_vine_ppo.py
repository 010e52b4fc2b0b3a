"""VinePPO: its values against enumeration, its expected gradient against the true one, advantages by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, PROMPT, RESPONSES, TWO_TOKENS, A, B, groups, masked_log_probs, objective, rollout_of, score

from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.response_tree import tree_advantages
from textgen_env.agents.rollout import Rollout
from textgen_env.agents.rollout_parts import whole_responses
from textgen_env.agents.vine_ppo import State, VinePPO, VinePPOConfig, play_on
from textgen_env.kl import k1
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch

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


def trees(model: LanguageModel) -> Iterator[tuple[float, Rollout]]:
    """Everything that two responses can be which part after their first token with one more each, and how likely."""
    with torch.no_grad():
        log_prob = {tuple(r): float(masked_log_probs(model.model, r)) for r in RESPONSES}
        first = {token: float(masked_log_probs(model.model, [token])) for token in (A, B)}
    for roots in product(RESPONSES, repeat=2):
        ways = [[[root[0], second] for second in (EOS, A, B)] for root in roots if len(root) == 2]
        for branches in product(*ways):
            chosen = [log_prob[tuple(r)] for r in roots] + [log_prob[tuple(b)] - first[b[0]] for b in branches]
            rollout = rollout_of([*roots, *branches], model)
            begun = torch.tensor([0, 0] + [1] * len(branches))
            mask = rollout.response_mask.clone()
            mask[2:, len(PROMPT)] = 0
            yield (
                math.exp(sum(chosen)),
                replace(rollout, tokens=rollout.tokens._replace(response_mask=mask), begun=begun),
            )


def test_branches_that_are_learned_from_leave_the_gradient_as_it_is(make_venv: MakeVenv, word_model: Path):
    """E[∇L]·max_new_tokens = −∇(E[score] − β·KL) over all trees, each token's advantage from its siblings alone."""
    trainer = make(make_venv, word_model, kl_coef=0.3, continuations=2, learn_from="all", whiten=False)
    trainer.train(2)
    params = list(trainer.policy.actor.parameters())
    total, mass = torch.zeros(sum(p.numel() for p in params)), 0.0
    for weight, rollout in trees(trainer.policy.language_model):
        loss, parts = trainer.loss(trainer.advantages(rollout), torch.arange(len(rollout.texts)))
        assert parts["ratio_error"] == 0
        total += weight * torch.cat([g.flatten() for g in torch.autograd.grad(2 * loss, params)])
        mass += weight
    assert mass == pytest.approx(1)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-objective(trainer, word_model), params)])
    assert exact.norm() > 0.05
    torch.testing.assert_close(total, exact, atol=5e-6, rtol=1e-3)


def test_a_tree_by_hand():
    """Branch points every token of three: two responses part at the start, one of them at "a" and at "a a"."""
    rows = [[A, A, A], [EOS], [A, B], [A, A, B]]
    begun, paid = [0, 0, 1, 2], [[1.0, 0, 4], [2.0], [7.0], [8.0]]
    tokens = TokenBatch.from_tokens([PROMPT] * 4, rows)
    rewards, mask = torch.zeros(tokens.input_ids.shape), tokens.response_mask.clone()
    for row, (start, amounts) in enumerate(zip(begun, paid, strict=True)):
        mask[row, len(PROMPT) : len(PROMPT) + start] = 0
        rewards[row, len(PROMPT) + start : len(PROMPT) + start + len(amounts)] = torch.tensor(amounts)
    rollout = replace(
        blank_rollout(tokens._replace(response_mask=mask)), chosen_prompts=[5] * 4, begun=torch.tensor(begun)
    )
    advantages, values, weights, branch_points = tree_advantages(rollout, rewards, 2, 1)
    # worth: at "a a" 4 and 8; at "a" 0 + (4 + 8)/2 = 6 and 7; at the start 1 + (6 + 7)/2 = 7.5 and 2
    start = len(PROMPT)
    assert advantages[0, start:].tolist() == [5.5, -1.0, -4.0]
    assert advantages[1:, start:].tolist() == [[-5.5, 0, 0], [0, 1.0, 0], [0, 0, 4.0]]
    assert values[0, start:].tolist() == [2.0, 7.0, 8.0]
    assert weights[0, start:].tolist() == [2.0, 1.0, 0.5]  # B/roots = 2, halved by each branch point
    assert branch_points == 3


def test_a_tree_is_grown_as_asked_for(make_venv: MakeVenv, word_model: Path):
    """Whatever is alive at a branch point becomes k responses with the same beginning, from the same prompt."""
    environment = {"prompts": ["d e", "a b"], "max_new_tokens": 6}
    trainer = make(make_venv, word_model, environment, continuations=3, branch_every=2, learn_from="all")
    rollout = trainer.collect()
    prompts, begun = rollout.chosen_prompts, rollout.begun
    assert prompts is not None
    assert begun is not None
    whole = [tuple(tokens) for tokens in whole_responses(rollout)]
    assert begun[:12].eq(0).all()
    assert [prompts[i] for i in range(12)] == [prompts[i - i % 3] for i in range(12)]
    for at in (0, 2, 4):
        alive = Counter((p, w[:at]) for p, w, b in zip(prompts, whole, begun, strict=True) if b <= at and len(w) > at)
        before = Counter((p, w[:at]) for p, w, b in zip(prompts, whole, begun, strict=True) if b < at < len(w))
        assert at == 0 or alive == Counter({state: 3 * count for state, count in before.items()})
        assert min(alive.values()) >= 3
    assert [trainer.env.prompts[p].text for p in prompts] == rollout.prompts
    assert trainer.policy.language_model.decode(whole[-1]).split() == rollout.texts[-1].split()
    batch = trainer.advantages(rollout)
    assert batch.metrics["score"] == pytest.approx(float(rollout.scores[:12].mean()))  # of those from the start alone
    kl = k1(batch.old_log_probs, batch.ref_log_probs)[:12].sum(dim=1).mean()
    assert batch.metrics["kl_per_response"] == pytest.approx(float(kl), abs=1e-6)


def blank_rollout(tokens: TokenBatch) -> Rollout:
    count, nothing = len(tokens.input_ids), torch.zeros(len(tokens.input_ids), dtype=torch.bool)
    grid, words = torch.zeros(tokens.input_ids.shape), [""] * count
    return Rollout(tokens, grid, grid, ~nothing, nothing, torch.zeros(count), words, words, words, None)


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
    with pytest.raises(ValueError, match=r"continuations=5 must be at least 2 and divide episodes=128 with learn_from"):
        VinePPOConfig(continuations=5, learn_from="all")


@pytest.mark.parametrize("learn_from", ["responses", "all"])
def test_it_learns(learn_from: str, make_venv: MakeVenv, word_model: Path):
    """The optimum of two tokens is "a a", worth 2.3."""
    settings = {"kl_coef": 0.0, "lr": 3e-3, "whiten": True, "learn_from": learn_from}
    trainer = make(make_venv, word_model, {"num_envs": 8}, episodes=32, **settings)
    history = trainer.train(12)
    assert history[0]["score"] < 1.3 < 2.0 < history[-1]["score"]
