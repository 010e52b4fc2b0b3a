"""What makes a token MDP: the arguments that both environments take, listed and checked in one place.

What needs the tokenizer (does a forbidden token exist?) is checked by the engine, which has one.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from textgen_env.kl import KL_ESTIMATORS, KLEstimator, check_estimator
from textgen_env.lm.loading import DTYPES
from textgen_env.notices import shown
from textgen_env.prompts import PromptSource

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel
    from textgen_env.responders import Responder
    from textgen_env.scorers.base import Scorer

LENGTH_LIMITS = ("terminate", "truncate")
TRUNCATIONS = ("left", "turns", "error")
_REQUIRED = {
    "prompts": "the texts to continue (a list, a .jsonl file or the name of a set)",
    "scorer": "what a response is worth (a name, a mapping or a function)",
}
_MEANT = {"max_episode_steps": "max_new_tokens"}  # the words of other libraries that no spelling would suggest
BYTES_PER_TOKEN = 50  # of a slot: ids, two masks, the bounds of the observation space; reward, log π_ref and KL
MOST_BYTES = 4 * 2**30  # far beyond what anybody trains with: 4,096 slots of 20,000 tokens
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
Init = TypeVar("Init", bound=Callable[..., None])


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The arguments of `TextGenEnv` and `TextGenVectorEnv`; see the former for what each means.

    Raises:
        ValueError: a value out of range, with the argument's name, the value and what would be right.
        TypeError: a value of the wrong type.
    """

    model: str | Path | LanguageModel = "tiny"
    reference: str | Path | LanguageModel | None = None
    prompts: PromptSource
    scorer: str | dict[str, Any] | Scorer | None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k1"
    max_prompt_tokens: int = 64
    truncation: Literal["left", "turns", "error"] = "left"
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    stop_strings: Sequence[str] = ()
    forbidden_tokens: Sequence[int | str] = ()
    reference_top_p: float = 1.0
    reference_top_k: int = 0
    responder: str | dict[str, Any] | Responder | Callable[[str], Any] | None = None
    turn_strings: Sequence[str] = ()
    max_turns: int = 4
    max_reply_tokens: int = 64
    length_limit: Literal["terminate", "truncate"] = "terminate"
    temperature: float = 1.0
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_model("model", self.model)
        if self.reference is not None:
            check_model("reference", self.reference)
        least = {"max_prompt_tokens": 1, "max_new_tokens": 1, "min_new_tokens": 0, "reference_top_k": 0}
        least |= {"max_turns": 1, "max_reply_tokens": 1}
        for name, minimum in least.items():
            self._set(name, check_integer(name, getattr(self, name), minimum=minimum))
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} must not exceed max_new_tokens={self.max_new_tokens}"
            )
        self._set("kl_coef", check_kl_coef(self.kl_coef))
        self._set("temperature", check_number("temperature", self.temperature, "a finite number > 0", lambda x: x > 0))
        if not SMALLEST <= self.temperature <= LARGEST:
            raise ValueError(
                f"temperature={self.temperature} must be from {SMALLEST:.1e} to {LARGEST:.1e}, as it divides logits"
            )
        self._set("reference_top_p", check_number("reference_top_p", self.reference_top_p, "in (0, 1]", _is_share))
        if not isinstance(self.kl_estimator, str):
            check_choice("kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        check_estimator(self.kl_estimator)
        check_choice("length_limit", self.length_limit, LENGTH_LIMITS)
        check_choice("truncation", self.truncation, TRUNCATIONS)
        self._set("stop_strings", _texts("stop_strings", self.stop_strings))
        self._set("turn_strings", _texts("turn_strings", self.turn_strings))
        _check_turns(self)
        self._set("forbidden_tokens", _tokens("forbidden_tokens", self.forbidden_tokens))
        _check_device(self.device)
        if not isinstance(self.dtype, torch.dtype):
            check_choice("dtype", self.dtype, tuple(DTYPES))

    @property
    def reply_tokens(self) -> int:
        """How many tokens the environment may write: an opening, and a reply to each turn but the last."""
        return 0 if self.responder is None else self.max_turns * self.max_reply_tokens

    @property
    def width(self) -> int:
        """L: how many tokens the longest prefix may have."""
        return self.max_prompt_tokens + self.max_new_tokens + self.reply_tokens

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen instance, still being made

    @classmethod
    def parse(cls, environment: str, arguments: dict[str, Any]) -> EnvConfig:
        """Build settings from an environment's keyword arguments; errors speak of that environment.

        Raises:
            TypeError: an argument that does not exist (in Python's own words, which libraries look for), or one that is
                missing.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in arguments if name not in known]:
            known.append("render_mode")  # taken by the constructor itself
            meant = [_MEANT.get(name) or "".join(get_close_matches(name, known, 1)) for name in unknown]
            hint = f" Did you mean {', '.join(filter(None, meant))}?" if any(meant) else ""
            raise TypeError(
                f"{environment} has no argument {', '.join(unknown)}: got an unexpected keyword argument "
                f"{unknown[0]!r}.{hint} It takes {', '.join(known)}"
            )
        pays = arguments.get("responder") is not None  # the environment may do so by itself, without a scorer
        required = {"prompts"} if pays else _REQUIRED
        if missing := [name for name in required if arguments.get(name) is None]:
            raise TypeError(f"{environment} needs {', and '.join(f'{name}: {_REQUIRED[name]}' for name in missing)}")
        return cls(**{"scorer": None, **arguments})


def spelled_out(init: Init) -> Init:
    """Show the fields of `EnvConfig` in the signature of a constructor, where it says `**arguments`.

    They are written down once, and `help()`, editors and libraries that look see all of them, with types and defaults.
    """
    own = inspect.signature(init)
    listed = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(EnvConfig)
    ]
    before = [p for p in own.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    after = [p for p in own.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    init.__signature__ = own.replace(parameters=[*before, *listed, *after])  # type: ignore[attr-defined]
    return init


# --- checks, each of one argument -------------------------------------------------------------------------------------


def check_model(name: str, value: Any) -> None:
    """A name, a path, or a `LanguageModel` (anything that looks like one)."""
    if isinstance(value, (str, Path)):
        if not str(value).strip():
            raise ValueError(f"{name}={value!r} must not be empty: give a name, a directory, a .gguf file or a hub id")
    elif isinstance(value, type) or not (hasattr(value, "prefix_cache") and hasattr(value, "vocab_size")):
        hint = ". Wrap a live one: LanguageModel.from_modules(model, tokenizer)" if hasattr(value, "forward") else ""
        raise TypeError(
            f"{name}={shown(value)} must be a name, a path or a LanguageModel, not {type(value).__name__}{hint}"
        )


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """The value as a Python integer of at least `minimum`; numpy's are welcome, booleans are not."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={shown(value)} must be an integer, not {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name}={shown(value)} must be at least {minimum}")
    return number


def check_number(name: str, value: Any, wanted: str, right: Callable[[float], bool]) -> float:
    """The value as a finite float for which `right` holds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={shown(value)} must be {wanted}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and right(number)):
        raise ValueError(f"{name}={shown(value)} must be {wanted}")
    return number


def check_room(slots: int, config: EnvConfig, model: LanguageModel) -> None:
    """The rows of all slots fit into memory, or a ValueError says what would."""
    prompt, new = config.max_prompt_tokens, config.max_new_tokens
    needed = slots * config.width * BYTES_PER_TOKEN
    if needed <= MOST_BYTES:
        return
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    reads = f"; {model.source!r} reads at most {positions} tokens, prompt and response together" if positions else ""
    replies = f", max_turns={config.max_turns}, max_reply_tokens={config.max_reply_tokens}" * bool(config.reply_tokens)
    fit = MOST_BYTES // (needed // slots)
    slots_that_fit = f"at most {fit} slots would fit" if fit else "not one slot would fit"
    raise ValueError(
        f"max_prompt_tokens={prompt} and max_new_tokens={new}{replies} with num_envs={slots} need "
        f"{needed / 2**30:,.1f} GiB for tokens alone, more than {MOST_BYTES / 2**30:.0f}: {slots_that_fit}{reads}"
    )


def check_kl_coef(value: Any) -> float:
    """β, as the argument and whenever it is set."""
    return check_number("kl_coef", value, "a finite number ≥ 0", lambda x: x >= 0)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of some texts."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)} must be one of {', '.join(choices)}, not {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}={shown(value)} must be one of {', '.join(choices)}")


def _check_turns(config: EnvConfig) -> None:
    """Turns end where somebody answers."""
    if config.turn_strings and config.responder is None:
        raise ValueError(
            f"turn_strings={list(config.turn_strings)} end a turn, but nobody answers: give a responder, or use "
            "stop_strings to end episodes"
        )


def _check_device(value: Any) -> None:
    """A device that torch knows; whether it is present shows when a model is put there."""
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"device={shown(value)} must be a text such as 'cpu' or 'cuda:0', not {type(value).__name__}")
    try:
        kind = torch.device(value).type
    except RuntimeError:
        kind = "unknown"
    if kind in ("unknown", "meta"):
        raise ValueError(f"device={shown(value)} must be one that can compute, such as 'cpu' or 'cuda:0'")


def _is_share(value: float) -> bool:
    return 0 < value <= 1


def _listed(name: str, value: Any, of: str) -> list[Any]:
    """The entries of a list, tuple or array; nothing that has no order, can be read only once, or is a single text."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}={shown(value)} must be a list of {of}, not a single text")
    if not isinstance(value, Sequence):
        raise TypeError(f"{name}={shown(value)} must be a list of {of}, not {type(value).__name__}")
    return list(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = _listed(name, value, "texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}]={shown(text)} must be a text, not {type(text).__name__}")
        if not text:
            raise ValueError(f"{name}[{index}]={text!r} must be a text that is not empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}[{index}]={shown(text)} holds a lone surrogate, which is no text") from None
    return tuple(texts)


def _tokens(name: str, value: Any) -> tuple[int | str, ...]:
    tokens = _listed(name, value, "token ids or tokens")
    for index, token in enumerate(tokens):
        whole = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if not whole and not isinstance(token, str):
            raise TypeError(f"{name}[{index}]={shown(token)} must be a token id or a token, not {type(token).__name__}")
    return tuple(token if isinstance(token, str) else int(token) for token in tokens)
