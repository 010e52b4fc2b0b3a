"""Any Gymnasium environment with texts, or with what texts can be mapped to, as the environment that answers back.

A state is what was played: the seed and the agent's turns, from which the episode is played again. No environment of
its own lives here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from textgen_env.locations import LOCATION, import_location
from textgen_env.notices import shown

from .base import Reply, ReplyLike

if TYPE_CHECKING:
    from textgen_env.episode import Prompt

Act: TypeAlias = "Callable[[str], Any] | Mapping[str, Any]"
SEEDS = 2**31  # what every generator takes


@dataclass(slots=True)
class Played:
    """What has been played in a slot: all that its state depends on.

    Attributes:
        seed, options: of the environment's `reset`.
        texts: the agent's turns.
        heard: a checksum of all replies, so that an environment that is not deterministic is found out.
    """

    seed: int
    options: dict[str, Any] | None
    texts: list[str] = field(default_factory=list)
    heard: int = 0


class TextEnvResponder:
    """Plays a Gymnasium environment per slot: its first observation is the opening, each turn of the agent's a step.

    A turn that is no action is answered by saying so, at the price of `penalty`, and the environment is not stepped. An
    environment that raises, or pays what is no finite number, has failed: its episode is truncated and not scored.

    Episodes can be saved, branched and pickled: a state is the seed and the agent's turns, and is played again in a
    fresh environment. That needs one that does the same for the same seed and actions; where it does not, loading or
    restoring raises.

    Args:
        env: a registered id, a class or function as "module:attribute", or one that makes the environment.
        arguments: it is made with.
        observe: `f(observation) -> str`, or its place; default: texts as they are, anything else as `str` has it.
        act: what the agent's text means, without white space around it: `f(text) -> action`, or its place, where a
            `ValueError` or None says that it is no action; or a mapping from texts. Default: the text itself where the
            action space is `Text`, its number where it is `Discrete`.
        penalty: what a turn costs that is no action.
        template: what is made of each observation, "{text}", before the agent reads it.
        options: the column of the prompts that holds the `options` of the environment's `reset`.
        info: which entries of the environment's `info` go into the reply's, as plain values.
        opening: whether the first observation is said; not behind conversations, in which the agent writes next, so
            that the prompt must say what there is to see.

    Raises:
        TypeError, ValueError, ImportError: an argument that is none, or the environment cannot be made.
    """

    def __init__(
        self,
        env: str | Callable[..., gym.Env],
        *,
        arguments: Mapping[str, Any] | None = None,
        observe: str | Callable[[Any], str] | None = None,
        act: str | Act | None = None,
        penalty: float = 0.0,
        template: str = "{text}",
        options: str | None = None,
        info: Sequence[str] = (),
        opening: bool = True,
    ) -> None:
        if not isinstance(template, str) or "{text}" not in template:
            raise ValueError(f"text_env: template={template!r} must be a text with '{{text}}' in it")
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not 0 <= penalty < float("inf"):
            raise ValueError(f"text_env: penalty={shown(penalty)} must be a finite number ≥ 0")
        if isinstance(info, str):
            raise TypeError(f"text_env: info={info!r} must be a list of names")
        if not isinstance(opening, bool):
            raise TypeError(f"text_env: opening={shown(opening)} must be True or False")
        self._says_first = opening
        self._maker, self._arguments = _maker(env), dict(arguments or {})
        self._spare: Any = self._make()
        self._observe = _found(observe, "observe") or _as_text
        self._act = _found(act, "act") or _default_act(self._spare)
        self._penalty, self._template, self._options, self._told = float(penalty), template, options, tuple(info)
        self._envs: dict[int, Any] = {}
        self._played: dict[int, Played] = {}
        self._infos: dict[int, Mapping[str, Any]] = {}

    # --- the protocol -------------------------------------------------------------------------------------------------

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Any]:
        """Reset the environments of these slots: their first observations, an exception where one failed."""
        return [self._begin(*one) for one in zip(slots, prompts, seeds, strict=True)]

    def respond(self, slots: Sequence[int], texts: Sequence[str]) -> list[ReplyLike]:
        """Take a step in each: observation, reward and flags as replies, an exception where one failed."""
        return [self._answer(slot, text) for slot, text in zip(slots, texts, strict=True)]

    def _begin(self, slot: int, prompt: Prompt, seed: int) -> Any:
        try:
            options = prompt.extra.get(self._options) if self._options else None
            self._played[slot] = Played(int(seed) % SEEDS, None if options is None else dict(options))
            if slot not in self._envs:
                self._envs[slot] = self._make()
            opening, self._infos[slot] = self._start(self._envs[slot], self._played[slot])
            return opening if self._says_first else ""
        except Exception as error:
            self._discard(slot)
            return error

    def _answer(self, slot: int, text: str) -> ReplyLike:
        try:
            env = self._live(slot)
            reply, self._infos[slot] = self._play(env, self._played[slot], text, self._infos[slot])
            return reply
        except Exception as error:
            self._discard(slot)
            return error

    def info(self, slot: int) -> Mapping[str, Any]:
        """What the environment of a slot said in its last `info`, such as the commands that it admits."""
        self._live(slot)
        return self._infos[slot]

    # --- playing ------------------------------------------------------------------------------------------------------

    def _make(self) -> Any:
        env, self._spare = getattr(self, "_spare", None), None
        if env is None:
            env = self._maker(**self._arguments)
            if not all(hasattr(env, name) for name in ("reset", "step", "action_space")):
                raise TypeError(f"text_env: env made {shown(env)}, which is no environment of Gymnasium's kind")
        return env

    def _start(self, env: Any, played: Played) -> tuple[str, Mapping[str, Any]]:
        observation, info = env.reset(seed=played.seed, options=played.options)
        return self._text(self._observe(observation)), info

    def _play(self, env: Any, played: Played, text: str, info: Mapping[str, Any]) -> tuple[Reply, Mapping[str, Any]]:
        """A turn in an environment: the reply, and the environment's info after it."""
        try:
            action = self._action(env, text.strip())
        except (ValueError, LookupError) as error:
            reply = Reply(self._text(str(error)), reward=-self._penalty)
        else:
            observation, reward, terminated, truncated, info = env.step(action)
            if not isfinite(reward):
                raise ValueError(f"the environment paid {reward}, not a finite number")
            told = {name: info[name] for name in self._told if name in info}
            ends = {"terminated": bool(terminated), "truncated": bool(truncated) and not terminated}
            reply = Reply(self._text(self._observe(observation)), reward=float(reward), info=told, **ends)
        played.texts.append(text)
        heard = repr((reply.text, reply.reward, reply.terminated, reply.truncated)).encode()
        played.heard = zlib.crc32(heard, played.heard)
        return reply, info

    def _action(self, env: Any, text: str) -> Any:
        if isinstance(self._act, Mapping):
            if text not in self._act:
                raise ValueError(f"There is no action {text!r}. There are: {', '.join(map(str, self._act))}.")
            return self._act[text]
        action = self._act(text)
        if action is None or not (isinstance(env.action_space, spaces.Text) or action in env.action_space):
            raise ValueError(f"There is no action {text!r}.")
        return action

    def _text(self, text: Any) -> str:
        if not isinstance(text, str):
            raise TypeError(f"observe returned {shown(text)}; it must be a text")
        return self._template.replace("{text}", text)

    # --- keeping ------------------------------------------------------------------------------------------------------

    def _replayed(self, played: Played) -> tuple[Any, Mapping[str, Any]]:
        """A fresh environment in which the same has been played, and its last info.

        Raises:
            ValueError: it answered otherwise.
        """
        env, again = self._make(), Played(played.seed, played.options)
        _, info = self._start(env, again)
        for text in played.texts:
            _, info = self._play(env, again, text, info)
        if again.heard != played.heard:
            env.close()
            raise ValueError(
                "text_env: the environment answered otherwise when the same was played again from the same seed, so "
                "that its episodes can neither be saved nor branch"
            )
        return env, info

    def _live(self, slot: int) -> Any:
        """The environment of a slot; of a pickled one, played up to where it was."""
        if slot not in self._played:
            raise RuntimeError(f"text_env: slot {slot} has no episode; reset it first")
        if slot not in self._envs:
            self._envs[slot], self._infos[slot] = self._replayed(self._played[slot])
        return self._envs[slot]

    def _discard(self, slot: int) -> None:
        """An environment that has failed is not used again."""
        env = self._envs.pop(slot, None)
        if env is not None:
            with suppress(Exception):  # it has failed anyway
                env.close()

    def state_dict(self) -> dict[str, Any]:
        """What has been played in each slot."""
        return {str(slot): asdict(played) for slot, played in self._played.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the same again in every slot.

        Raises:
            TypeError, ValueError: no such state, or the environment is not deterministic; nothing has changed.
        """
        played = {int(slot): _read(one) for slot, one in state.items()}
        replayed = {slot: self._replayed(one) for slot, one in played.items()}
        for slot in list(self._envs):
            self._discard(slot)
        self._played = played
        self._envs = {slot: env for slot, (env, _) in replayed.items()}
        self._infos = {slot: info for slot, (_, info) in replayed.items()}

    def clone_state(self, slot: int) -> dict[str, Any]:
        """What has been played in a slot."""
        self._live(slot)
        return asdict(self._played[slot])

    def restore_state(self, slot: int, state: Any) -> None:
        """Play the same again in a slot; see `load_state_dict`."""
        played = _read(state)
        env, info = self._replayed(played)
        self._discard(slot)
        self._played[slot], self._envs[slot], self._infos[slot] = played, env, info

    def close(self) -> None:
        """Close all environments."""
        for slot in list(self._envs):
            self._discard(slot)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold what has been played, not the environments."""
        return self.__dict__ | {"_envs": {}, "_infos": {}, "_spare": None}

    def __repr__(self) -> str:
        return f"TextEnvResponder({shown(self._maker)})"


def _maker(env: Any) -> Callable[..., Any]:
    """What makes the environment."""
    if isinstance(env, str):
        if LOCATION.fullmatch(env):
            return _maker(import_location(env, "text_env: env"))
        return _Registered(env)
    if not callable(env):
        raise TypeError(f"text_env: env={shown(env)} must be an id, a place or what makes one, not a live environment")
    return env  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Registered:
    """Makes a registered environment; errors are Gymnasium's, which know what ids there are."""

    name: str

    def __call__(self, **arguments: Any) -> Any:
        return gym.make(self.name, disable_env_checker=True, **arguments)


def _found(value: Any, argument: str) -> Any:
    """A function, or a mapping, of an argument that may say where it is."""
    if isinstance(value, str):
        if not LOCATION.fullmatch(value):
            raise ValueError(f'text_env: {argument}={value!r} must be a function, or its place, "module:attribute"')
        value = import_location(value, f"text_env: {argument}")
    if value is not None and not callable(value) and not (argument == "act" and isinstance(value, Mapping)):
        raise TypeError(f"text_env: {argument}={shown(value)} must be a function, not {type(value).__name__}")
    return value


def _as_text(observation: Any) -> str:
    return observation if isinstance(observation, str) else str(observation)


def _default_act(env: Any) -> Callable[[str], Any]:
    if isinstance(env.action_space, spaces.Text):
        return str
    if isinstance(env.action_space, spaces.Discrete):
        return _number
    raise TypeError(f"text_env: act= must say what action of {env.action_space} a text is: f(text), or a mapping")


def _number(text: str) -> np.int64:
    try:
        return np.int64(int(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number.") from None


def _read(state: Any) -> Played:
    """What `asdict` made of it.

    Raises:
        TypeError, ValueError: it is none.
    """
    kinds: dict[str, Any] = {"seed": int, "options": (dict, type(None)), "texts": list, "heard": int}
    if not isinstance(state, Mapping) or set(state) != set(kinds):
        raise ValueError(f"text_env: {shown(state)} is no state of an episode, which has {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(state[name], kind):
            raise TypeError(f"text_env: {name}={shown(state[name])} of a state is of the wrong type")
    if not all(isinstance(text, str) for text in state["texts"]):
        raise TypeError(f"text_env: texts={shown(state['texts'])} of a state must be texts")
    return Played(state["seed"], state["options"], list(state["texts"]), state["heard"])
