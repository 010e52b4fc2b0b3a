"""Collect whole trajectories → advantages → minibatches: what every on-policy trainer shares.

What lives here: its settings, and `OnPolicyTrainer`, of which PPO and REINFORCE fill in two methods. What does not:
what an update learns from (``batch.py``), sampling (``rollout.py``), estimators and losses (``advantages.py``,
``losses.py``), weights for what another policy sampled (``importance.py``), one optimiser step (``trainer.py``),
files, tables and plots (``run.py``).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import gymnasium as gym
import torch
from torch import Tensor

from textgen_env.kl import AdaptiveKLCoefficient, FixedKLCoefficient
from textgen_env.lm.log_probs import unpack
from textgen_env.lm.sampling import SamplingParams

from ..advantages import masked_mean
from ..lagging_mask import LaggingMask
from ..policy import ActorCritic, Reference, TokenEvaluation, reference_of
from ..rollout import Rollout, collect
from ..rollout_metrics import batch_metrics
from .batch import Batch as Batch
from .batch import Scores as Scores
from .extra import arg
from .kl_in import ReferenceStates
from .resets import ResetConfig, Resets
from .setting_checks import COUNT, COUNT_OR_ZERO, MASS, NOT_NEGATIVE, POSITIVE, check, choice, optional
from .trainer import GradientTrainer, bucket_by_length, join, minibatches


@dataclass
class OnPolicyConfig(ResetConfig):
    """Settings that every on-policy algorithm has."""

    episodes: int = 128
    """Trajectories per update, at least the number of slots of the environment."""
    kl_coef: float = 0.05
    """β, reward per nat of KL(π‖π_ref); 0 runs no reference model at all."""
    adaptive_kl_target: Annotated[float | None, arg(aliases=["--kl-target"])] = None
    """If set, β adapts so that the mean KL(π‖π_ref) of a whole *response* stays near this many nats (Ziegler et al.
    2019). Its former name, kl_target, is taken for one more release."""
    kl_horizon: float = 10_000
    """Responses over which an adaptive β can change by about 20 %."""
    old_log_probs: Literal["scored", "sampled"] = "scored"
    """Old log-probs and values from a teacher-forced pass of their own, equal to those of the update to the last bit,
    or from decoding, which saves that pass: equal up to rounding (1e-5 in float32; in bfloat16 1e-2 on average, 0.1 at
    worst)."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 for all. Scored log-probs are of the same distribution."""
    top_p: float = 1.0
    """Sample from the nucleus of this mass; 1 for all."""
    mask_top_p: float = 1.0
    """Allow only tokens in the nucleus, of this mass, of a copy of the policy that lags behind it (NLPO; 0.9 there); 1
    switches it off."""
    mask_every: int = 5
    """Updates after which the copy catches up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, ON_POLICY_RULES)
        if (target := self.adaptive_kl_target) is not None and self.kl_coef == 0:
            raise ValueError(f"kl_coef=0 with adaptive_kl_target={target} must be > 0: β adapts by factors")

    def check_slots(self, num_envs: int) -> None:
        """Raise a ValueError if there are more slots than episodes."""
        if self.episodes < num_envs:
            raise ValueError(f"episodes={self.episodes} must be at least num_envs={num_envs}")


ON_POLICY_RULES = {
    "episodes": COUNT,
    "kl_coef": NOT_NEGATIVE,
    "adaptive_kl_target": optional(POSITIVE),
    "kl_horizon": POSITIVE,
    "old_log_probs": choice("scored", "sampled"),
    "top_k": COUNT_OR_ZERO,
    **dict.fromkeys(("top_p", "mask_top_p"), MASS),
    "mask_every": COUNT,
}


class OnPolicyTrainer(GradientTrainer):
    """The loop around an on-policy algorithm, which fills in `advantages` and `loss` (and `weight`, if not of tokens).

    Nothing that it is given is changed before `collect`, which leaves the environment's KL and generators to the caller
    again. An environment that was never reset is reset with ``seed`` then.

    Args:
        venv: a batched token environment with ``autoreset_mode=DISABLED``.
        policy: trained in place.
        config: settings.
        reference: log π_ref, as `ActorCritic.reference` returns it; None takes the environment's reference if it has
            one of its own, else the policy as it is now. Without a KL penalty there is none.
        seed: of sampling and shuffling; global generators are left alone.
        total_updates: length of the learning-rate schedule.
    """

    epochs = 1
    """Passes over a batch."""
    policy_learns = True
    """Whether the next update moves the policy; an adaptive β waits until it does."""

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        policy: ActorCritic,
        config: OnPolicyConfig,
        *,
        reference: Reference | None = None,
        seed: int = 1,
        total_updates: int = 100,
    ) -> None:
        super().__init__(policy, config, total_updates)
        self.venv, self.env, self.seed = venv, cast(Any, venv.unwrapped), seed
        self.sampling = SamplingParams(self.env.temperature, config.top_k, config.top_p)
        self.sampler = torch.Generator(policy.device).manual_seed(seed)
        self.shuffler = torch.Generator().manual_seed(seed)
        self.kl = FixedKLCoefficient(config.kl_coef)
        if config.adaptive_kl_target is not None:
            self.kl = AdaptiveKLCoefficient(config.kl_coef, config.adaptive_kl_target, config.kl_horizon)
        self.reference = (reference or reference_of(venv, policy)) if config.kl_coef > 0 else None
        self._ref_states = ReferenceStates()
        self.resets: Resets | None = None
        if config.reset_share > 0:
            self.resets = Resets(venv, policy.language_model, config, self.sampling)
        self.lagging_mask: LaggingMask | None = None
        if config.mask_top_p < 1:
            self.lagging_mask = LaggingMask(policy.language_model, self.env.temperature, config.mask_top_p)

    @property
    def kl_coef(self) -> float:  # type: ignore[override]
        """β of the objective, as it is now."""
        return self.kl.value

    @property
    def exact_kl(self) -> bool:
        """Whether the KL is summed over the vocabulary where responses are scored and learned from."""
        return self.reference is not None and getattr(self.config, "kl_in", "reward") == "both"

    # --- what an algorithm fills in -----------------------------------------------------------------------------------

    def advantages(self, rollout: Rollout) -> Batch:
        """Score a rollout (`score`), and say how good each token was."""
        raise NotImplementedError

    def describe(self, batch: Batch, entropy: float) -> dict[str, float]:
        """The metrics of a batch, before the update; without responses that were given a beginning."""
        return {**batch_metrics(batch.whole()), "entropy": entropy, "kl_coef": self.kl.value}

    def weight(self, batch: Batch, rows: Tensor) -> int:
        """The loss is a mean over tokens."""
        return int(batch.rollout.lengths[rows].sum())

    def stops(self, stats: Mapping[str, float]) -> bool:
        """Whether the update ends before the step of a minibatch with these numbers."""
        return False

    # --- the loop -----------------------------------------------------------------------------------------------------

    def collect(
        self,
        prompts: Sequence[Any] | None = None,
        *,
        responses: Sequence[Sequence[int]] | None = None,
        greedy: bool = False,
    ) -> Rollout:
        """Play whole trajectories with the present policy.

        Args:
            prompts: what to play, one each; None draws ``episodes`` of them.
            responses: the tokens that the responses to ``prompts`` begin with.
            greedy: take the likeliest token instead of a sample.
        """
        self.policy.eval()
        if self.env.never_reset:
            with self.env.played_by(self.policy.language_model):
                self.venv.reset(seed=self.seed)
        if prompts is None and self.resets is not None:
            prompts = self.draw_prompts(self.config.episodes)
            responses = self.draw_beginnings(prompts)
        head = self.policy.value_head is not None and self.policy.critic is None
        rollout = collect(
            self.venv,
            self.policy.language_model,
            self.config.episodes if prompts is None else len(prompts),
            generator=self.sampler,
            sampling=self.sampling,
            greedy=greedy,
            prompts=prompts,
            responses=responses,
            with_states=self.config.old_log_probs == "sampled" and head,
            lagging_mask=self.lagging_mask,
        )
        self._check("reward", rollout.rewards)
        return rollout.to(self.policy.device)

    def draw_prompts(self, count: int) -> list[int]:
        """Numbers of prompts of the environment, for those who play each more than once."""
        return torch.randint(len(self.env.prompts), (count,), generator=self.shuffler).tolist()

    def draw_beginnings(self, prompts: Sequence[int]) -> list[list[int]] | None:
        """What the responses to some prompts are to begin with (``reset_share``); None: all with nothing."""
        return None if self.resets is None else self.resets.draw(prompts, self.shuffler, self.sampler)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Scores:
        """Log-probs of policy and reference, values and entropy of every token, all constants of the update.

        "scored": by a teacher-forced pass over the very micro-batches that the update runs, so that the first ratios
        are exactly 1. "sampled": as decoding has seen them, which saves that pass; the two round differently.
        """
        tokens = rollout.tokens
        micro_batches = bucket_by_length(tokens, self.config.micro_batch_size, self.shuffler)
        self._ref_states = ReferenceStates()  # micro-batches of before are of no use any more
        if self.config.old_log_probs == "sampled":
            old = self._as_sampled(rollout, micro_batches)
        else:
            parts = [self.evaluate(rollout, rows, with_entropy=True, with_kl=self.exact_kl) for rows in micro_batches]
            columns = zip(*parts, strict=True)
            log_probs, *others = (None if x[0] is None else join(tokens, micro_batches, x) for x in columns)
            assert log_probs is not None
            old = TokenEvaluation(log_probs, *others)
        ref = old.ref_log_probs
        if ref is None and self.reference is not None:
            ref = self.reference_log_probs(rollout, micro_batches)
        entropy = -old.log_probs if old.entropy is None else old.entropy  # its one-sample estimate
        mean_entropy = float(masked_mean(entropy, tokens.response_mask))
        return Scores(micro_batches, old.log_probs, old.values, ref, mean_entropy, old.kl)

    def reference_log_probs(self, rollout: Rollout, micro_batches: Sequence[Tensor] | None = None) -> Tensor:
        """(B, T) log π_ref of every token; ``micro_batches`` are rows, None cuts them here."""
        assert self.reference is not None
        if micro_batches is None:
            micro_batches = bucket_by_length(rollout.tokens, self.config.micro_batch_size, self.shuffler)
        parts = [self.reference(rollout.rows(r), self.sampling, mask=rollout.masks(r)) for r in micro_batches]
        return join(rollout.tokens, micro_batches, parts)

    def _as_sampled(self, rollout: Rollout, micro_batches: Sequence[Tensor]) -> TokenEvaluation:
        """What decoding has computed; only a separate critic still needs a pass."""
        values, head = None, self.policy.value_head
        if self.policy.critic is not None:
            parts = [self.policy.critic_values(rollout.rows(rows)) for rows in micro_batches]
            values = join(rollout.tokens, micro_batches, parts)
        elif head is not None:
            if rollout.states is None:
                raise ValueError('old_log_probs="sampled" needs rollout.states; collect with with_states=True')
            values = unpack(head(rollout.states), rollout.response_mask)
        return TokenEvaluation(rollout.sampled_log_probs, values, None)

    def evaluate(
        self, rollout: Rollout, rows: Tensor, *, with_entropy: bool = False, with_kl: bool = False
    ) -> TokenEvaluation:
        """The pass that is trained: of the policy, as the tokens were sampled; beside the reference for an exact KL."""
        options: dict[str, Any] = {"mask": rollout.masks(rows), "with_entropy": with_entropy}
        if with_kl and self.reference is not None:
            options["ref_logits"] = self._ref_states.logits(self.reference, rollout, rows)
        return cast(TokenEvaluation, self.policy(rollout.rows(rows), self.sampling, **options))

    def update(self, batch: Batch) -> dict[str, float]:
        """Epochs of minibatches over one batch; returns the mean of each metric over the minibatches."""
        self.policy.eval()
        if self.config.importance_weights != "none" and batch.importance is None:
            what = f"importance_weights={self.config.importance_weights!r} and the batch has none"
            raise ValueError(f"{what}; {type(self).__name__}.advantages must return weighed(batch, self.config)")
        cfg, factor, learned, stopped = self.config, self.lr_factor, self.policy_learns, False
        log: dict[str, list[float]] = defaultdict(list)
        size = cfg.minibatch_size // cfg.micro_batch_size  # micro-batches per step
        for minibatch in minibatches(batch.micro_batches, size, self.epochs, self.shuffler):
            stats = self._gradient(batch, minibatch)
            for name, value in stats.items():
                log[name].append(value)
            if stopped := self.stops(stats):
                self.optimizer.zero_grad()
                break
            log["grad_norm"].append(self._step(factor))
        self.updates += 1
        if self.lagging_mask is not None and self.updates % cfg.mask_every == 0:
            self.lagging_mask.catch_up()
        if self.reference is not None and learned:
            self.kl.update(batch.metrics["kl_per_response"], len(batch.rollout.texts))
        metrics = {name: sum(values) / len(values) for name, values in log.items()}
        if "ratio_error" in log:
            metrics["first_ratio_error"] = log["ratio_error"][0]  # 0, unless log-probs come from two computations
        steps = {"early_stop": float(stopped), "optimizer_steps": float(len(log["grad_norm"]))}
        return {**metrics, **steps, "lr": cfg.lr * factor}

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

    def held_out(self) -> dict[str, float]:
        """Nothing: its responses to held-out prompts say everything."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See `GradientTrainer.state_dict`."""
        generators = {"sampler": self.sampler.get_state(), "shuffler": self.shuffler.get_state()}
        state = {**super().state_dict(), **generators, "kl": self.kl.state_dict(), "env": self.env.state_dict()}
        return state if self.lagging_mask is None else {**state, "lagging_mask": self.lagging_mask.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `GradientTrainer.load_state_dict`."""
        super().load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
        self.sampler.set_state(state["sampler"])
        self.shuffler.set_state(state["shuffler"])
        self.env.load_state_dict(state["env"])
        if self.lagging_mask is not None:
            self.lagging_mask.load_state_dict(state["lagging_mask"])
