"""TRL: a responder as the environment of `trl.GRPOTrainer(environment_factory=…)`, to which models talk by a tool.

TRL writes the turns and keeps the dialogue; from here it takes the opening, the replies and what they pay. Data sets,
scorers and settings are in `trl.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from textgen_env.episode import Prompt
from textgen_env.integrations.trl import NOT_COLUMNS
from textgen_env.prompts import as_prompt
from textgen_env.responders import Responder, as_responder
from textgen_env.responders.base import checked

OVER = "The episode is over."


class TurnEnvironment:
    """One rollout's dialogue with a responder, in the form that TRL asks for: its method `say` is the tool.

    Args:
        responder: shared by all rollouts.
        slot: this rollout's number in it.
        max_turns: turns that are answered.
        seed: of the episodes that follow each other here; a data set's column "seed" wins over it.
    """

    def __init__(self, responder: Responder, slot: int, max_turns: int, seed: int) -> None:
        self._responder, self._slot, self._max_turns = responder, slot, max_turns
        self._generator = np.random.default_rng([seed, slot])
        self._turns, self._paid, self._over, self._failed = 0, 0.0, True, False

    def reset(self, **row: Any) -> str | None:
        """Begin an episode.

        Args:
            **row: of the data set: `prompt`, `references` and further columns, which the responder gets.

        Returns:
            What the environment says first, which TRL puts behind the last message; None for nothing.
        """
        seed = row.get("seed")
        seed = int(self._generator.integers(2**63 - 1)) if seed is None else int(seed)
        self._turns, self._paid, self._over, self._failed = 0, 0.0, False, False
        known = {key: value for key, value in row.items() if key not in NOT_COLUMNS}
        prompt = as_prompt(known, "row") if known.get("prompt") else Prompt("", (), known)
        try:
            opening: Any = self._responder.reset([self._slot], [prompt], [seed])[0]
        except Exception as error:
            opening = error
        return self._fail(opening) if isinstance(opening, Exception) else opening or None

    def say(self, text: str) -> str:
        """Say something to the environment, which answers.

        Args:
            text: What to say.

        Returns:
            What the environment answers.
        """
        if self._over:
            return OVER
        self._turns += 1
        try:
            answer: Any = self._responder.respond([self._slot], [text])[0]
        except Exception as error:
            answer = error
        if isinstance(answer, Exception):
            return self._fail(answer)
        if answer is None:
            self._over = True
            return OVER
        reply = checked(answer, self._slot)
        self._paid += float(reply.reward)
        self._over = reply.terminated or reply.truncated or self._turns >= self._max_turns
        return reply.text

    def get_reward(self) -> float | None:
        """What the environment has paid; None where it failed, which TRL leaves out."""
        return None if self._failed else self._paid

    def _fail(self, error: Exception) -> str:
        self._failed = self._over = True
        return f"The environment failed: {type(error).__name__}."


def environment_factory(env: Any, *, seed: int = 0) -> Callable[[], TurnEnvironment]:
    """What `trl.GRPOTrainer` takes as `environment_factory`, of a task with a responder.

    Each rollout gets an environment of its own, whose reward is added to those of `reward_funcs`, if any. Prompts must
    be conversations, and the chat template one with tools that TRL knows.

    Args:
        env: a single or batched environment of this package.
        seed: of all episodes. Rollouts of one prompt differ in it, unless the data set has a column "seed".

    Raises:
        ValueError: a task without a responder.
    """
    config = env.unwrapped.engine.config
    if config.responder is None:
        raise ValueError("environment_factory is for a task with a responder; others need none, see trainer_arguments")
    responder, slots = as_responder(config.responder), count()
    return partial(_made, responder, slots, config.max_turns, seed)


def _made(responder: Responder, slots: Any, max_turns: int, seed: int) -> TurnEnvironment:
    return TurnEnvironment(responder, next(slots), max_turns, seed)
