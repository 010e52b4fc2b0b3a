"""What makes a token MDP: the arguments that both faces of the environment take, checked in one place."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from textgen_env.kl import KLEstimator, check_estimator
from textgen_env.prompts import PromptSource

if TYPE_CHECKING:
    from textgen_env.language_model import LanguageModel
    from textgen_env.scorers.base import Scorer

LENGTH_LIMITS = ("terminate", "truncate")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `TextGenEnv` and `TextGenVectorEnv`; see the former for what each means.

    Raises:
        ValueError: a value out of range, with the argument's name, the value and what would be right.
        TypeError: a value of the wrong type.
    """

    model: str | LanguageModel = "tiny"
    reference: str | LanguageModel | None = None
    prompts: PromptSource
    scorer: str | dict[str, Any] | Scorer
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k1"
    max_prompt_tokens: int = 64
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    stop_strings: Sequence[str] = ()
    forbidden_tokens: Sequence[int | str] = ()
    reference_top_p: float = 1.0
    length_limit: Literal["terminate", "truncate"] = "terminate"
    temperature: float = 1.0
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_new_tokens"):
            _check_integer(name, getattr(self, name), minimum=1)
        _check_integer("min_new_tokens", self.min_new_tokens, minimum=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} must not exceed max_new_tokens={self.max_new_tokens}"
            )
        _check_number("kl_coef", self.kl_coef, "a finite number ≥ 0", lambda x: x >= 0)
        _check_number("temperature", self.temperature, "a finite number > 0", lambda x: x > 0)
        _check_number("reference_top_p", self.reference_top_p, "in (0, 1]", lambda x: 0 < x <= 1)
        check_estimator(self.kl_estimator)
        if self.length_limit not in LENGTH_LIMITS:
            raise ValueError(f"length_limit={self.length_limit!r} must be one of {', '.join(LENGTH_LIMITS)}")
        for name in ("stop_strings", "forbidden_tokens"):
            if isinstance(getattr(self, name), (str, bytes)):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a list, not a single text")
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop_strings={list(self.stop_strings)!r} must hold texts that are not empty")

    @classmethod
    def parse(cls, face: str, arguments: dict[str, Any]) -> Settings:
        """Build settings from a face's keyword arguments; errors speak of that face.

        Raises:
            TypeError: an argument that does not exist, or one that is missing.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(arguments) - known):
            raise TypeError(f"{face} has no argument {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
        if missing := sorted({"prompts", "scorer"} - {k for k, v in arguments.items() if v is not None}):
            raise TypeError(f"{face} needs {' and '.join(missing)}: the texts to continue, what a response is worth")
        return cls(**arguments)


def _check_integer(name: str, value: Any, *, minimum: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r} must be an integer, not {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}")


def _check_number(name: str, value: Any, wanted: str, right: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be {wanted}, not {type(value).__name__}")
    if not (math.isfinite(value) and right(value)):
        raise ValueError(f"{name}={value} must be {wanted}")
