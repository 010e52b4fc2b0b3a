"""The settings of token-level PPO, each with its unit: of the algorithm, and of the command line around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from .extra import OmitArgPrefixes, arg
from .former_names import accept_former_names
from .policy import PolicyConfig
from .run_settings import RunSettings
from .setting_checks import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    MASS,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    TEXT,
    check,
    choice,
    optional,
)


@accept_former_names
@dataclass
class PPOConfig:
    """Settings of the algorithm; docs/ppo.md says what each does.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range, with its name and what would be right.
    """

    episodes: int = 128
    """Trajectories per iteration, at least the number of slots of the environment."""
    epochs: int = 2
    """Passes over them."""
    minibatch_size: int = 32
    """Trajectories per optimiser step."""
    micro_batch_size: int = 32
    """Trajectories per forward pass; gradients accumulate over minibatch_size / micro_batch_size of them."""
    lr: float = 4e-4
    """Peak learning rate of the actor (and of a separate critic). 4e-4 suits a model of a few million weights and LoRA;
    for all weights of one of 100 million begin between 1e-5 and 3e-5."""
    value_lr: float = 1e-3
    """Peak learning rate of the value head."""
    warmup_updates: int = 3
    """Iterations of linear warm-up."""
    lr_decay: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up, over the whole run."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
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
    kl_coef: float = 0.05
    """β, reward per nat of KL(π‖π_ref); 0 runs no reference model at all."""
    kl_in: Literal["reward", "loss"] = "reward"
    """−β·k1 in the reward of each token, or β·ratio·k3 in the loss."""
    adaptive_kl_target: Annotated[float | None, arg(aliases=["--kl-target"])] = None
    """If set, β adapts so that the mean KL(π‖π_ref) of a whole *response* stays near this many nats (Ziegler et al.
    2019). Its former name, kl_target, is taken for one more release."""
    kl_horizon: float = 10_000
    """Responses over which an adaptive β can change by about 20 %."""
    target_kl: float | None = None
    """Stop the update before a step once the policy has moved this many nats per token from the start of the update."""
    old_log_probs: Literal["scored", "sampled"] = "scored"
    """Old log-probs and values from a teacher-forced pass of their own, equal to those of the update to the last bit,
    or from decoding, which saves that pass: equal up to rounding (1e-5 in float32; in bfloat16 1e-2 on average, 0.1 at
    worst)."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 for all. Scored log-probs are of the same distribution."""
    top_p: float = 1.0
    """Sample from the nucleus of this mass; 1 for all."""
    ptx_coef: float = 0.0
    """Weight of the language-model loss on given texts (the "ptx" term of InstructGPT)."""

    def __post_init__(self) -> None:
        check(self, RULES)
        if self.minibatch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} must divide minibatch_size={self.minibatch_size}"
            )
        if (target := self.adaptive_kl_target) is not None and self.kl_coef == 0:
            raise ValueError(f"kl_coef=0 with adaptive_kl_target={target} must be > 0: β adapts by factors")


RULES = {
    **dict.fromkeys(("episodes", "epochs", "minibatch_size", "micro_batch_size"), COUNT),
    **dict.fromkeys(("warmup_updates", "top_k"), COUNT_OR_ZERO),
    **dict.fromkeys(("lr", "value_lr", "weight_decay", "value_coef", "kl_coef", "ptx_coef"), NOT_NEGATIVE),
    **dict.fromkeys(("max_grad_norm", "clip", "kl_horizon"), POSITIVE),
    **dict.fromkeys(("value_clip", "adaptive_kl_target", "target_kl"), optional(POSITIVE)),
    **dict.fromkeys(("gamma", "lam"), SHARE),
    "top_p": MASS,
    "entropy_coef": NOT_NEGATIVE,  # a bonus; a sign lost on the way would train towards one and the same text
    "whiten": FLAG,
    "lr_decay": choice("constant", "linear", "cosine"),
    "kl_in": choice("reward", "loss"),
    "old_log_probs": choice("scored", "sampled"),
}


@dataclass
class PPOSettings(RunSettings):
    """Train a language model with token-level PPO."""

    ptx_texts: str | None = None
    """A text file, one text a line, for the "ptx" term."""
    policy: OmitArgPrefixes[PolicyConfig] = field(default_factory=PolicyConfig)
    """Which weights there are and which learn."""
    ppo: OmitArgPrefixes[PPOConfig] = field(default_factory=PPOConfig)
    """The algorithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"ptx_texts": optional(TEXT)})
        if self.ppo.episodes < self.num_envs:
            raise ValueError(f"episodes={self.ppo.episodes} must be at least num_envs={self.num_envs}")
