"""The settings of a run with Stable-Baselines3's PPO, each with its unit; SB3 itself is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .training.extra import arg
from .training.former_names import accept_former_names
from .training.run_settings import RunSettings
from .training.setting_checks import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, SHARE, check, optional, whole


@accept_former_names
@dataclass
class SB3Settings(RunSettings):
    """Train a language model with the PPO of Stable-Baselines3."""

    num_envs: int = 32
    """Slots that are decoded side by side."""
    n_steps: int = 64
    """Tokens per slot and update; SB3 cuts rollouts there, also in the middle of a response."""
    epochs: int = 2
    """Passes over a rollout."""
    batch_size: int = 512
    """Tokens per optimiser step, about: whole episodes stay together."""
    lr: float = 1e-4
    """Learning rate at the start; falls linearly to 0."""
    value_scale: float = 10.0
    """The value head learns this many times as fast."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """ε of the clipped surrogate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """β, reward per nat of KL(π‖π_ref)."""
    adaptive_kl_target: Annotated[float | None, arg(aliases=["--kl-target"])] = None
    """If set, β adapts so that the mean KL of a whole response stays near this many nats. Its former name, kl_target,
    is taken for one more release."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains the weights themselves."""
    frozen_layers: int = 0
    """Transformer blocks, from the input up, that do not learn."""
    eval_prompts: int = 64
    """Prompts held out for evaluation; never trained on unless there are too few."""
    output: str | None = None
    """The run's folder; default: runs/sb3-<task>-seed<seed>, with a number behind it if that exists."""
    eval_every: int | None = None
    """Updates between evaluations on the held-out prompts, the best of which is kept in best/; None: only before and
    after the run."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder, if there is one."""
    seed: int = 1
    """Given to SB3, which seeds the global generators of torch, numpy and random."""
    dtype: str = "float32"
    """Type of the weights; bfloat16 goes with lora_rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, RULES)
        if (target := self.adaptive_kl_target) is not None and self.kl_coef == 0:
            raise ValueError(f"kl_coef=0 with adaptive_kl_target={target} must be > 0: β adapts by factors")
        if self.n_steps * self.num_envs < 2:
            raise ValueError(
                "n_steps=1 with num_envs=1 is one token per update; SB3 whitens advantages, of two at least"
            )


RULES = {
    **dict.fromkeys(("n_steps", "epochs"), COUNT),
    "batch_size": whole(2),  # SB3 whitens advantages
    **dict.fromkeys(("lora_rank", "frozen_layers"), COUNT_OR_ZERO),
    **dict.fromkeys(("lr", "value_coef", "entropy_coef", "kl_coef"), NOT_NEGATIVE),
    **dict.fromkeys(("value_scale", "clip", "max_grad_norm"), POSITIVE),
    **dict.fromkeys(("gamma", "lam"), SHARE),
    "adaptive_kl_target": optional(POSITIVE),
}
