"""Expected policy gradients: their expectation against the true gradient, by enumeration of responses and of draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from two_tokens import EOS, PROMPT, RESPONSES, TWO_TOKENS, A, B, groups, masked_log_probs, objective, rollout_of, score

from textgen_env.agents.branching import Branching, Node
from textgen_env.agents.expected import ExpectedConfig, ExpectedPolicyGradient
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.lm.language_model import LanguageModel

MakeVenv = Callable[..., gym.vector.VectorEnv]


def make(make_venv: MakeVenv, source: Path, environment: dict[str, Any] | None = None, **settings: Any) -> Any:
    sizes = {"episodes": 12, "minibatch_size": 12, "micro_batch_size": 12, "lr": 1e-2, "kl_coef": 0.3}
    config = ExpectedConfig(**{**sizes, "group_size": 1, "actions": 0, **settings})
    policy = ActorCritic(LanguageModel(source), ActorConfig())
    return ExpectedPolicyGradient(make_venv(**{**TWO_TOKENS, **(environment or {})}), policy, config)


def moved(trainer: Any) -> Any:
    """Away from the reference, by updates of its own."""
    trainer.train(2)
    return trainer


def worth(trainer: Any, source: Path, response: list[int], begun: int) -> float:
    """What is paid for a response's tokens after the first so many; the weights of a trainer stay as they are here."""
    known = trainer.__dict__.setdefault("known", {})
    if (key := (*response, begun)) not in known:
        known[key] = _worth(trainer, source, response, begun)
    return float(known[key])


def _worth(trainer: Any, source: Path, response: list[int], begun: int) -> float:
    reference = LanguageModel(source).model
    with torch.no_grad():
        kl = sum(
            sign * (masked_log_probs(model, response) - masked_log_probs(model, response[:begun]))
            for sign, model in ((1, trainer.policy.actor), (-1, reference))
        )
    return score([trainer.policy.language_model.decode(response)])[0] - trainer.kl.value * float(kl)


def below(trainer: Any, prefix: list[int]) -> list[tuple[float, list[int]]]:
    """The responses that go on from a prefix, each with its probability there."""
    found = [response for response in RESPONSES if response[: len(prefix)] == prefix]
    with torch.no_grad():
        log_probs = torch.stack([masked_log_probs(trainer.policy.actor, response) for response in found])
        log_probs = log_probs - masked_log_probs(trainer.policy.actor, prefix)
    return list(zip(log_probs.exp().tolist(), found, strict=True))


def true_q(trainer: Any, source: Path) -> Any:
    """In the place of `values`: Q of each action, by enumeration."""

    def values(branching: Branching, nodes: list[Node], children: list[Node]) -> torch.Tensor:
        found = []
        for node, child in zip(nodes, children, strict=True):
            ends = below(trainer, list(child.tokens))
            found.append(sum(p * worth(trainer, source, response, len(node.tokens)) for p, response in ends))
        return torch.tensor(found, dtype=torch.float64)

    return values


def drawn_q(trainer: Any, source: Path) -> Iterator[tuple[float, Any]]:
    """The same with one continuation of each action: everything that those can be, with its probability."""
    for (p, after_a), (q, after_b) in product(below(trainer, [A]), below(trainer, [B])):
        ends = {(EOS,): [EOS], (A,): after_a, (B,): after_b}

        def values(_: Any, nodes: Any, children: list[Node], ends: Any = ends) -> torch.Tensor:
            return torch.tensor([worth(trainer, source, ends[child.tokens], 0) for child in children])

        yield p * q, values


def gradient(trainer: Any, rollout: Any) -> torch.Tensor:
    batch = trainer.advantages(rollout)
    loss, parts = trainer.loss(batch, torch.arange(len(rollout.texts)))
    assert parts["ratio_error"] < 1e-5
    found = torch.autograd.grad(loss, list(trainer.policy.actor.parameters()))
    return torch.cat([g.flatten() for g in found])


def exact_gradient(trainer: Any, source: Path) -> torch.Tensor:
    found = torch.autograd.grad(-objective(trainer, source), list(trainer.policy.actor.parameters()))
    exact = torch.cat([g.flatten() for g in found])
    assert exact.norm() > 0.05
    return exact


def same(found: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(found, exact, atol=5e-6, rtol=1e-3)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_of_one_token_the_gradient_is_exact(kl_coef: float, make_venv: MakeVenv, word_model: Path):
    """Whatever was sampled; nothing in the place of the trainer's own estimates."""
    trainer = moved(make(make_venv, word_model, {"max_new_tokens": 1}, kl_coef=kl_coef))
    responses = [[EOS], [A], [B]]
    total, reference = torch.zeros(()), LanguageModel(word_model).model
    for response in responses:
        log_prob = masked_log_probs(trainer.policy.actor, response)
        paid = score([trainer.policy.language_model.decode(response)])[0]
        kl = log_prob - masked_log_probs(reference, response).detach()
        total = total + log_prob.exp() * (paid - kl_coef * kl)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-total, list(trainer.policy.actor.parameters()))])
    assert exact.norm() > 0.02
    for response in responses:
        same(gradient(trainer, rollout_of([response], trainer.policy.language_model)), exact)


@pytest.mark.parametrize(("at", "size"), [("first", 1), ("first", 2), ("every", 1)])
def test_the_expected_gradient_is_that_of_the_objective(at: str, size: int, make_venv: MakeVenv, word_model: Path):
    """With the right Q: at the first token and REINFORCE after it, or at both."""
    trainer = moved(make(make_venv, word_model, at=at, every=1, group_size=size))
    trainer.values = true_q(trainer, word_model)
    found = [(weight, gradient(trainer, rollout)) for weight, rollout in groups(trainer.policy.language_model, size)]
    exact = exact_gradient(trainer, word_model)
    same(sum(weight * g for weight, g in found), exact)  # type: ignore[arg-type]


def test_the_noise_of_continuations_is_no_bias(make_venv: MakeVenv, word_model: Path):
    trainer = moved(make(make_venv, word_model))
    total: Any = 0.0
    for chance, values in drawn_q(trainer, word_model):
        trainer.values = values
        for weight, rollout in groups(trainer.policy.language_model, 1):
            total = total + chance * weight * gradient(trainer, rollout)
    same(total, exact_gradient(trainer, word_model))


@pytest.mark.parametrize("sampled", [1, 2])
def test_actions_that_are_drawn_stand_for_the_rest(
    sampled: int, make_venv: MakeVenv, word_model: Path, monkeypatch: pytest.MonkeyPatch
):
    """One likeliest action and some of the other two, over everything that can be drawn."""
    trainer = moved(make(make_venv, word_model, actions=1, sampled=sampled))
    trainer.values = true_q(trainer, word_model)
    with torch.no_grad():
        probs = {token: float(masked_log_probs(trainer.policy.actor, [token]).exp()) for token in (EOS, A, B)}
    likeliest = max(probs, key=lambda token: probs[token])
    others = {token: p / (1 - probs[likeliest]) for token, p in probs.items() if token != likeliest}
    total: Any = 0.0
    for drawn in product(others, repeat=sampled):
        monkeypatch.setattr(torch, "multinomial", lambda *_, drawn=drawn, **__: torch.tensor([drawn]))
        chance = float(torch.tensor([others[token] for token in drawn]).prod())
        for weight, rollout in groups(trainer.policy.language_model, 1):
            total = total + chance * weight * gradient(trainer, rollout)
    same(total, exact_gradient(trainer, word_model))


def test_values_are_unbiased(make_venv: MakeVenv, word_model: Path):
    """3,000 continuations of each action, KL and masks included, within 4 standard errors of Q."""
    trainer = moved(make(make_venv, word_model, {"num_envs": 64}, episodes=64, continuations=1))
    branching = Branching(trainer.venv, trainer.policy.language_model, generator=trainer.sampler)
    root = branching.root(0)
    log_probs = branching.read([root]).log_probs[0]
    actions = [EOS, A, B]
    children = branching.step([root] * 3, actions, [float(log_probs[token]) for token in actions])
    many = [child for child in children for _ in range(3000)]
    found = trainer.values(branching, [root] * len(many), many).view(3, -1)
    truth = true_q(trainer, word_model)(branching, [root] * 3, children)
    assert found[0].tolist() == pytest.approx([float(truth[0])] * 3000, abs=1e-5)  # it ends there
    errors = (found[1:].mean(dim=1) - truth[1:]) / (found[1:].std(dim=1) / 3000**0.5)
    assert errors.abs().max() < 4
    assert truth.std() > 0.1
    trainer.config.continuations = 3000
    again = trainer.values(branching, [root] * 3, children)
    errors = (again[1:] - truth[1:]) / (found[1:].std(dim=1) / 3000**0.5)
    assert errors.abs().max() < 4


def test_states_are_chosen_before_their_token(make_venv: MakeVenv, word_model: Path):
    """At the first token, every second one, where entropy is high, and behind a word."""
    trainer = make(make_venv, word_model, {"max_new_tokens": 3}, kl_coef=0.0)
    model = trainer.policy.language_model
    rollout = rollout_of([[A, B, EOS], [B, A, A], [EOS]], model)
    rows = [torch.arange(3)]

    def chosen(**settings: Any) -> list[list[int]]:
        trainer.config = ExpectedConfig(group_size=1, **settings)
        grid = trainer._chosen(rollout, rows)
        return [[column - len(PROMPT) for column in row.nonzero().flatten().tolist()] for row in grid]

    assert chosen(at="first") == [[0], [0], [0]]
    assert chosen(at="every", every=2) == [[0, 2], [0, 2], [0]]
    assert chosen(at="after", after="a") == [[1], [2], []]
    entropies = []
    for response in [[A, B, EOS], [B, A, A], [EOS]]:
        entropies.append([])
        for t in range(len(response)):
            with torch.no_grad():
                logits = model.model(torch.tensor([PROMPT + response[:t]])).logits[0, -1][[EOS, A, B]]
            entropies[-1].append(float(torch.distributions.Categorical(logits=logits).entropy()))
    middle = sorted(x for row in entropies for x in row)[3] - 1e-6
    wanted = [[t for t, x in enumerate(row) if x >= middle] for row in entropies]
    assert chosen(at="entropy", min_entropy=middle) == wanted
    assert 0 < sum(map(len, wanted)) < 7


def test_states_that_responses_share_are_tried_once(make_venv: MakeVenv, word_model: Path):
    trainer = make(make_venv, word_model, group_size=2, at="every", every=1)
    batch = trainer.advantages(rollout_of([[A, B], [A, EOS], [B, A], [EOS]], trainer.policy.language_model))
    first = len(PROMPT)
    assert batch.states[:, first:].tolist() == [[0, 1], [0, 1], [0, 2], [0, -1]]
    assert batch.metrics["expected_states"] == 3
    assert not batch.advantages.any()  # nothing is left to REINFORCE
    assert batch.support.weights.sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_it_learns_with_the_defaults_of_the_command(make_venv: MakeVenv, word_model: Path):
    """Eight likeliest actions, one more, a continuation each."""
    task = {"forbidden_tokens": [], "max_new_tokens": 3, "num_envs": 8}
    settings = {"group_size": 4, "episodes": 32, "actions": 8, "kl_coef": 0.01, "at": "every", "every": 2}
    trainer = make(make_venv, word_model, task, **settings, minibatch_size=16, micro_batch_size=16)
    history = trainer.train(12)
    assert history[-1]["score"] > history[0]["score"] + 0.3
    assert history[0]["expected_decodes"] > 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"at": "last"}, "at='last' must be"),
    ({"at": "after"}, 'after=None goes with at="after"'),
    ({"after": "x"}, "after='x' goes with at=\"after\", and at='first' was given"),
    ({"sampled": 0}, "sampled=0 must be"),
    ({"actions": -1}, "actions=-1 must be"),
    ({"importance_weights": "token"}, "importance_weights='token' are of sampled actions"),
    ({"reset_share": 0.5}, "reset_share=0.5 must be 0"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ExpectedConfig(**settings)


def test_environments_that_are_refused(make_venv: MakeVenv, word_model: Path):
    with pytest.raises(ValueError, match="this environment answers: use REINFORCE"):
        make(make_venv, word_model, {"responder": lambda text: "a", "max_turns": 2, "max_reply_tokens": 2})
    with pytest.raises(ValueError, match=r"mask_top_p=0\.9 narrows the sampler by a copy"):
        make(make_venv, word_model, mask_top_p=0.9)


def test_begun_responses_are_refused(make_venv: MakeVenv, word_model: Path):
    trainer = make(make_venv, word_model)
    end = trainer.policy.language_model.end_token_id
    played = trainer.collect([0, 0, 0, 0, 0, 0, 0, 0])
    begun = next(ids[:1].tolist() for ids in played.per_response(played.input_ids) if ids[0] != end)
    rollout = trainer.collect([0, 0, 0, 0], responses=[begun] * 4)
    with pytest.raises(ValueError, match="responses that begin with given tokens"):
        trainer.advantages(rollout)
