"""Token-level PPO on a language model: collect whole trajectories → advantages → a few epochs of minibatches.

What lives here: `PPO` with the three calls of the open loop, `train`, and the door of the command line
(``python -m textgen_env.agents.ppo``). What does not: settings (``ppo_config.py``), sampling (``rollout.py``),
estimators (``advantages.py``), the loss terms (``losses.py``), the weights (``policy.py``, ``optim.py``), files,
tables and plots (``run.py``).

References:
    Schulman et al., "Proximal policy optimization algorithms" (2017).
    Ziegler et al., "Fine-tuning language models from human preferences" (2019): KL in the reward, adaptive β.
    Huang et al., "The N+ implementation details of RLHF with PPO" (2024); docs/ppo.md goes through them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor

from textgen_env.kl import AdaptiveKLCoefficient, FixedKLCoefficient, k1

from .advantages import gae, masked_whiten
from .batch import Batch, bucket_by_length, describe, join, mean_return, minibatches
from .command_line import parse, resume_command
from .command_line import run as run_program
from .finite import NonFiniteError, check_finite
from .losses import (
    approx_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_value_loss,
    entropy_loss,
    kl_loss,
    language_model_loss,
    log_ratio,
)
from .memory import keep_freed_memory
from .old_policy import sampled, scored
from .optim import MasterAdamW, lr_factor
from .policy import ActorCritic, TokenEvaluation, frozen_scorer
from .ppo_config import PPOConfig, PPOSettings
from .rollout import Rollout, collect
from .run import Run

__all__ = ["PPO", "NonFiniteError", "PPOConfig", "PPOSettings", "main", "make_run"]


class PPO:
    """Proximal policy optimisation of a language model in a token environment.

    Args:
        venv: a batched token environment with ``autoreset_mode=DISABLED``. It is seeded, and told that the KL penalty
            is paid here.
        policy: actor and critic; trained in place.
        config: settings.
        seed: of sampling, shuffling and the environment; global generators are left alone.
        ptx_texts: whole texts for the "ptx" term; they end as the tokenizer ends texts.
        total_updates: length of the learning-rate schedule.

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
        seed: int = 1,
        ptx_texts: Sequence[str] = (),
        total_updates: int = 100,
    ) -> None:
        self.venv, self.policy, self.config, self.total_updates = venv, policy, config or PPOConfig(), total_updates
        cfg = self.config
        self.env = cast(Any, venv.unwrapped)
        self.env.delegate_kl(report_ref_logprob=False)
        venv.reset(seed=seed)
        self.temperature: float = self.env.temperature
        self.sampling: dict[str, Any] = {"top_k": cfg.top_k, "top_p": cfg.top_p}
        self.sampler = torch.Generator(policy.device).manual_seed(seed)
        self.shuffler = torch.Generator().manual_seed(seed)
        self.optimizer = MasterAdamW(policy.parameter_groups(cfg.lr, cfg.value_lr), weight_decay=cfg.weight_decay)
        self.kl = FixedKLCoefficient(cfg.kl_coef)
        if cfg.adaptive_kl_target is not None:
            self.kl = AdaptiveKLCoefficient(cfg.kl_coef, cfg.adaptive_kl_target, cfg.kl_horizon)
        self.reference = self._reference() if cfg.kl_coef > 0 else None
        self.ptx_tokens = [policy.language_model.encode(text, whole=True) for text in ptx_texts]
        if cfg.ptx_coef and not self.ptx_tokens:
            raise ValueError(f"ptx_coef={cfg.ptx_coef} needs ptx_texts; none were given")
        self.updates = 0

    def _reference(self) -> Callable[..., Tensor]:
        reference = self.env.reference
        if reference is self.env.language_model:
            return self.policy.reference()
        return frozen_scorer(reference.model, reference.vocab_size)  # one of its own, which the environment was given

    def collect(self) -> Rollout:
        """Play ``episodes`` whole trajectories with the present policy."""
        self.policy.eval()
        rollout = collect(
            self.venv,
            self.policy.language_model,
            self.config.episodes,
            generator=self.sampler,
            temperature=self.temperature,
            with_states=self.config.old_log_probs == "sampled" and self.policy.critic is None,
            **self.sampling,
        )
        self._check("reward", rollout.rewards)
        return rollout.to(self.policy.device)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout: old log-probs and values, the KL to the reference, rewards with it, advantages, returns."""
        cfg, mask = self.config, rollout.response_mask
        self.policy.value_head.start_at(mean_return(rollout, cfg.gamma))
        micro_batches = bucket_by_length(rollout, cfg.micro_batch_size, self.shuffler)
        if cfg.old_log_probs == "sampled":
            old = sampled(rollout, micro_batches, self.policy)
        else:
            old = scored(rollout, micro_batches, partial(self._evaluate, rollout, with_entropy=True))
        ref = None
        if self.reference is not None:
            parts = [self._reference_log_probs(rollout, rows) for rows in micro_batches]
            ref = join(rollout, micro_batches, parts)
        rewards = rollout.rewards
        if ref is not None and cfg.kl_in == "reward":
            rewards = rewards - self.kl.value * k1(old.log_probs, ref)
        advantages, returns = gae(rewards, old.values, mask, cfg.gamma, cfg.lam, self._bootstrap(rollout))
        batch = Batch(rollout, micro_batches, old.log_probs, old.values, ref, rewards, advantages, returns)
        batch.metrics = {**describe(batch), "entropy": old.entropy, "kl_coef": self.kl.value}
        if cfg.whiten:
            batch.advantages = masked_whiten(advantages, mask)
        return batch

    def _reference_log_probs(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """Top-k and top-p shape the policy alone: a token outside the reference's nucleus would cost infinite KL."""
        assert self.reference is not None
        return self.reference(*rollout.rows(rows), temperature=self.temperature, mask=rollout.masks(rows))

    def _bootstrap(self, rollout: Rollout) -> Tensor:
        """(B,) V of the last state where a trajectory was cut without its score, 0 elsewhere.

        An end has no future, and a score that was paid is of the whole response: V on top would count it twice.
        """
        values = torch.zeros(len(rollout.texts), device=rollout.input_ids.device)
        for rows in rollout.bootstrapped.nonzero().flatten().split(self.config.micro_batch_size):
            if len(rows):
                input_ids, attention_mask, _ = rollout.rows(rows)
                values[rows] = self.policy.final_values(input_ids, attention_mask)
        return values

    def _evaluate(self, rollout: Rollout, rows: Tensor, *, with_entropy: bool) -> TokenEvaluation:
        return self.policy.evaluate(
            *rollout.rows(rows),
            temperature=self.temperature,
            **self.sampling,
            mask=rollout.masks(rows),
            with_entropy=with_entropy,
        )

    def update(self, batch: Batch) -> dict[str, float]:
        """Epochs of minibatches over one batch; returns the mean of each metric over the minibatches."""
        self.policy.eval()
        cfg, log = self.config, defaultdict(list)
        factor = lr_factor(self.updates, self.total_updates, cfg.warmup_updates, cfg.lr_decay)
        stopped = False
        size = cfg.minibatch_size // cfg.micro_batch_size  # micro-batches per step
        for minibatch in minibatches(batch.micro_batches, size, cfg.epochs, self.shuffler):
            stats = self._gradient(batch, minibatch)
            for name, value in stats.items():
                log[name].append(value)
            stopped = cfg.target_kl is not None and stats["approx_kl"] > cfg.target_kl
            if stopped:
                self.optimizer.discard()
                break
            log["grad_norm"].append(self.optimizer.clip(cfg.max_grad_norm))
            self._check("gradient norm", torch.tensor(log["grad_norm"][-1]))
            self.optimizer.step(factor)
        self.updates += 1
        if self.reference is not None:
            self.kl.update(batch.metrics["kl_per_response"], len(batch.rollout.texts))
        metrics = {name: sum(values) / len(values) for name, values in log.items()}
        metrics["first_ratio_error"] = log["ratio_error"][0]  # 0, unless log-probs are computed in two different ways
        return {
            **metrics,
            "early_stop": float(stopped),
            "optimizer_steps": float(len(log["grad_norm"])),
            "lr": cfg.lr * factor,
        }

    def _gradient(self, batch: Batch, minibatch: list[Tensor]) -> dict[str, float]:
        """Accumulate the gradient of the mean loss over all tokens of a minibatch."""
        totals: dict[str, float] = defaultdict(float)
        counts = [int(batch.rollout.lengths[rows].sum()) for rows in minibatch]
        for rows, count in zip(minibatch, counts, strict=True):
            loss, stats = self.loss(batch, rows)
            totals["ratio_error"] = max(totals["ratio_error"], float(stats.pop("ratio_error")))
            self._check("loss", loss)
            share = count / sum(counts)
            (share * loss).backward()
            self.optimizer.accumulate()
            for name, value in stats.items():
                totals[name] += share * float(value)
        if self.config.ptx_coef:
            loss = self._ptx_loss()
            (self.config.ptx_coef * loss).backward()
            self.optimizer.accumulate()
            totals["ptx_loss"] = float(loss.detach())
        return dict(totals)

    def loss(self, batch: Batch, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_clip + c_v·L_value − c_H·H (+ β·KL): the mean over the response tokens of some trajectories.

        Args:
            batch: what `advantages` returned.
            rows: (b,) trajectories, one of ``batch.micro_batches``.

        Returns:
            The scalar to minimise, with gradient, and its parts.
        """
        cfg = self.config
        constants = (batch.old_log_probs, batch.advantages, batch.values, batch.returns, batch.rollout.response_mask)
        old_log_probs, advantages, old_values, returns, mask = batch.rollout.cut(rows, *constants)  # (b, t)
        new = self._evaluate(batch.rollout, rows, with_entropy=cfg.entropy_coef != 0)
        parts = {
            "policy_loss": clipped_surrogate(new.log_probs, old_log_probs, advantages, cfg.clip, mask),
            "value_loss": clipped_value_loss(new.values, old_values, returns, cfg.value_clip, mask),
        }
        loss = parts["policy_loss"] + cfg.value_coef * parts["value_loss"]
        if new.entropy is not None:
            loss = loss + cfg.entropy_coef * entropy_loss(new.entropy, mask)
        if batch.ref_log_probs is not None and cfg.kl_in == "loss":
            (ref,) = batch.rollout.cut(rows, batch.ref_log_probs)
            parts["kl_loss"] = kl_loss(new.log_probs, ref, mask, old_log_prob=old_log_probs)
            loss = loss + self.kl.value * parts["kl_loss"]
        with torch.no_grad():
            parts["approx_kl"] = approx_kl(new.log_probs, old_log_probs, mask)
            parts["clip_fraction"] = clip_fraction(new.log_probs, old_log_probs, cfg.clip, mask)
            parts["ratio_error"] = torch.expm1(log_ratio(new.log_probs, old_log_probs, mask)).abs().max()
        return loss, {name: part.detach() for name, part in {"loss": loss, **parts}.items()}

    def _ptx_loss(self) -> Tensor:
        """−log π of a random micro-batch of the given texts."""
        picks = torch.randint(len(self.ptx_tokens), (self.config.micro_batch_size,), generator=self.shuffler).tolist()
        texts = [torch.tensor(self.ptx_tokens[i]) for i in picks]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(texts, batch_first=True).to(self.policy.device)
        mask = pad([torch.ones_like(text) for text in texts], batch_first=True).to(self.policy.device)
        predicted = mask.clone()
        predicted[:, 0] = 0
        return language_model_loss(self.policy.evaluate(ids, mask, predicted).log_probs, predicted)

    def _check(self, name: str, values: Tensor) -> None:
        check_finite(name, values, f"in update {self.updates + 1}")

    def iterate(self) -> tuple[dict[str, float], Rollout]:
        """One iteration of the loop: its metrics, with the speed of each phase, and the rollout it learned from."""
        times = [time.perf_counter()]
        rollout = self.collect()
        times.append(time.perf_counter())
        batch = self.advantages(rollout)
        for name in ("old_log_probs", "values", "ref_log_probs", "rewards", "advantages"):
            if (values := getattr(batch, name)) is not None:
                self._check(name, values)
        times.append(time.perf_counter())
        metrics = {**batch.metrics, **self.update(batch)}
        times.append(time.perf_counter())
        tokens = int(rollout.response_mask.sum())
        phases = zip(("rollout", "scoring", "update"), times, times[1:], strict=False)
        speed = {f"tokens_per_second_{name}": tokens / (after - before) for name, before, after in phases}
        return {**metrics, **speed, "tokens_per_second": tokens / (times[-1] - times[0])}, rollout

    def train(
        self, updates: int, callback: Callable[[int, dict[str, float], Rollout], None] | None = None
    ) -> list[dict[str, float]]:
        """``updates`` iterations; the callback sees (number, metrics, rollout) of each. Returns all metrics."""
        history = []
        for _ in range(updates):
            metrics, rollout = self.iterate()
            history.append(metrics)
            if callback is not None:
                callback(self.updates, metrics, rollout)
        return history

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, between two iterations."""
        return {
            "updates": self.updates,
            "optimizer": self.optimizer.state_dict(),  # with all weights that learn, in fp32
            "kl": self.kl.state_dict(),
            "sampler": self.sampler.get_state(),
            "shuffler": self.shuffler.get_state(),
            "env": self.env.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as if never stopped, in a trainer that was made with the same arguments."""
        self.updates = int(state["updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl.load_state_dict(state["kl"])
        self.sampler.set_state(state["sampler"])
        self.shuffler.set_state(state["shuffler"])
        self.env.load_state_dict(state["env"])


def make_run(arguments: Sequence[str] | None = None) -> Run:
    """Everything up to the first update; see `main`."""
    module = "textgen_env.agents.ppo"
    settings = parse(PPOSettings, module, arguments)
    texts = _read_texts(settings.ptx_texts) if settings.ptx_texts else []
    keep_freed_memory()
    options: dict[str, Any] = {"seed": settings.seed, "ptx_texts": texts, "total_updates": settings.updates}
    return Run(
        settings,
        lambda venv, policy: PPO(venv, policy, settings.ppo, **options),
        resume_command=resume_command(module, arguments),
    )


def _read_texts(name: str) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"ptx_texts={name!r} must be a text file in UTF-8: {error}") from error
    return [line for line in lines if line.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.ppo --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
