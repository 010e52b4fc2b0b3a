"""GRPO and what grew out of it: responses to one prompt, compared with each other instead of with a critic.

What lives here: advantages and loss, their settings, and the door of the command line
(``python -m textgen_env.agents.grpo``). What does not: the loop (``training/on_policy.py``), groups
(``training/groups.py``), estimators and loss terms (``advantages.py``, ``losses.py``), the run (``training/run.py``).

References:
    Shao et al., "DeepSeekMath" (2024): GRPO.
    Liu et al., "Understanding R1-Zero-like training: a critical perspective" (2025): Dr. GRPO, neither std nor length.
    Yu et al., "DAPO: an open-source LLM reinforcement learning system at scale" (2025): the upper ε, means over tokens,
    responses that were cut left out, groups without variance left out.
    Zheng et al., "Group sequence policy optimization" (2025): GSPO, the ratio of the whole response.
    Liu et al., "GDPO: group reward-decoupled normalization policy optimization for multi-reward RL" (2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from . import losses
from .advantages import group_relative, informative, leave_one_out, masked_mean, masked_whiten, to_go
from .policy import ActorConfig
from .rollout import Rollout
from .rollout_metrics import surrogate_metrics
from .training.command_line import run as run_program
from .training.extra import OmitArgPrefixes
from .training.groups import GroupConfig, GroupTrainer
from .training.importance import weighed
from .training.kl_in import KL_IN, KLIn, charged_kl, kl_term
from .training.on_policy import Batch
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, FLAG, POSITIVE, check, choice, optional


@dataclass
class GRPOConfig(GroupConfig):
    """Settings of the algorithm, beside those of every one that plays groups; docs/trainers.md compares them."""

    group_size: int = 8
    """Responses per prompt, at least 2; divides episodes."""
    epochs: int = 2
    """Passes over the responses of an update."""
    clip: float = 0.2
    """ε of the clipped surrogate; for ratio="sequence" some 4e-4."""
    clip_high: float | None = None
    """The upper ε, if it is another (DAPO: 0.28)."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: the ratio of each token, or of the whole response to the power 1/length (GSPO)."""
    scale: Literal["none", "group", "batch"] = "none"
    """What a score less its group's mean is divided by: nothing (Dr. GRPO), the group's standard deviation (GRPO), or
    that of the batch."""
    length_norm: Literal["constant", "response", "token"] = "constant"
    """Over what the loss is a mean: responses, each a sum over max_new_tokens (Dr. GRPO: the gradient of the
    objective), responses, each a mean over its own tokens (GRPO), or all tokens (DAPO)."""
    normalize_parts: bool = False
    """Compare each part of the reward by itself, then add up and whiten over the batch (GDPO); needs scale="group"."""
    drop_overlong: bool = False
    """Leave responses out that were cut at the length limit (DAPO)."""
    kl_in: KLIn = "both"
    """Where the KL is. "both": β·KL of each state, summed over the vocabulary, in the loss and −β·KL of later states in
    the reward, beside the scores that are compared; the gradient of the objective. "reward": −β·k1 in the reward of
    each token; the same with more noise, and cheaper. "loss": β·ratio·k3 in the loss, as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size} must be at least 2: a response is compared with others")
        if self.normalize_parts and self.scale != "group":
            raise ValueError(f'normalize_parts=True with scale={self.scale!r} must be with scale="group"')


RULES = {
    "epochs": COUNT,
    "clip": POSITIVE,
    "clip_high": optional(POSITIVE),
    "ratio": choice("token", "sequence"),
    "scale": choice("none", "group", "batch"),
    "length_norm": choice("constant", "response", "token"),
    **dict.fromkeys(("normalize_parts", "drop_overlong"), FLAG),
    "kl_in": KL_IN,
}


@dataclass
class GRPOSettings(RunSettings):
    """Train a language model with GRPO."""

    policy: OmitArgPrefixes[ActorConfig] = field(default_factory=ActorConfig)
    """Which weights learn."""
    grpo: OmitArgPrefixes[GRPOConfig] = field(default_factory=GRPOConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grpo.check_slots(self.num_envs)


class GRPO(GroupTrainer):
    """Group-relative policy optimisation; see `OnPolicyTrainer` for the arguments."""

    @property
    def epochs(self) -> int:  # type: ignore[override]
        """Passes over a batch."""
        return int(self.config.epochs)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout, whose groups are adjacent, and compare each response with its group.

        Groups without variance teach nothing, and count in no mean: those of the others weigh so much more. Not so with
        ``kl_in="both"``, where they have a KL.
        """
        cfg, mask = self.config, rollout.response_mask
        scores = self.score(rollout)
        charged = self.kl.value * charged_kl(scores, mask, cfg.kl_in)
        rewards = rollout.rewards - charged
        returns = (rollout.rewards if self.exact_kl else rewards).sum(dim=1)
        used = differing = informative(returns, cfg.group_size)
        advantages, kl_weight = self._compared(rollout, returns), self._kl_weight(returns) * mask
        if self.exact_kl:
            used, later = torch.ones_like(used), to_go(charged, mask)
            if cfg.ratio == "sequence":  # all tokens of a response share one ratio, and so one advantage
                later = later[:, :1].expand_as(later)
            advantages = advantages - kl_weight * leave_one_out(later, mask, cfg.group_size)
        if cfg.drop_overlong:
            used = used & torch.tensor([reason != "length" for reason in rollout.finish_reasons]).to(used.device)
        counted = self._counts(rollout)
        share = counted[used].sum() / counted.sum()
        advantages, kl_weight = (
            torch.where(used[:, None], x, 0.0) / share.clamp(min=1e-12) for x in (advantages, kl_weight)
        )
        batch = Batch(rollout, *scores[:4], rewards, advantages, returns[:, None] * mask, kl_weight=kl_weight)
        kept = {"uniform_groups": float((~differing).double().mean()), "share_used": float(share)}
        batch.metrics = {**self.describe(batch, scores.entropy), **kept}
        return weighed(batch, cfg)

    def _compared(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """(B, T) advantages, before some are left out."""
        cfg, mask = self.config, rollout.response_mask
        if cfg.normalize_parts:
            parts = [part.to(returns.device) for part in rollout.reward_parts.values()]
            parts += [returns - rollout.rewards.sum(dim=1)] if cfg.kl_in == "reward" else []
            summed = torch.stack([group_relative(part, mask, cfg.group_size) for part in parts]).sum(dim=0)
            return masked_whiten(summed, mask)
        advantages = group_relative(returns, mask, cfg.group_size, scale=cfg.scale == "group")
        return advantages / (returns.std() + 1e-4) if cfg.scale == "batch" else advantages

    def _kl_weight(self, returns: Tensor) -> Tensor:
        """Scale of an exact KL beside the scores that are compared, so that β is what it is in the objective.

        A score less the mean of its group, its own included, is 1 − 1/G of the score less the mean of the others, and a
        deviation of the batch divides all gradients alike. With scale="group" there is no such scale: β is then per
        deviation of the scores, as it is in GRPO.
        """
        weight = torch.as_tensor(1 - 1 / self.config.group_size)
        return weight / (returns.std() + 1e-4) if self.config.scale == "batch" else weight

    def _counts(self, rollout: Rollout) -> Tensor:
        """(B,) how much each response weighs in a mean."""
        per_token = self.config.length_norm == "token"
        return (rollout.lengths if per_token else torch.ones_like(rollout.lengths)).double()

    def weight(self, batch: Batch, rows: Tensor) -> int:
        """The loss is a mean over responses, or over their tokens."""
        return int(self._counts(batch.rollout)[rows].sum())

    def loss(self, batch: Batch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_clip + β·KL, of some responses.

        Args:
            batch: what `advantages` returned.
            rows: (b,) responses, one of ``batch.micro_batches``.

        Returns:
            The scalar to minimise, with gradient, and its parts.
        """
        cfg, rollout = self.config, batch.rollout
        old_log_probs, advantages, mask = rollout.cut(
            rows, batch.old_log_probs, batch.advantages, rollout.response_mask
        )  # (b, t)
        new = self.evaluate(rollout, rows, with_kl=self.exact_kl)
        log_probs = new.log_probs
        constant = losses.constant_mean(self.env.max_new_tokens)
        mean = {"constant": constant, "response": losses.response_mean, "token": masked_mean}[cfg.length_norm]
        clip: dict[str, Any] = {"clip_high": cfg.clip_high, "of_responses": cfg.ratio == "sequence"}
        loss = losses.clipped_surrogate(log_probs, old_log_probs, advantages, cfg.clip, mask, mean=mean, **clip)
        parts = {"policy_loss": loss}
        if (kl_loss := kl_term(self, batch, rows, new, mean)) is not None:
            parts["kl_loss"] = kl_loss
            loss = loss + self.kl.value * kl_loss
        with torch.no_grad():
            parts |= surrogate_metrics(log_probs, old_log_probs, cfg.clip, mask, **clip)
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> GRPO:
        return GRPO(run.venv, run.policy, run.settings.grpo, **run.options)

    return run_of_command_line("textgen_env.agents.grpo", GRPOSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.grpo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
