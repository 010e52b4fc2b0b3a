"""Choosing among texts: phrases or admissible answers as actions, each played as one, with their probabilities.

What there is to choose in a state, and how likely it is, is worked out in `option_menu.py`; free texts are
`text_actions.py`'s affair, single tokens that of `top_k.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgen_env.action_masks import check_slots
from textgen_env.base_env import as_actions
from textgen_env.lm.language_model import LanguageModel
from textgen_env.vector_env import NOOP
from textgen_env.wrappers.option_menu import Menu, OptionSource


class Options(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Choose among texts, each of which is written as one action (an option, or macro-action).

    ## Action Space
    `Discrete(n)`: action i writes the i-th text, token by token, behind what stands there, and an EOS token behind it;
    see `TextActions`. Where there are fewer than n texts, and where a token of a text is forbidden or outside of what
    the reference allows (`reference_top_p`, `reference_top_k`), the action is masked (`action_masks()`, bool (n,)) and
    an error when chosen.

    ## Rewards
    Σ γ^i·r_i over the k tokens of the text, with `info["steps"]` = k: a learner discounts the next value by γ^k
    (Sutton, Precup & Singh 1999).

    ## Probabilities
    `option_log_probs()` tells how likely a language model is to write each text here. A softmax over them is the policy
    of GLAM (Carta et al. 2023). `info["ref_logprob"]` is that of the chosen text under the reference.

    Args:
        env: an environment of this package; other wrappers go around this one. Observations stay as they are.
        options: the texts; or the name of a column of the prompts that holds them; or a function of a `Situation`,
            asked once in each state, for what changes from step to step.
        count: n; needed for a function, else the number of texts, the largest of the set's.
        gamma: γ of one token, in [0, 1].
        append_eos: whether an option ends the turn (an answer). Without, the next one goes on behind it (a phrase).

    Raises:
        TypeError, ValueError: an argument that is none, or the environment is another.

    References:
        Sutton, Precup & Singh, "Between MDPs and semi-MDPs" (1999); Carta et al., "Grounding large language models in
        interactive environments with online reinforcement learning" (2023).
    """

    def __init__(
        self,
        env: gym.Env,
        options: OptionSource,
        *,
        count: int | None = None,
        gamma: float = 1.0,
        append_eos: bool = True,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, options=options, count=count, gamma=gamma, append_eos=append_eos)
        gym.Wrapper.__init__(self, env)
        self.menu = Menu(env, options, count, append_eos)
        self.gamma = gamma
        self.action_space = spaces.Discrete(self.menu.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        result = self.env.reset(seed=seed, options=options)
        self.menu.forget()
        return result

    def step(self, action: int | np.integer[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Write an option.

        Raises:
            ValueError: it is masked or out of range. As with all that the wrapped environment raises, nothing of it has
                been written.
        """
        tokens = self.menu.tokens(0, int(as_actions("action", action).reshape(())))
        return self.env.unwrapped.step_tokens(tokens, discount=self.gamma)  # type: ignore[attr-defined,no-any-return]

    def option_texts(self) -> list[str]:
        """The texts that can be chosen here; at most n."""
        return list(self.menu.texts(0))

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (n,): the options that exist here; with `slots`, as `VectorOptions` gives them."""
        masks = self.menu.masks(check_slots(slots, 1))
        return masks[0] if slots is None else masks

    def option_log_probs(self, model: LanguageModel | None = None, *, per_token: bool = False) -> NDArray[np.float64]:
        """float64 (n,), log p of each option in the present state: the sum over its tokens, EOS included.

        At the environment's temperature and among the tokens that it allows, also by `reference_top_p` and
        `reference_top_k`; −inf where an option is masked.

        Args:
            model: whose; the reference if None. The prefix is read once for all options, and its keys and values stay
                in memory for the next step.
            per_token: the mean over the tokens instead of their sum, which favours short texts.
        """
        return self.menu.log_probs(np.zeros(1, dtype=np.int64), model, per_token)[0]


class VectorOptions(VectorWrapper):
    """`Options` in every slot, in any autoreset mode.

    Args:
        env: a batched environment of this package.
        options, count, gamma, append_eos: see `Options`.
    """

    def __init__(
        self,
        env: VectorEnv,
        options: OptionSource,
        *,
        count: int | None = None,
        gamma: float = 1.0,
        append_eos: bool = True,
    ) -> None:
        super().__init__(env)
        self.menu, self.gamma = Menu(env, options, count, append_eos), gamma
        self.single_action_space = spaces.Discrete(self.menu.size)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        result = self.env.reset(seed=seed, options=options)
        self.menu.forget()
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Write an option in every slot that plays and whose action is not `NOOP`.

        Raises:
            What `Options.step` raises, and then no slot has moved.
        """
        chosen = as_actions("actions", actions)
        if chosen.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {chosen.shape}")
        playing = self.env.unwrapped.engine.episodes.playing  # type: ignore[attr-defined]
        sequences: list[Any] = [None if action == NOOP else [0] for action in chosen]  # of no account where none plays
        for slot in np.flatnonzero(playing & (chosen != NOOP)).tolist():
            sequences[slot] = self.menu.tokens(slot, int(chosen[slot]))
        result = self.env.unwrapped.step_tokens(sequences, discount=self.gamma)  # type: ignore[attr-defined]
        self.menu.forget()
        return result  # type: ignore[no-any-return]

    def option_texts(self, slot: int) -> list[str]:
        """The texts that can be chosen in a slot; at most n."""
        return list(self.menu.texts(int(check_slots([slot], self.num_envs)[0])))

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (num_envs, n): the options that exist in each slot; all of them in a slot that does not play.

        Args:
            slots: m different slots, whose masks (m, n) are wanted; None: all.
        """
        return self.menu.masks(check_slots(slots, self.num_envs))

    def option_log_probs(
        self,
        model: LanguageModel | None = None,
        *,
        per_token: bool = False,
        slots: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """float64 (num_envs, n), or (m, n) of m slots; see `Options.option_log_probs`. 0 where no episode plays."""
        return self.menu.log_probs(check_slots(slots, self.num_envs), model, per_token)
