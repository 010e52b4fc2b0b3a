"""Rows of ``gradients.py`` on expectations over actions, and on scores that see the policy.

What lives here: `ExpectedPolicyGradient` with values that are right or of one continuation each, the task whose score
is a probability of the policy's, the sections. What does not: measuring (``gradients.py``), the other rows
(``gradient_rows.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.enumerated import EOS, RESPONSES, A, B, EnumeratedTask
from benchmarks.gradient_rows import SIZES, Loss, Row, Sample, plugged_in, sample_of, trained_by
from textgen_env.agents import losses
from textgen_env.agents.advantages import leave_one_out
from textgen_env.agents.expected import ExpectedConfig, ExpectedPolicyGradient
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.rollout import Rollout

Worths = dict[tuple[int, ...], float]
"""What an action is worth, by all that is written with it."""


class Told(ExpectedPolicyGradient):
    """Its values are what it is told."""

    told: Worths

    def values(self, branching: Any, nodes: Any, children: Sequence[Any]) -> Tensor:
        """See `ExpectedPolicyGradient.values`."""
        return torch.tensor([self.told[child.tokens] for child in children], dtype=torch.float64)


def right(task: EnumeratedTask) -> Worths:
    """Q of every action."""
    found, values = {}, task.values()
    for response in RESPONSES:
        found[response] = _paid(task, response, len(response) - 1)
        if len(response) > 1:
            first = response[:1]
            k1 = task.old_log_probs[response][0] - task.ref_log_probs[response][0]
            found[first] = values[first] - task.kl_coef * float(k1)
    return found


def continued(task: EnumeratedTask) -> Iterator[tuple[float, Worths]]:
    """The same, but of the first token by one continuation of each: all that they can be, with their probability."""
    known = right(task)

    def ends(first: int) -> list[tuple[float, float]]:
        below = [response for response in RESPONSES if response[0] == first]
        return [(float(task.old_log_probs[r][1].exp()), _paid(task, r, 0)) for r in below]

    for (p, of_a), (q, of_b) in product(ends(A), ends(B)):
        yield p * q, {**known, (A,): of_a, (B,): of_b}


def _paid(task: EnumeratedTask, response: tuple[int, ...], begun: int) -> float:
    """For a response's tokens from one on."""
    k1 = (task.old_log_probs[response] - task.ref_log_probs[response])[begun:].sum()
    return task.score([task.policy.decode(list(response))])[0] - task.kl_coef * float(k1)


def expected(*, continuations: bool = False, **settings: Any) -> Callable[[EnumeratedTask], Loss]:
    """The trainer, with values that are right, or of one continuation each."""

    def make(task: EnumeratedTask) -> Loss:
        config = ExpectedConfig(**SIZES, kl_coef=task.kl_coef, actions=0, **settings)
        trainer = Told(task.make_venv(), ActorCritic(task.policy, ActorConfig()), config)
        trainer.told = right(task)

        def loss(rollout: Rollout) -> Tensor:
            return trainer.loss(trainer.advantages(rollout), torch.arange(len(rollout.texts)))[0]

        def outcomes(rollout: Rollout) -> Iterator[tuple[float, Tensor]]:
            for chance, trainer.told in continued(task):
                yield chance, loss(rollout)
            trainer.told = right(task)

        if continuations:
            loss.outcomes = outcomes  # type: ignore[attr-defined]
        return loss

    return make


class SeeingTask(EnumeratedTask):
    """Its score is how likely the policy then goes on with "b": a function of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.score = self._score

    def _score(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._by_text[text] for text in completions]

    @cached_property
    def seen(self) -> dict[tuple[int, ...], Tensor]:
        """π("b") behind each response, whose end is left out, with gradient."""
        written = {response: [token for token in response if token != EOS] for response in RESPONSES}
        return {response: self._distribution(self.policy, tokens)[B].exp() for response, tokens in written.items()}

    @cached_property
    def _by_text(self) -> dict[str, float]:
        return {self.policy.decode(list(response)): float(score.detach()) for response, score in self.seen.items()}

    def returns(self, response: tuple[int, ...], log_probs: Tensor) -> Tensor:
        """With gradient through the score."""
        return self.seen[response] - self.kl_coef * (log_probs - self.ref_log_probs[response]).sum()


def with_the_gradient_of_the_score(task: EnumeratedTask) -> Loss:
    """RLOO, and ∇R of each response."""
    assert isinstance(task, SeeingTask)

    def loss(rollout: Rollout) -> Tensor:
        texts = zip(rollout.input_ids, rollout.response_mask.bool(), strict=True)
        own = torch.stack([task.seen[tuple(ids[mask].tolist())] for ids, mask in texts])
        return _rloo(sample_of(task, rollout, len(rollout.texts))) - own.mean()

    return loss


def _rloo(sample: Sample) -> Tensor:
    advantage = leave_one_out(sample.scores, sample.mask, sample.group_size)
    return losses.reinforce_loss(sample.log_probs, advantage, sample.mask)


PAIR = ((2, 1),)
EXPECTED = [
    Row("RLOO", trained_by(Reinforce, ReinforceConfig, group_size=2), PAIR),
    Row("first token, one continuation each; RLOO", expected(continuations=True, group_size=2), PAIR),
    Row("first token, Q right; RLOO", expected(group_size=2), PAIR),
    Row("both tokens, one continuation each", expected(continuations=True, group_size=2, at="every", every=1), PAIR),
    Row("both tokens, Q right", expected(group_size=2, at="every", every=1), PAIR),
]
SEEING = [
    Row("RLOO, the score a constant", plugged_in(_rloo), PAIR),
    Row("RLOO, and the score's own gradient", with_the_gradient_of_the_score, PAIR),
]


def tasks() -> Iterator[tuple[str, EnumeratedTask, list[Row]]]:
    """Title, task, rows."""
    yield "Score and KL, expectations over actions", EnumeratedTask(kl_coef=0.3), EXPECTED
    yield "A score that sees the policy", SeeingTask(), SEEING
