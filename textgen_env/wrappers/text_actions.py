"""A whole text as one action: for agents that write texts, or take them from elsewhere, and know no tokens.

How several tokens become one step is `token_sequences.py`'s affair, choosing among given texts that of `options.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from textgen_env.config import check_choice
from textgen_env.engine import Engine
from textgen_env.notices import shown
from textgen_env.replies import CHARACTERS_PER_TOKEN
from textgen_env.wrappers.attributes import check_directly_around
from textgen_env.wrappers.text_spaces import UnicodeText, is_writable

OBSERVATIONS = ("text", "tokens")


class TextActions(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Write a whole text per step: a response, a turn or, with `until`, a sentence.

    ## Action Space
    `UnicodeText(max_length)`: any text, "" too. It is encoded behind what stands there and written token by token, as
    the wrapped environment would take them one by one: rewards are summed, masks, KL and stop strings hold for each
    token. Then an EOS token is written, which ends the episode, or the turn where an environment answers back.

    A text stops where the episode or the turn ends: at `max_new_tokens`, a stop string, a turn string. What is behind
    that is not written, and `info["unwritten"]` says how many tokens that was.

    ## Observation Space
    `Dict` of two texts: "prompt" (as in `info`), and "response", what stands behind it: all that agent and environment
    have said. Text-level agents, which call a model or a service with a text, read the two joined; that they are apart
    tells them where the task ends and the dialogue begins. `observe="tokens"` leaves the observation as it is.

    ## Information
    `steps` (tokens that were written), `ref_logprob` and, with a bound policy, `kl` are sums over the tokens of the
    text; `ref_logprob_sum` and `kl_sum` at the end are, as ever, of the episode. `reply` is what the environment said.

    Args:
        env: an environment of this package; other wrappers go around this one.
        until: texts that end an action, such as ".": what is behind the first one is dropped, and no EOS is written.
            A text without any is the last one, as if a generator had stopped at EOS.
        append_eos: whether a text ends with an EOS token. Without, only limits and stop strings end the episode.
        observe: "text" or "tokens".

    Raises:
        TypeError, ValueError: an argument that is none, or the environment is another.
    """

    def __init__(
        self, env: gym.Env, until: Sequence[str] = (), *, append_eos: bool = True, observe: str = "text"
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, until=until, append_eos=append_eos, observe=observe)
        gym.Wrapper.__init__(self, env)
        self._writer = Writer(env, until, append_eos)
        self._texts = check_observe(observe)
        self.action_space = self._writer.space
        if self._texts:
            self.observation_space = self._writer.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observed(observation), info

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Write a text.

        Raises:
            gymnasium.error.ResetNeeded: before `reset` or after the end.
            TypeError, ValueError: no text, one that is too long, or empty where no EOS follows; or one of its tokens is
                masked, or its KL not finite. As with all that the wrapped environment raises, none of it is written.
        """
        tokens = self._writer.tokens(0, action)
        with naming(action):
            observation, *rest = self.env.unwrapped.step_tokens(tokens)  # type: ignore[attr-defined]
        return self._observed(observation), *rest  # type: ignore[return-value]

    def _observed(self, observation: Any) -> Any:
        return self._writer.observation(0) if self._texts else observation


class VectorTextActions(VectorWrapper):
    """`TextActions` in every slot, in any autoreset mode; `final_obs` holds texts as well.

    Args:
        env: a batched environment of this package.
        until, append_eos, observe: see `TextActions`.
    """

    def __init__(
        self, env: VectorEnv, until: Sequence[str] = (), *, append_eos: bool = True, observe: str = "text"
    ) -> None:
        super().__init__(env)
        self._writer = Writer(env, until, append_eos)
        self._texts = check_observe(observe)
        self.single_action_space = self._writer.space
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        if self._texts:
            self.single_observation_space = self._writer.observation_space
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the wrapped environment."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._observed(observations), infos

    def step(self, actions: Sequence[str | None]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Write a text in every slot; one whose text is None stays as it is, as with `NOOP`.

        Raises:
            What `TextActions.step` raises, and then no slot has moved.
        """
        if isinstance(actions, str) or not hasattr(actions, "__len__") or len(actions) != self.num_envs:
            raise ValueError(f"actions={shown(actions)} must be {self.num_envs} texts, one per slot, or None for some")
        sequences = [None if text is None else self._writer.tokens(slot, text) for slot, text in enumerate(actions)]
        with naming(actions):
            observations, *rest, infos = self.env.unwrapped.step_tokens(sequences)  # type: ignore[attr-defined]
        if self._texts and "final_obs" in infos:
            for slot in np.flatnonzero(infos["_final_obs"]):
                final = infos["final_info"]
                said = final["transcript"] if "transcript" in final else final["text"]
                infos["final_obs"][slot] = {"prompt": final["prompt"][slot], "response": said[slot]}
        return self._observed(observations), *rest, infos  # type: ignore[return-value]

    def _observed(self, observations: Any) -> Any:
        if not self._texts:
            return observations
        texts = [self._writer.observation(slot) for slot in range(self.num_envs)]
        return {key: tuple(text[key] for text in texts) for key in ("prompt", "response")}


class Writer:
    """Makes tokens of texts, and texts of what stands in a slot.

    Args:
        env: of this package, with nothing between that changes steps.
        until, append_eos: see `TextActions`.

    Attributes:
        space: of the texts.
        observation_space: of what stands there.

    Raises:
        TypeError, ValueError: an argument that is none, or the model knows no EOS.
    """

    def __init__(self, env: Any, until: Sequence[str], append_eos: bool) -> None:
        check_directly_around(env, "TextActions")
        until = (until,) if isinstance(until, str) else tuple(until)
        if not all(isinstance(text, str) and text for text in until):
            raise TypeError(f"until={shown(until)} must be texts that are not empty")
        if not isinstance(append_eos, bool):
            raise TypeError(f"append_eos={shown(append_eos)} must be True or False")
        self._engine: Engine = env.unwrapped.engine
        model, config = self._engine.language_model, self._engine.config
        self._until, self._end = until, [model.end_token_id] if append_eos else []
        longest = max(CHARACTERS_PER_TOKEN, *map(len, model.tokenizer.get_vocab()))
        self.space = UnicodeText(config.max_new_tokens * longest, config.max_new_tokens)
        prompts = [len(prompt.text) for prompt in self._engine.prompts]
        self._prompt_length = max(config.max_prompt_tokens * longest, *prompts)
        said = UnicodeText((config.max_new_tokens + config.reply_tokens) * longest, config.max_new_tokens)
        self.observation_space = spaces.Dict({"prompt": UnicodeText(self._prompt_length, 64), "response": said})

    def tokens(self, slot: int, text: Any) -> list[int]:
        """What writes a text behind a slot's prefix, EOS included.

        Raises:
            TypeError, ValueError: it is no text, too long, or nothing.
        """
        self.check(text)
        ends = [at + len(stop) for stop in self._until if (at := text.find(stop)) >= 0]
        before, turn = self._engine.episodes.present_turn(slot)
        tokens = self._engine.language_model.encode_behind([*before, *turn], text[: min(ends, default=None)])
        if not ends and not (tokens and self._engine.ends_turn(before, [*turn, *tokens])):
            tokens = tokens + self._end
        if not tokens:
            raise ValueError(f"action={text!r} is empty: without append_eos it writes nothing")
        return tokens

    def check(self, text: Any) -> None:
        """A text that can be written."""
        if not isinstance(text, str):
            raise TypeError(f"action={shown(text)} must be a text, not {type(text).__name__}")
        if len(text) > self.space.max_length:
            raise ValueError(
                f"action={shown(text)} has {len(text)} characters, more than the {self.space.max_length} for which "
                f"max_new_tokens={self._engine.config.max_new_tokens} could ever do"
            )
        if not is_writable(text):
            raise ValueError(f"action={shown(text)} holds a lone surrogate, which is no text")

    def observation(self, slot: int) -> dict[str, str]:
        """What stands in a slot, as texts."""
        if self._engine.episodes.prompts[slot] is None:
            return {"prompt": "", "response": ""}
        said = self._engine.completion(slot)
        turns = said.text if said.turns is None else "".join(turn["content"] for turn in said.turns)
        return {"prompt": said.prompt.text[-self._prompt_length :], "response": turns}


@contextmanager
def naming(action: Any) -> Iterator[None]:
    """Let errors about tokens say of which text they are."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ValueError(f"action={shown(action)}, of which nothing was written: {error}") from error


def check_observe(observe: Any) -> bool:
    """Whether texts are observed."""
    check_choice("observe", observe, OBSERVATIONS)
    return bool(observe == "text")
