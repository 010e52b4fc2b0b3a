"""Where a trainer has its KL penalty: in the reward, in the loss, or in both, which makes the gradient exact.

What lives here: what is charged to each token, and the term of the loss. What does not: estimators (`textgen_env.kl`),
losses (``losses.py``), the sums over the vocabulary (`textgen_env.lm.token_log_probs`), β (``on_policy.py``).

The KL of a response is a sum over its states, and the policy moves it in two ways:

    ∇E[Σ_t KL(s_t)] = E[Σ_t ∇KL(s_t) + Σ_t ∇log π(a_t|s_t)·Σ_{u>t} KL(s_u)]

by how far its distribution at a state is from the reference's, and by which states it goes to. The first is no matter
of chance once the state is given: it is summed over the vocabulary and differentiated in the *loss*. The second is a
policy gradient, whose *reward* for a token is −β times the KL of the state that the token leads to. Of the two sums of
k1, which have the same expectation, the first is the noise that this spares (Rao-Blackwell).

References:
    Amini et al., "Better estimation of the KL divergence between language models" (2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from textgen_env.kl import k1
from textgen_env.lm.log_probs import LogitsAt, has_head

from .. import losses
from ..advantages import masked_mean, of_next_token
from ..policy import Reference, TokenEvaluation
from ..rollout import Rollout
from .batch import Batch, Scores
from .setting_checks import choice

if TYPE_CHECKING:
    from .on_policy import OnPolicyTrainer

KLIn: TypeAlias = Literal["reward", "loss", "both"]
KL_IN = choice("reward", "loss", "both")


class ReferenceStates:
    """What a reference has read of one rollout: scoring reads it, and the passes of the update have its states.

    They are d numbers per token, beside which its logits, V of them, are made anew in each pass. Of a model whose head
    is no part of its own nothing is kept.
    """

    def __init__(self) -> None:
        self._rollout: Rollout | None = None
        self._read: dict[tuple[int, ...], LogitsAt] = {}

    def logits(self, reference: Reference, rollout: Rollout, rows: Tensor) -> LogitsAt:
        """`Reference.logits` of some trajectories of a rollout; the states of one before it are forgotten."""
        if rollout is not self._rollout:
            self._rollout, self._read = rollout, {}
        if (key := tuple(rows.tolist())) in self._read:
            return self._read[key]
        found = reference.logits(rollout.rows(rows))
        if has_head(reference.model):
            self._read[key] = found
        return found


def charged_kl(scores: Scores, response_mask: Tensor, kl_in: KLIn, gamma: float = 1.0) -> Tensor:
    """(B, T) nats that each token is charged in its reward, times β.

    "reward": k1 of the token. "both": γ·KL(s_{t+1}), where s_{t+1} is the state of the next token that the agent
    chooses: a token has no part in the KL of its own state. The last one is charged nothing. Where the old policy's
    distributions were not kept (``old_log_probs="sampled"``), k1 of the next token stands for the KL of its state: its
    expectation is the same. "loss": nothing.
    """
    if scores.ref_log_probs is None or kl_in == "loss":
        return torch.zeros_like(scores.log_probs)
    sampled = k1(scores.log_probs, scores.ref_log_probs)
    if kl_in == "reward":
        return sampled
    return gamma * of_next_token(sampled if scores.kl is None else scores.kl, response_mask)


def kl_term(
    trainer: OnPolicyTrainer,
    batch: Batch,
    rows: Tensor,
    new: TokenEvaluation,
    mean: losses.Mean = masked_mean,
) -> Tensor | None:
    """What some trajectories add to the loss, times β; None where nothing is in the loss.

    "loss": ratio·k3 at the sampled tokens (`losses.kl_loss`). "both": the exact KL at the visited states, times
    ``batch.kl_weight``.
    """
    kl_in = trainer.config.kl_in
    if batch.ref_log_probs is None or kl_in == "reward":
        return None
    old, ref, mask = batch.rollout.cut(rows, batch.old_log_probs, batch.ref_log_probs, batch.rollout.response_mask)
    if kl_in == "loss":
        weight = batch.importance_of(rows)
        return losses.kl_loss(new.log_probs, ref, mask, old_log_prob=old, weight=weight, mean=mean)
    assert new.kl is not None
    assert batch.kl_weight is not None
    return mean(batch.rollout.cut(rows, batch.kl_weight)[0] * new.kl, mask)
