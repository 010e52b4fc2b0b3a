"""The estimators and losses whose expected gradient ``gradients.py`` measures.

What lives here: `Row`, what a plugged-in loss is given (`Sample`), this package's trainers as rows, the rows of scores.
What does not: those of KL (``gradient_kl_rows.py``), TRL's own code (``peers/trl_losses.py``), measuring.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.enumerated import RESPONSES, STATES, EnumeratedTask
from textgen_env.agents import losses
from textgen_env.agents.advantages import leave_one_out
from textgen_env.agents.grpo import GRPO, GRPOConfig
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.rollout import Rollout
from textgen_env.agents.training.on_policy import OnPolicyTrainer, Scores

Loss: TypeAlias = Callable[[Rollout], Tensor]
"""A batch of responses → the scalar that is minimised, with gradient into the task's policy."""
SIZES = dict.fromkeys(("episodes", "minibatch_size", "micro_batch_size"), 16384)  # one pass each
WRONG = {(): 0.5, (1,): -0.8, (2,): 0.6}
"""How far off the critic is that is called wrong, in each state."""


@dataclass
class Sample:
    """What a plugged-in loss may read of a batch; (B, T) tensors of response tokens alone, T = 2.

    Attributes:
        log_probs: log π(a|s) of the policy whose gradient is asked for, with gradient.
        old_log_probs: of the policy that the responses were drawn from.
        ref_log_probs: of the reference.
        full_kl: Σ_a π(a|s)·log π(a|s)/π_ref(a|s) at each state, with gradient.
        untruncated_log_probs: ``log_probs`` over all tokens, where the responses are drawn from a nucleus.
        scores: (B,).
        mask: 1 at the tokens of a response.
        group_size: responses that are compared with each other, in adjacent rows.
        kl_coef: β.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    full_kl: Tensor
    untruncated_log_probs: Tensor
    scores: Tensor
    mask: Tensor
    group_size: int
    kl_coef: float


@dataclass(frozen=True)
class Row:
    """A line of a table: what makes the loss for a task, and the batches (group size, groups) it is measured on."""

    name: str
    make: Callable[[EnumeratedTask], Loss]
    batches: tuple[tuple[int, int], ...] = ((2, 1), (4, 1))
    default: bool = False


def trained_by(
    trainer: type[OnPolicyTrainer],
    config: Any,
    *,
    critic: dict[tuple[int, ...], float] | None = None,
    first_pass: bool = False,
    **settings: Any,
) -> Callable[[EnumeratedTask], Loss]:
    """A trainer of this package, with its own `advantages` and `loss`.

    Args:
        trainer, config: the class, and that of its settings.
        critic: how far V is from the truth in each state; None: there is no critic.
        first_pass: old log-probs are those of the policy whose gradient is asked for, whoever wrote the responses: the
            first pass over a rollout of stale weights, of lower precision or of another engine.
        settings: of the algorithm, but for sizes and β.
    """

    def make(task: EnumeratedTask) -> Loss:
        chosen = config(**SIZES, kl_coef=task.kl_coef, top_p=task.top_p, **settings)
        policy = ActorCritic(task.policy, ActorConfig() if critic is None else PolicyConfig(critic="detached"))
        made = trainer(task.make_venv(), policy, chosen)
        if critic is not None:
            truth = task.values(later_kl=chosen.kl_in == "both")
            _say(made, {state: truth[state] + critic[state] for state in STATES})

        def loss(rollout: Rollout) -> Tensor:
            with nullcontext() if first_pass else task.behaving():
                batch = made.advantages(rollout)
            return made.loss(batch, torch.arange(len(rollout.texts)))[0]

        return loss

    return make


def _say(trainer: OnPolicyTrainer, values: dict[tuple[int, ...], float]) -> None:
    """Let the critic say exactly this."""
    scored = trainer.score

    def score(rollout: Rollout) -> Scores:
        scores = scored(rollout)
        said = torch.zeros_like(scores.log_probs)
        for row, mask in enumerate(rollout.response_mask.bool()):
            columns = mask.nonzero().flatten().tolist()
            written = rollout.input_ids[row, columns].tolist()
            for t, column in enumerate(columns):
                said[row, column] = values[tuple(written[:t])]
        return scores._replace(values=said)

    trainer.score = score  # type: ignore[method-assign]


def plugged_in(function: Callable[[Sample], Tensor], group_size: int | None = None) -> Callable[[EnumeratedTask], Loss]:
    """Anybody's loss, as a function of a `Sample`; None: a batch is one group."""

    def make(task: EnumeratedTask) -> Loss:
        return lambda rollout: function(sample_of(task, rollout, group_size or len(rollout.texts)))

    return make


def sample_of(task: EnumeratedTask, rollout: Rollout, group_size: int) -> Sample:
    """The tensors of a batch, by the task's oracles."""
    texts = zip(rollout.input_ids, rollout.response_mask.bool(), strict=True)
    number = torch.tensor([RESPONSES.index(tuple(ids[mask].tolist())) for ids, mask in texts])

    def batch(per_response: dict[tuple[int, ...], Tensor]) -> Tensor:
        """(B, T) of what each possible response has."""
        rows = [torch.nn.functional.pad(per_response[r], (0, 2 - len(r))) for r in RESPONSES]
        return torch.stack(rows)[number]

    return Sample(
        log_probs=batch(task.log_probs),
        old_log_probs=batch(task.old_log_probs),
        ref_log_probs=batch(task.ref_log_probs),
        untruncated_log_probs=batch(task.whole.log_probs),
        full_kl=batch({r: torch.stack([task.kls[r[:t]] for t in range(len(r))]) for r in RESPONSES}),
        scores=rollout.scores.double(),
        mask=batch({r: torch.ones(len(r), dtype=torch.long) for r in RESPONSES}),
        group_size=group_size,
        kl_coef=task.kl_coef,
    )


# --- losses as they were published ------------------------------------------------------------------------------------


def weighted(weight: Callable[[Sample], Tensor]) -> Callable[[Sample], Tensor]:
    """−1/B·Σ_i w_i·A_i·Σ_t log π with leave-one-out advantages and constant weights (B, 1) or (B, T)."""

    def loss(sample: Sample) -> Tensor:
        advantage = leave_one_out(sample.scores, sample.mask, sample.group_size)
        return losses.reinforce_loss(sample.log_probs, weight(sample).detach() * advantage, sample.mask)

    return loss


def token_ratio(sample: Sample) -> Tensor:
    """(B, T) π(a|s)/π_old(a|s), as in PPO's surrogate: the states are still those of the old policy."""
    return (sample.log_probs - sample.old_log_probs).exp()


def response_ratio(sample: Sample) -> Tensor:
    """(B, 1) π(y)/π_old(y)."""
    return ((sample.log_probs - sample.old_log_probs) * sample.mask).sum(dim=1, keepdim=True).exp()


def truncated(ratio: Callable[[Sample], Tensor], limit: float = 1.1) -> Callable[[Sample], Tensor]:
    """Held below a limit (truncated importance sampling; Ionides 2008)."""
    return lambda sample: ratio(sample).clamp(max=limit)


def of_all_tokens(sample: Sample) -> Tensor:
    """REINFORCE with log π over all tokens, though the nucleus was sampled from."""
    return losses.reinforce_loss(
        sample.untruncated_log_probs, leave_one_out(sample.scores, sample.mask, sample.group_size), sample.mask
    )


def corrected_of_all_tokens(sample: Sample) -> Tensor:
    """The same, times π(y)/π_sampled(y), which takes the missing tail for a difference of policies."""
    drift = ((sample.untruncated_log_probs - sample.old_log_probs) * sample.mask).sum(dim=1, keepdim=True)
    advantage = leave_one_out(sample.scores, sample.mask, sample.group_size)
    return losses.reinforce_loss(sample.untruncated_log_probs, drift.exp().detach() * advantage, sample.mask)


# --- the tables -------------------------------------------------------------------------------------------------------

RIGHT: dict[tuple[int, ...], float] = dict.fromkeys(STATES, 0.0)
GROUPS = ((2, 1), (2, 2))
PAPER = {"scale": "group", "length_norm": "response"}
NO_STD = {"scale": "none", "length_norm": "response"}
DAPO = {"scale": "group", "length_norm": "token", "clip_high": 0.28}

SCORE = [
    Row("REINFORCE, no baseline", trained_by(Reinforce, ReinforceConfig, baseline="none")),
    Row("REINFORCE, running mean", trained_by(Reinforce, ReinforceConfig, baseline="mean")),
    Row("RLOO", trained_by(Reinforce, ReinforceConfig, baseline="leave_one_out", group_size=2), GROUPS, default=True),
    Row("SCST (greedy)", trained_by(Reinforce, ReinforceConfig, baseline="greedy", group_size=1), ((2, 1),)),
    Row("REINFORCE, V right", trained_by(Reinforce, ReinforceConfig, critic=RIGHT, baseline="learned")),
    Row("REINFORCE, V wrong", trained_by(Reinforce, ReinforceConfig, critic=WRONG, baseline="learned")),
    Row("PPO, λ = 0.95, V right", trained_by(PPO, PPOConfig, critic=RIGHT), default=True),
    Row("PPO, λ = 0.95, V wrong", trained_by(PPO, PPOConfig, critic=WRONG)),
    Row("PPO, λ = 1, V wrong", trained_by(PPO, PPOConfig, critic=WRONG, lam=1.0)),
    Row("PPO, λ = 1, V wrong, not whitened", trained_by(PPO, PPOConfig, critic=WRONG, lam=1.0, whiten=False)),
    Row("GRPO, our default (Dr. GRPO)", trained_by(GRPO, GRPOConfig, group_size=2), GROUPS, default=True),
    Row("GRPO, means per response", trained_by(GRPO, GRPOConfig, group_size=2, **NO_STD), GROUPS),
    Row("GRPO, as published", trained_by(GRPO, GRPOConfig, group_size=4, **PAPER), ((4, 1),)),
    Row("DAPO", trained_by(GRPO, GRPOConfig, group_size=4, **DAPO), ((4, 1),)),
    Row("GSPO", trained_by(GRPO, GRPOConfig, group_size=4, ratio="sequence", **PAPER), ((4, 1),)),
]
OFF_POLICY_SCORE = [
    Row("REINFORCE, no correction", plugged_in(weighted(lambda sample: torch.ones(())))),
    Row("π/π_old per token (PPO's surrogate)", plugged_in(weighted(token_ratio))),
    Row("π/π_old per token, at most 1.1", plugged_in(weighted(truncated(token_ratio)))),
    Row("π/π_old of the response", plugged_in(weighted(response_ratio))),
    Row("π/π_old of the response, at most 1.1", plugged_in(weighted(truncated(response_ratio)))),
    Row("GRPO, our default, clipped at 0.2", trained_by(GRPO, GRPOConfig, group_size=2), GROUPS),
]
STALE = {"first_pass": True, "importance_weights": "response"}
BY_TOKEN = {"first_pass": True, "importance_weights": "token"}
PAIRED = {"group_size": 2}
TRAINERS_OFF_POLICY = [
    Row("RLOO, no weights", trained_by(Reinforce, ReinforceConfig, first_pass=True, **PAIRED), GROUPS),
    Row("RLOO, weights of tokens", trained_by(Reinforce, ReinforceConfig, **PAIRED, **BY_TOKEN), GROUPS),
    Row("RLOO, weights of responses", trained_by(Reinforce, ReinforceConfig, **PAIRED, **STALE), GROUPS),
    Row("the same, at most 1.1", trained_by(Reinforce, ReinforceConfig, importance_cap=1.1, **PAIRED, **STALE), GROUPS),
    Row(
        "the same, 0 beyond 1.1",
        trained_by(Reinforce, ReinforceConfig, importance_cap=1.1, importance_beyond="mask", **PAIRED, **STALE),
        GROUPS,
    ),
    Row("GRPO, no weights", trained_by(GRPO, GRPOConfig, first_pass=True, **PAIRED), GROUPS),
    Row("GRPO, weights of tokens", trained_by(GRPO, GRPOConfig, **PAIRED, **BY_TOKEN), GROUPS),
    Row("GRPO, weights of responses", trained_by(GRPO, GRPOConfig, **PAIRED, **STALE), GROUPS),
    Row("PPO, V right, no weights", trained_by(PPO, PPOConfig, critic=RIGHT, first_pass=True)),
    Row("PPO, V right, weights of responses", trained_by(PPO, PPOConfig, critic=RIGHT, **STALE)),
]
NUCLEUS = [
    Row("RLOO, log π of the nucleus", trained_by(Reinforce, ReinforceConfig, group_size=2), GROUPS, default=True),
    Row("the same, weights of responses", trained_by(Reinforce, ReinforceConfig, **PAIRED, **STALE), GROUPS),
    Row("log π of all tokens", plugged_in(of_all_tokens)),
    Row("log π of all tokens, weighted by π/π_sampled", plugged_in(corrected_of_all_tokens)),
]
