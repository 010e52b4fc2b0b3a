"""Token-level PPO on a language model: its loss, its settings, and the door of the command line.

What lives here: what makes PPO of a trainer with a critic (``python -m textgen_env.agents.ppo``). What does not: values
and λ (``training/critic.py``), the loop (``training/on_policy.py``), sampling (``rollout.py``), estimators
(``advantages.py``), the loss terms (``losses.py``), the weights (``policy.py``), files and plots (``training/run.py``).

References:
    Schulman et al., "Proximal policy optimization algorithms" (2017).
    Ziegler et al., "Fine-tuning language models from human preferences" (2019): KL in the reward, adaptive β.
    Huang et al., "The N+ implementation details of RLHF with PPO" (2024); docs/ppo.md goes through them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import gymnasium as gym
import torch
from torch import Tensor

from textgen_env.lm.token_batch import TokenBatch

from . import losses
from .advantages import masked_whiten, whitening_scale
from .policy import ActorCritic, PolicyConfig, Reference
from .rollout import Rollout
from .rollout_metrics import surrogate_metrics
from .training.command_line import read_lines
from .training.command_line import run as run_program
from .training.critic import CriticConfig, CriticTrainer
from .training.extra import OmitArgPrefixes
from .training.finite import NonFiniteError
from .training.former_names import accept_former_names
from .training.importance import weighed
from .training.kl_in import KL_IN, KLIn, kl_term
from .training.on_policy import Batch
from .training.run import Run, run_of_command_line
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, FLAG, NOT_NEGATIVE, POSITIVE, TEXT, check, optional

__all__ = ["PPO", "NonFiniteError", "PPOConfig", "PPOSettings", "main", "make_run"]


@accept_former_names
@dataclass
class PPOConfig(CriticConfig):
    """Settings of the algorithm, beside those of every one with a critic; docs/ppo.md says what each does.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, with its name and what would be right.
    """

    epochs: int = 2
    """Passes over the trajectories of an update."""
    clip: float = 0.2
    """ε of the clipped surrogate."""
    value_clip: float | None = 0.2
    """ε of the clipped value loss, in units of reward; None switches it off."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    whiten: bool = True
    """Whiten the advantages over the whole batch."""
    kl_in: KLIn = "reward"
    """−β·k1 in the reward of each token, β·ratio·k3 in the loss, or "both": β·KL of each state, summed over the
    vocabulary, in the loss, and −β·KL of the next state in the reward, which has the same expected gradient as k1 and
    less noise, for the logits of the reference in each epoch."""
    target_kl: float | None = None
    """Stop the update before a step once the policy has moved this many nats per token from the start of the update."""
    ptx_coef: float = 0.0
    """Weight of the language-model loss on given texts (the "ptx" term of InstructGPT)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)


RULES = {
    "epochs": COUNT,
    **dict.fromkeys(("value_coef", "ptx_coef"), NOT_NEGATIVE),
    "clip": POSITIVE,
    **dict.fromkeys(("value_clip", "target_kl"), optional(POSITIVE)),
    "entropy_coef": NOT_NEGATIVE,  # a bonus; a sign lost on the way would train towards one and the same text
    "whiten": FLAG,
    "kl_in": KL_IN,
}


@dataclass
class PPOSettings(RunSettings):
    """Train a language model with token-level PPO."""

    ptx_texts: str | None = None
    """A text file, one text per line, for the "ptx" term."""
    policy: OmitArgPrefixes[PolicyConfig] = field(default_factory=PolicyConfig)
    """Which weights there are and which learn."""
    ppo: OmitArgPrefixes[PPOConfig] = field(default_factory=PPOConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"ptx_texts": optional(TEXT)})
        self.ppo.check_slots(self.num_envs)


class PPO(CriticTrainer):
    """Proximal policy optimisation of a language model in a token environment.

    Args:
        venv, policy, config, reference, seed, total_updates: see `OnPolicyTrainer`; the policy has a critic.
        ptx_texts: whole texts for the "ptx" term; they end as the tokenizer ends texts.

    Example::

        ppo = PPO(venv, ActorCritic(LanguageModel("tiny")))
        rollout = ppo.collect()            # B whole trajectories
        batch = ppo.advantages(rollout)    # old log-probs, values, KL, advantages
        metrics = ppo.update(batch)        # epochs of minibatches
    """

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: PPOConfig | None = None,
        *,
        reference: Reference | None = None,
        ptx_texts: Sequence[str] = (),
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        config = config or PPOConfig()
        super().__init__(venv, policy, config, reference=reference, seed=seed, total_updates=total_updates)
        self.epochs = config.epochs
        self.ptx_tokens = [policy.language_model.encode(text, whole=True) for text in ptx_texts]
        if config.ptx_coef and not self.ptx_tokens:
            raise ValueError(f"ptx_coef={config.ptx_coef} needs ptx_texts; none were given")

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout: old log-probs and values, the KL to the reference, rewards with it, advantages, returns."""
        batch, entropy = self.estimate(rollout, kl_in=self.config.kl_in)
        batch.metrics = self.describe(batch, entropy)
        mask, scale = rollout.response_mask, torch.ones(())
        if self.config.whiten:
            scale = whitening_scale(batch.advantages, mask)
            batch.advantages = masked_whiten(batch.advantages, mask)
        if self.config.kl_in == "both":
            # Whitening divides the score and the KL of later states by the advantages' deviation. The KL in the loss is
            # the other part of the same gradient: on a scale of its own it would stand for another β than theirs.
            batch.kl_weight = scale * mask
        return weighed(batch, self.config)

    def loss(self, batch: Batch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_clip + c_v·L_value − c_H·H (+ β·KL): the mean over the response tokens of some trajectories.

        Args:
            batch: what `advantages` returned.
            rows: (b,) trajectories, one of ``batch.micro_batches``.

        Returns:
            The scalar to minimise, with gradient, and its parts.
        """
        cfg = self.config
        assert batch.values is not None
        constants = (batch.old_log_probs, batch.advantages, batch.values, batch.returns, batch.rollout.response_mask)
        old_log_probs, advantages, old_values, returns, mask = batch.rollout.cut(rows, *constants)  # (b, t)
        new = self.evaluate(batch.rollout, rows, with_entropy=cfg.entropy_coef != 0, with_kl=self.exact_kl)
        assert new.values is not None
        parts = {
            "policy_loss": losses.clipped_surrogate(new.log_probs, old_log_probs, advantages, cfg.clip, mask),
            "value_loss": losses.clipped_value_loss(new.values, old_values, returns, cfg.value_clip, mask),
        }
        loss = parts["policy_loss"] + cfg.value_coef * parts["value_loss"]
        if new.entropy is not None:
            loss = loss + cfg.entropy_coef * losses.entropy_loss(new.entropy, mask)
        if (kl_loss := kl_term(self, batch, rows, new)) is not None:
            parts["kl_loss"] = kl_loss
            loss = loss + self.kl.value * kl_loss
        with torch.no_grad():
            parts |= surrogate_metrics(new.log_probs, old_log_probs, cfg.clip, mask)
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}

    def stops(self, stats: Mapping[str, float]) -> bool:
        """Once the policy has moved beyond ``target_kl``."""
        return self.config.target_kl is not None and stats["approx_kl"] > self.config.target_kl

    def _gradient(self, batch: Batch, minibatch: Sequence[Tensor]) -> dict[str, float]:
        stats = super()._gradient(batch, minibatch)
        if self.config.ptx_coef and self.policy_learns:
            loss = self._ptx_loss()
            (self.config.ptx_coef * loss).backward()
            self.optimizer.accumulate()
            stats["ptx_loss"] = float(loss.detach())
        return stats

    def _ptx_loss(self) -> Tensor:
        """−log π of a random micro-batch of the given texts."""
        picks = torch.randint(len(self.ptx_tokens), (self.config.micro_batch_size,), generator=self.shuffler).tolist()
        texts = [self.ptx_tokens[i] for i in picks]
        batch = TokenBatch.from_tokens([text[:1] for text in texts], [text[1:] for text in texts])
        batch = batch.to(self.policy.device)
        return losses.language_model_loss(self.policy(batch).log_probs, batch.response_mask)


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""

    def make_trainer(run: Run) -> PPO:
        name = run.settings.ptx_texts
        texts = read_lines("ptx_texts", name) if name else []
        return PPO(run.venv, run.policy, run.settings.ppo, ptx_texts=texts, **run.options)

    return run_of_command_line("textgen_env.agents.ppo", PPOSettings, make_trainer, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.ppo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
