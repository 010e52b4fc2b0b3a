"""What the single and the batched environment have in common: spaces, properties, infos, frames and their saved state.

It translates between an `Engine` and Gymnasium; stepping itself is written out in `env.py` and `vector_env.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from textgen_env.config import EnvConfig, check_choice, check_integer, check_kl_coef
from textgen_env.engine import Engine
from textgen_env.episode import Prompt, StepResult
from textgen_env.frames import frame_of
from textgen_env.lm.language_model import LanguageModel
from textgen_env.notices import shown, warn_user
from textgen_env.render import render_ansi, render_rgb
from textgen_env.saved_state import entry

CLEAR = "\x1b[2J\x1b[H"  # wipe the terminal and go to its upper left corner
RENDER_MODES = ("human", "ansi", "rgb_array")


class TextGenBase:
    """Mixed into both environments.

    Attributes:
        engine: the slots behind the environment.
    """

    engine: Engine
    render_mode: str | None

    def _set_up(self, slots: int, arguments: dict[str, Any], render_mode: str | None) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        self._cuts, self._ended_at_cut, self._warned_of_reset = 0, 0, False
        self.engine = Engine(slots, EnvConfig.parse(type(self).__name__, arguments))

    def _spaces(self) -> tuple[spaces.Dict, spaces.Discrete]:
        """Observation and action space of one slot."""
        width = self.engine.episodes.input_ids.shape[1]
        ids = max(self.language_model.vocab_size, self.language_model.pad_token_id + 1)
        observation = spaces.Dict(
            {
                "input_ids": spaces.Box(0, ids - 1, (width,), np.int64),
                "attention_mask": spaces.MultiBinary(width),
                "response_mask": spaces.MultiBinary(width),
            }
        )
        return observation, spaces.Discrete(self.language_model.vocab_size)

    # --- what the MDP is ----------------------------------------------------------------------------------------------

    @property
    def language_model(self) -> LanguageModel:
        """The model whose tokens are the actions; its weights load only when something asks for logits."""
        return self.engine.language_model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model, as transformers loads it."""
        return self.engine.language_model.tokenizer

    @property
    def reference(self) -> LanguageModel:
        """The model that the KL penalty holds the policy to."""
        return self.engine.reference

    @property
    def prompts(self) -> list[Prompt]:
        """The set that episodes draw from."""
        return self.engine.prompts

    @property
    def scorer(self) -> Any:
        """The callable that judges whole responses."""
        return self.engine.reward.scorer

    @property
    def kl_coef(self) -> float:
        """β, in reward per nat; may be set at any time (0 switches the penalty off)."""
        return self.engine.kl.coef

    @kl_coef.setter
    def kl_coef(self, value: float) -> None:
        self.engine.kl.coef = check_kl_coef(value)

    @property
    def kl_estimator(self) -> str:
        """ "k1", "k2", "k3" or "full"; see `textgen_env.kl`."""
        return self.engine.kl.estimator

    @property
    def temperature(self) -> float:
        """Divides the logits of policy and reference alike."""
        return self.engine.config.temperature

    @property
    def restricts_actions(self) -> bool:
        """Whether `action_masks` can forbid anything; if not, there is no need to ask for masks."""
        return self.engine.restricted

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut, as `truncation` says."""
        return self.engine.config.max_prompt_tokens

    @property
    def truncation(self) -> str:
        """What becomes of prompts that are too long: "left", "turns" or "error"."""
        return self.engine.config.truncation

    @property
    def max_new_tokens(self) -> int:
        """The length limit of a response."""
        return self.engine.config.max_new_tokens

    def delegate_kl(self, report_ref_logprob: bool = True) -> None:
        """Announce that the caller adds the KL itself, as a library hook does: rewards then carry no KL part.

        Args:
            report_ref_logprob: whether `info` still has `ref_logprob`; without it the reference is never run.
        """
        self.engine.delegate_kl(report_ref_logprob=report_ref_logprob)

    @contextmanager
    def kl_delegated(self, report_ref_logprob: bool = False) -> Iterator[None]:
        """`delegate_kl` for as long as the context lasts; afterwards the KL is paid as it was before."""
        with self.engine.kl.delegating(report=report_ref_logprob):
            yield

    @contextmanager
    def played_by(self, policy: LanguageModel) -> Iterator[None]:
        """While the context lasts, the KL is left to the caller, and a scorer that sees the policy sees this one."""
        with self.engine.kl.delegating(report=False), self.engine.reward.seeing(policy):
            yield

    @property
    def scorer_needs_policy(self) -> bool:
        """Whether what is paid depends on the policy's weights, beside the text: it must be bound before `reset`."""
        return self.engine.reward.needs_policy

    @property
    def never_reset(self) -> bool:
        """Whether no slot has ever begun an episode."""
        return all(prompt is None for prompt in self.engine.episodes.prompts)

    def current_prompt(self, slot: int = 0) -> Prompt | None:
        """What a slot's episode began with, running or ended: `reset(options={"prompt": …})` takes it again."""
        return self.engine.episodes.prompts[slot]

    def _responses(self, given: Sequence[Any], prompts: Sequence[Prompt | None]) -> dict[int, list[int]]:
        """The tokens that `options["response"]` names, by slot; checked before anything changes."""
        responses = {}
        for slot, (response, prompt) in enumerate(zip(given, prompts, strict=True)):
            if response is not None:
                if prompt is None:
                    raise ValueError("options['response'] needs options['prompt'] beside it")
                if tokens := self.engine.starts.response_tokens(response):
                    responses[slot] = tokens
        return responses

    # --- infos and frames ---------------------------------------------------------------------------------------------

    def _reset_info(self, slot: int) -> dict[str, Any]:
        prompt = self.engine.episodes.prompts[slot]
        assert prompt is not None
        if self.engine.turns is None:
            return {"prompt": prompt.text}
        return {"prompt": prompt.text, "opening": self.engine.episodes.environment_texts[slot][0]}

    def _step_info(self, result: StepResult, slot: int) -> dict[str, Any]:
        """The `info` of one slot's step, as the single environment returns it."""
        info: dict[str, Any] = {"reward_parts": {name: float(part[slot]) for name, part in result.reward_parts.items()}}
        if result.ref_log_prob is not None:
            info["ref_logprob"] = float(result.ref_log_prob[slot])
        return {**info, **result.added.get(slot, {}), **result.endings.get(slot, {})}

    def _note_cut(self, slots: Iterable[int], *, meant: bool) -> None:
        """Before a reset of these slots: warn, once, when it looks as if a limit of steps outside cuts episodes.

        Of such a limit (a `TimeLimit`, a wrapper like it, a loop) we see no more than that `reset` comes while an
        episode runs. A `TimeLimit` that is reached stands among the callers: that is proof. Otherwise a cut counts when
        no episode has ended by itself since the last one, or at all: libraries leave episodes half-played, too, when
        they turn from training to evaluation, but after others have ended. A restart is `meant` when it names a seed or
        a prompt. And one token alone is a cut only if the reset before cut one, too: Stable-Baselines3's checker of
        environments resets after a single token.
        """
        running = [slot for slot in slots if self.engine.episodes.playing[slot]]
        length = 0 if meant or not running else int(self.engine.episodes.response_lengths[running].max())
        alone = self.engine.episodes_ended == self._ended_at_cut
        self._cuts = 0 if not length else self._cuts + 1 if alone else 1
        if length:
            self._ended_at_cut = self.engine.episodes_ended
        if not length or self._warned_of_reset:
            return
        if not (_reached_time_limit(length) or (alone and (length >= 2 or self._cuts >= 2))):
            return
        self._warned_of_reset = True
        warn_user(
            f"reset() cut a running episode after {length} of max_new_tokens={self.max_new_tokens} tokens: it was "
            "never scored, and its last reward is 0. If a limit of steps did this (TimeLimit, max_episode_steps), "
            f"take it away and set max_new_tokens={length}, which pays the score at the limit. reset(seed=…) and "
            "reset(options={'prompt': …}) say that a restart is meant (warned once per environment)"
        )

    def _render(self, slot: int) -> Any:
        frame = frame_of(self.engine, slot)
        return render_rgb(frame) if self.render_mode == "rgb_array" else render_ansi(frame)

    def _print(self, slots: Iterable[int]) -> None:
        """In "human" mode, print the episodes of these slots: the running one redrawn in place, ended ones one by one.

        Only a terminal can be redrawn; anything else (a pipe, a notebook) is spared the drafts.
        """
        if self.render_mode != "human":
            return
        for slot in slots:
            in_place = sys.stdout.isatty() and len(self.engine.episodes) == 1
            if in_place or not self.engine.episodes.playing[slot]:
                sys.stdout.write(f"{CLEAR if in_place else ''}{render_ansi(frame_of(self.engine, slot))}\n")
        sys.stdout.flush()

    # --- saved state --------------------------------------------------------------------------------------------------

    def _generators(self) -> Sequence[np.random.Generator]:
        """One per slot."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight and every slot's generator, as plain JSON values: what a checkpoint keeps."""
        return {
            "engine": self.engine.state_dict(),
            "generators": [generator.bit_generator.state for generator in self._generators()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, in an environment made with the same arguments.

        Raises:
            TypeError, ValueError: an entry is missing, of the wrong type, or of another kind of environment (slots,
                lengths, vocabulary). Nothing has changed then.
        """
        generators = self._generators()
        saved = self._saved_per_slot(state, "generators")
        states = [_generator_state(generators[row], saved[row], row) for row in range(len(saved))]
        self.engine.load_state_dict(entry(state, "engine", Mapping))
        for generator, checked in zip(generators, states, strict=True):
            generator.bit_generator.state = checked

    def _saved_per_slot(self, state: Any, key: str) -> list[Any]:
        """An entry of a saved state that has one value per slot."""
        saved: list[Any] = entry(state, key, list)
        slots = len(self.engine.episodes)
        if len(saved) != slots:
            raise ValueError(f"state[{key!r}]: the state has {len(saved)} slots, this environment {slots}")
        return saved


def _reached_time_limit(length: int) -> bool:
    """Whether a `TimeLimit` of so many steps is among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, TimeLimit) and caller._max_episode_steps == length:
            return True
        frame = frame.f_back
    return False


def _generator_state(generator: np.random.Generator, saved: Any, row: int) -> Any:
    """The saved state, after a generator of the same kind has taken it."""
    try:
        trial = type(generator.bit_generator)()
        trial.state = saved
    except Exception as error:  # numpy raises whatever its parts raise
        raise ValueError(f"state['generators'][{row}]={shown(saved)} is no state of a generator: {error!r}") from error
    return trial.state


def prompt_choice(options: Any, known: tuple[str, ...] = ("prompt",)) -> Any:
    """The prompt that reset options name, or None.

    Raises:
        TypeError: options that are no mapping.
        ValueError: an option that does not exist.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise TypeError(f"options={shown(options)} must be a mapping, not {type(options).__name__}")
    if unknown := sorted(map(str, set(options) - set(known))):
        raise ValueError(f"options={unknown} unknown to reset; it takes {', '.join(known)}")
    return options.get("prompt")


def check_seed(seed: Any, name: str = "seed") -> int | None:
    """The seed as Gymnasium takes it: None, or a Python integer ≥ 0."""
    return None if seed is None else check_integer(name, seed, minimum=0)


def as_actions(name: str, value: Any) -> NDArray[Any]:
    """Actions as an array of integers, of whatever shape.

    Raises:
        TypeError: they are none.
        ValueError: integers too large for any array.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on other devices
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iu" and array.size:
        if array.dtype.kind == "O" and all(type(one) is int for one in array.flat):
            raise ValueError(f"{name}={shown(value)} holds an integer far beyond any vocabulary")
        raise TypeError(f"{name}={shown(value)}: actions must be integers, not {type(value).__name__} ({array.dtype})")
    return array


def as_sequences(name: str, values: Any, n: int) -> dict[int, list[int]]:
    """Lists of tokens by slot; slots whose entry is None are left out.

    Raises:
        TypeError: tokens that are no integers, or no list of lists.
        ValueError: not one list per slot, or one without tokens.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise TypeError(f"{name}={shown(values)} must be lists of tokens, not {type(values).__name__}")
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} entries; it needs one for each of num_envs={n}")
    sequences = {}
    for slot, value in enumerate(values):
        if value is not None:
            where = name if n == 1 else f"{name}[{slot}]"
            tokens = as_actions(where, value)
            if tokens.ndim != 1 or not tokens.size:
                raise ValueError(f"{where}={shown(value)} must be a list of at least one token")
            sequences[slot] = [int(token) for token in tokens]
    return sequences
