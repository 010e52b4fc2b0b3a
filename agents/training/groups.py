"""Several responses to each prompt: what trainers that compare them share.

What lives here: `GroupConfig`, and `GroupTrainer`, whose rollouts are groups. What does not: how a group is compared
(``advantages.py``, the algorithms' own files), the loop (``on_policy.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..rollout import Rollout
from .on_policy import OnPolicyConfig, OnPolicyTrainer
from .setting_checks import COUNT, check


@dataclass
class GroupConfig(OnPolicyConfig):
    """Settings of on-policy algorithms that play groups."""

    group_size: int = 4
    """Responses per prompt; divides episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, {"group_size": COUNT})
        if self.episodes % self.group_size:
            raise ValueError(f"group_size={self.group_size} must divide episodes={self.episodes}")


class GroupTrainer(OnPolicyTrainer):
    """An on-policy trainer whose rollouts are groups of responses to one prompt, in adjacent rows."""

    def collect(
        self,
        prompts: Sequence[Any] | None = None,
        *,
        responses: Sequence[Sequence[int]] | None = None,
        greedy: bool = False,
    ) -> Rollout:
        """Play ``group_size`` responses to each of the prompts that are drawn, side by side; or to ``prompts``.

        Those of a group begin with the same, where ``reset_share`` lets them begin with anything.
        """
        if prompts is None:
            groups = self.config.episodes // self.config.group_size
            drawn, members = self.draw_prompts(groups), range(self.config.group_size)
            prompts = [prompt for prompt in drawn for _ in members]
            if (begun := self.draw_beginnings(drawn)) is not None:
                responses = [tokens for tokens in begun for _ in members]
        return super().collect(prompts, responses=responses, greedy=greedy)
