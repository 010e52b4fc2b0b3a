"""Stable-Baselines3 and sb3-contrib: everything that a user imports from here; docs/integrations.md says what works.

The parts: `sb3_vec_env.py` (the environment), `sb3_policy.py` (a language model as actor and critic), `sb3_buffer.py`
(whole episodes for its updates), `sb3_callback.py` (the KL penalty), `sb3_maskable.py` (the same for MaskablePPO; it
needs sb3-contrib and loads when asked for).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    message = "textgen_env.integrations.sb3 needs Stable-Baselines3: pip install 'textgen_env[sb3]'"
    raise ImportError(message) from error

from textgen_env.integrations.sb3_buffer import EpisodeRolloutBuffer
from textgen_env.integrations.sb3_callback import KLPenaltyCallback
from textgen_env.integrations.sb3_policy import LMActorCriticPolicy
from textgen_env.integrations.sb3_vec_env import SB3VecEnv

if TYPE_CHECKING:
    from textgen_env.integrations.sb3_maskable import MaskableEpisodeRolloutBuffer, MaskableLMActorCriticPolicy

__all__ = [
    "EpisodeRolloutBuffer",
    "KLPenaltyCallback",
    "LMActorCriticPolicy",
    "MaskableEpisodeRolloutBuffer",
    "MaskableLMActorCriticPolicy",
    "SB3VecEnv",
]


def __getattr__(name: str) -> Any:
    if name in ("MaskableEpisodeRolloutBuffer", "MaskableLMActorCriticPolicy"):
        from textgen_env.integrations import sb3_maskable  # optional: sb3-contrib

        return getattr(sb3_maskable, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
