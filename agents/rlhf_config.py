"""Settings of reinforcement learning from preferences, checked where they are made.

What lives here: the settings of the whole, and those of its parts side by side. What does not: what is done with them
(``rlhf.py``), labels (``preferences/loop.py``), each algorithm's own settings (in its own file).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .policy import PolicyConfig
from .ppo import PPOConfig
from .preferences.loop import LabelConfig
from .reward_model import RewardModelConfig
from .sft import SFTConfig
from .training.extra import OmitArgPrefixes
from .training.run_settings import FolderSettings
from .training.setting_checks import COUNT, COUNT_OR_ZERO, TEXT, check, optional


@dataclass
class RLHFSettings(FolderSettings):
    """From supervised fine-tuning through labels and a reward model to PPO, judged by the scorer that nobody saw.

    The task's scorer is the hidden judge: it labels pairs, and measures all policies at the end; PPO is paid by the
    reward model alone. With one round that is InstructGPT's pipeline; with several, labels and PPO alternate, and the
    reward model is fitted anew to all labels so far (Christiano et al. 2017):

        python -m textgen_env.agents.rlhf
        python -m textgen_env.agents.rlhf --rounds 5 --labels 1500

    Each stage is a run in a folder of its own. A pipeline that was stopped, or killed, goes on with --resume.
    """

    rounds: int = 1
    """Times that pairs are sampled and labelled, the reward model is fitted and PPO goes on."""
    sft_updates: int = 0
    """Optimiser steps of supervised fine-tuning on the references of the prompts. None for the embedded model, which
    was fine-tuned for its tasks."""
    reward_updates: int | None = None
    """Optimiser steps of each fit of the reward model; None: as many as the epochs take, and 24 at
    least."""
    reward_epochs: int = 2
    """Passes of each fit over its pairs: so many that the noise of single labels is not learned by heart."""
    ppo_updates: int = 40
    """Iterations of PPO, in all rounds together."""
    ptx_texts: str | None = None
    """A text file, one text per line, for the "ptx" term (--ppo.ptx-coef)."""
    labels: OmitArgPrefixes[LabelConfig] = field(default_factory=LabelConfig)
    """What is labelled, and by whom."""
    policy: OmitArgPrefixes[PolicyConfig] = field(default_factory=PolicyConfig)
    """Which weights of the policy learn."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """Supervised fine-tuning."""
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    """The reward model."""
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(kl_coef=0.1))
    """PPO. Rewards have mean 0 and deviation 1 over the first policy's responses, and β (kl_coef) is in their units."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {**dict.fromkeys(("rounds", "reward_epochs", "ppo_updates"), COUNT), "sft_updates": COUNT_OR_ZERO}
        check(self, {**rules, "reward_updates": optional(COUNT), "ptx_texts": optional(TEXT)})
        self.ppo.check_slots(self.num_envs)
        if self.rounds > self.ppo_updates:
            raise ValueError(f"rounds={self.rounds} must be at most ppo_updates={self.ppo_updates}")
        if self.labels.pairs is not None and self.rounds > 1:
            raise ValueError(f"pairs={self.labels.pairs!r} with rounds={self.rounds}: later rounds ask about new pairs")
        if self.labels.select != "random" and self.reward_model.members < 2:
            raise ValueError(f"select={self.labels.select!r} needs an ensemble; members={self.reward_model.members}")
        self.labels.schedule(self.rounds)  # a round without labels is refused
