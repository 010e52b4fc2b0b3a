"""The vector environment: n slots of the token MDP as one `gymnasium.vector.VectorEnv`, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgen_env.action_masks import check_slots
from textgen_env.base_env import RENDER_MODES, TextGenBase, as_actions, as_sequences, check_seed, prompt_choice
from textgen_env.config import spelled_out
from textgen_env.engine import Slots
from textgen_env.episode import Prompt, StepResult
from textgen_env.lm.language_model import LanguageModel
from textgen_env.messages import is_conversation
from textgen_env.notices import shown, warn_user
from textgen_env.saved_state import clone_slot, restore_slot
from textgen_env.token_sequences import step_sequences

Observations = dict[str, NDArray[Any]]
NOOP = -1
"""The action of a slot that is not stepped. It is not in the action space."""
REST = NOOP
"""The old name of `NOOP`, for one release."""


class TextGenVectorEnv(TextGenBase, VectorEnv[Observations, NDArray[np.int64], NDArray[Any]]):
    """n slots of `TextGenEnv`, stepped as one batch: one forward of the reference and one call of the scorer a step.

    With the same seeds and actions it returns what `SyncVectorEnv` of `TextGenEnv` returns, in each autoreset mode. The
    default is SAME_STEP, in which a slot that ends starts its next prompt at once, while the others go on: the old
    observation and info are in `infos["final_obs"]` and `infos["final_info"]`.

    A slot whose action is `NOOP` (−1) is not stepped: its episode, observation and flags stay as they are, its reward
    is 0, and `infos` has no entry for it. A running slot can so wait for the others or for something outside, in any
    autoreset mode.

    With DISABLED a slot that has ended waits for `reset(options={"reset_mask": bool (n,)})`; until then any action but
    `NOOP` is an error. In this way a caller can collect exactly the episodes it wants. With NEXT_STEP a slot that has
    ended starts its next prompt in the next step, whatever its action.

    Args:
        num_envs: n.
        autoreset_mode: a `gymnasium.vector.AutoresetMode` or its value.
        render_mode: "human", "ansi" or "rgb_array".
        **arguments: those of `TextGenEnv`.

    Raises:
        TypeError, ValueError: an argument that is unknown, missing or out of range; the message names it.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 8}

    @spelled_out
    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs={shown(num_envs)} must be an integer of at least 1")
        num_envs = int(num_envs)
        self.num_envs = num_envs
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._set_up(num_envs, arguments, render_mode)
        self.single_observation_space, self.single_action_space = self._spaces()  # type: ignore[assignment]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._slot_generators: list[np.random.Generator] = []
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)

    # --- reset --------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode in every slot, or in those of `options["reset_mask"]`.

        Args:
            seed: one integer s (slot i gets s + i), or one per slot; restarts the slots' generators.
            options: `{"prompt": one for all, or a list with one per slot, "reset_mask": bool (n,)}`; a prompt is a
                text, a conversation, a mapping or an index. With a list, a None entry draws that slot's prompt.
                With `"response"` beside it, a text or token ids for all, or a list with one of these or None per slot,
                the agent has written that already; what those tokens cost in KL is not told.

        Raises:
            TypeError, ValueError, IndexError, RuntimeError: see `TextGenEnv.reset`; nothing has changed.
        """
        self.engine.reward.check_policy()
        choices = self._prompt_choices(options)
        responses = self._responses(self._given_responses(options), choices)
        slots, seeds = np.flatnonzero(self._reset_mask(options)), self._seeds(seed)
        self._note_cut(slots.tolist(), meant=any(given is not None for given in (*seeds, *choices)))
        for slot in slots.tolist():
            if seeds[slot] is not None:
                self._generators()[slot] = seeding.np_random(seeds[slot])[0]
        infos: dict[str, Any] = {}
        self._start(slots, infos, choices, responses)
        return self.engine.episodes.observation(), infos

    def _start(
        self,
        slots: Slots,
        infos: dict[str, Any],
        choices: Sequence[Prompt | None] | None = None,
        responses: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        generators, engine = self._generators(), self.engine
        prompts = {slot: (choices and choices[slot]) or engine.starts.draw(generators[slot]) for slot in slots.tolist()}
        engine.start(
            prompts, generators, {slot: responses[slot] for slot in prompts if responses and slot in responses}
        )
        self._terminated[slots] = self._truncated[slots] = False
        for slot in slots.tolist():
            self._add_info(infos, self._reset_info(slot), slot)

    def _seeds(self, seed: Any) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, (list, tuple, np.ndarray)) or np.ndim(seed) == 0:
            first = int(check_seed(seed) or 0)
            return [first + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed={shown(seed)} must be one integer, or one for each of num_envs={self.num_envs}")
        return [check_seed(one, f"seed[{row}]") for row, one in enumerate(seed)]

    def _reset_mask(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask']={shown(mask)} must be a bool array of shape ({self.num_envs},)")
        if not mask.any():
            raise ValueError("options['reset_mask'] must be True for at least one slot")
        return mask

    def _prompt_choices(self, options: dict[str, Any] | None) -> list[Prompt | None]:
        """The prompt that each slot is given, or None where it is to draw one."""
        choice = prompt_choice(options, ("prompt", "response", "reset_mask"))
        if not isinstance(choice, (list, tuple)) or is_conversation(choice):
            return [None if choice is None else self.engine.starts.named(choice)] * self.num_envs
        if len(choice) != self.num_envs:
            raise ValueError(f"options['prompt'] has {len(choice)} entries; it needs one for each of {self.num_envs}")
        return [None if one is None else self.engine.starts.named(one) for one in choice]

    def _given_responses(self, options: dict[str, Any] | None) -> list[Any]:
        """What the agent is to have written already in each slot, or None."""
        given: Any = (options or {}).get("response")
        if not isinstance(given, (list, tuple)) or all(isinstance(one, (int, np.integer)) for one in given):
            return [given] * self.num_envs
        if len(given) != self.num_envs:
            raise ValueError(f"options['response'] has {len(given)} entries; it needs one for each of {self.num_envs}")
        return list(given)

    # --- step ---------------------------------------------------------------------------------------------------------

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Append a token to every slot that plays and whose action is not `NOOP`.

        Args:
            actions: integers (n,), tokens or `NOOP`. Ignored for slots that reset in this step (NEXT_STEP).

        Raises:
            gymnasium.error.ResetNeeded: a slot has no episode running.
            TypeError: actions that are no integers.
            ValueError: an action out of range or masked, another shape, or a KL that is not finite.
            TypeError, ValueError: what an environment that answers back said is no reply.
            ScorerError: the scorer failed. As with all of these, no slot has moved.
        """
        actions = as_actions("actions", actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions must have shape ({self.num_envs},), got {actions.shape}")
        active = ~self._restarting & (actions != NOOP)
        return self._go_on(self.engine.step(actions, active), active)

    def step_tokens(
        self, sequences: Sequence[Sequence[int] | NDArray[np.int64] | None], *, discount: float = 1.0
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Append several tokens to each slot, as one step; see `TextGenEnv.step_tokens`.

        Args:
            sequences: n lists of tokens. None leaves a slot as it is, like `NOOP`. Ignored for slots that reset.
            discount: γ of one token, in [0, 1].

        Raises:
            What `step` raises; ValueError: no tokens, or not one list per slot.
        """
        chosen = as_sequences("sequences", sequences, self.num_envs)
        active = ~self._restarting & [slot in chosen for slot in range(self.num_envs)]
        played = {slot: tokens for slot, tokens in chosen.items() if active[slot]}
        return self._go_on(step_sequences(self.engine, played, discount), active)

    @property
    def _restarting(self) -> NDArray[np.bool_]:
        """bool (n,): slots that the next step starts anew, whatever their action."""
        ended = self._terminated | self._truncated
        return ended if self.autoreset_mode is AutoresetMode.NEXT_STEP else np.zeros_like(ended)

    def _go_on(
        self, result: StepResult, active: NDArray[np.bool_]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """The slots have been stepped: note which ended, and start those anew that are due."""
        restarting = self._restarting
        np.copyto(self._terminated, result.terminated, where=active)
        np.copyto(self._truncated, result.truncated, where=active)
        terminated, truncated = self._terminated & ~restarting, self._truncated & ~restarting
        infos = self._infos(result, active)
        self._print(result.endings)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            restarting[list(result.endings)] = True
        if restarting.any():
            self._start(np.flatnonzero(restarting), infos)
        return self.engine.episodes.observation(), result.rewards, terminated, truncated, infos

    def _infos(self, result: StepResult, active: NDArray[np.bool_]) -> dict[str, Any]:
        """Gymnasium's dictionary of arrays with `_key` masks, filled by column, which is what keeps a step cheap."""
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        stays = active.copy()
        if same_step:
            stays[list(result.endings)] = False
        infos: dict[str, Any] = {}
        if stays.any():
            parts: dict[str, Any] = {}
            for name, values in result.reward_parts.items():
                parts[name], parts[f"_{name}"] = np.where(stays, values, 0.0), stays.copy()
            infos["reward_parts"], infos["_reward_parts"] = parts, stays.copy()
            if result.ref_log_prob is not None:
                infos["ref_logprob"], infos["_ref_logprob"] = np.where(stays, result.ref_log_prob, 0.0), stays
        for slot in sorted({*result.endings, *result.added}):
            if same_step and slot in result.endings:
                final_obs = self.engine.episodes.observation(slot)
                self._add_info(infos, {"final_obs": final_obs, "final_info": self._step_info(result, slot)}, slot)
            else:
                self._add_info(infos, {**result.added.get(slot, {}), **result.endings.get(slot, {})}, slot)
        return infos

    def abandon(self, slots: NDArray[np.int64]) -> None:
        """End the running episodes of some slots without a score; they wait for their reset (autoreset_mode DISABLED).

        What a wrapper that truncates leaves behind: to the environment such an episode is still running. Slots whose
        episode has ended stay as they are.
        """
        running = slots[self.engine.episodes.playing[slots]]
        self.engine.episodes.playing[running] = False
        self._truncated[running] = True

    # --- the rest -----------------------------------------------------------------------------------------------------

    def clone_state(self, slot: int) -> dict[str, Any]:
        """The episode of a slot as it stands; see `TextGenEnv.clone_state`. For `restore_state` in any slot."""
        (row,) = check_slots([slot], self.num_envs).tolist()
        flags = {"terminated": bool(self._terminated[row]), "truncated": bool(self._truncated[row])}
        return {**clone_slot(self.engine, row), **flags}

    def restore_state(self, slot: int, state: Any) -> Observations:
        """Let the episode that `clone_state` was taken of go on in a slot; the others stay as they are.

        States of single environments with the same arguments will do, and the other way round.

        Returns:
            The slot's observation.

        Raises:
            TypeError, ValueError: no such slot or state; nothing has changed.
        """
        (row,) = check_slots([slot], self.num_envs).tolist()
        restore_slot(self.engine, row, state)
        ended = not self.engine.episodes.playing[row]
        self._truncated[row] = bool(state.get("truncated", False))
        self._terminated[row] = ended and not self._truncated[row]
        return self.engine.episodes.observation(row)

    def action_masks(self, slots: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """bool (n, V), True where an action is allowed in each slot's present state.

        Args:
            slots: m different slots, whose masks (m, V) are wanted, in this order; None: all.

        Raises:
            TypeError, ValueError: slots that there are not.
        """
        return self.engine.action_masks(check_slots(slots, self.num_envs))

    def bind_policy(self, policy: Callable[[Observations], Any] | LanguageModel | None) -> None:
        """Let the reward pay the exact KL of the agent's policy, and a scorer that sees the policy see it.

        Args:
            policy: `fn(observations) -> logits` (m, V) for a batch of m observations (those of the slots that are
                stepped: all n, unless some restart or get `NOOP`), before temperature and masks; a `LanguageModel` or
                its prefix cache; None unbinds.
        """
        self.engine.bind_policy(policy, batched=True)

    def render(self) -> tuple[Any, ...] | None:
        """One frame per slot, as `TextGenEnv` renders it; None in "human" mode, which prints episodes as they end."""
        if self.render_mode is None:
            warn_user("render() needs render_mode: gym.make_vec(id, render_mode='ansi')")
            return None
        if self.render_mode == "human":
            return None
        return tuple(self._render(row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Release the caches of the models."""
        self.engine.close()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The slots' generators."""
        return tuple(self._generators())

    def _generators(self) -> list[np.random.Generator]:
        if not self._slot_generators:
            self._slot_generators = [seeding.np_random()[0] for _ in range(self.num_envs)]
        return self._slot_generators

    def state_dict(self) -> dict[str, Any]:
        """See `TextGenBase.state_dict`; with the flags of slots that have ended."""
        flags = {"terminated": self._terminated.tolist(), "truncated": self._truncated.tolist()}
        return super().state_dict() | flags

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `TextGenBase.load_state_dict`."""
        flags = [self._saved_per_slot(state, name) for name in ("terminated", "truncated")]
        for name, values in zip(("terminated", "truncated"), flags, strict=True):
            if not all(isinstance(value, bool) for value in values):
                raise TypeError(f"state[{name!r}]={shown(values)} must be {self.num_envs} booleans")
        super().load_state_dict(state)
        self._terminated[:], self._truncated[:] = flags


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(known.value) for known in AutoresetMode)
        kind = ValueError if isinstance(mode, str) else TypeError
        raise kind(f"autoreset_mode={shown(mode)} must be one of {known}") from None
