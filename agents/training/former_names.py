"""Settings under the names that an earlier release gave them, accepted for one more release.

What lives here: the names, for dataclasses of settings (`accept_former_names`) and for what a run has written
(`with_todays_names`). The command line knows them as aliases of flags, where the settings are defined. What does not:
modules that have moved (`textgen_env.moved`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from textgen_env.notices import warn_user

T = TypeVar("T")
FORMER_NAMES = {"kl_target": "adaptive_kl_target"}


def with_todays_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, as an earlier release may have written them, under the names of today."""
    return {FORMER_NAMES.get(name, name): value for name, value in settings.items()}


def accept_former_names(kind: type[T]) -> type[T]:
    """Let a dataclass be made, read and changed under the former names of its fields too, with a DeprecationWarning.

    What is wrong with a setting is said of the name that was given.
    """
    of_today: Any = kind.__init__

    @functools.wraps(of_today)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        given = [old for old in FORMER_NAMES if old in named]
        if not given:
            of_today(self, *values, **named)
            return
        try:
            of_today(self, *values, **_renamed(named, given))
        except (TypeError, ValueError) as error:
            message = functools.reduce(lambda text, old: text.replace(FORMER_NAMES[old], old), given, str(error))
            raise type(error)(message) from error

    setattr(kind, "__init__", __init__)  # noqa: B010 (mypy lets nothing else replace it)
    for old, new in FORMER_NAMES.items():
        setattr(kind, old, _alias(old, new))
    return kind


def _renamed(named: Mapping[str, Any], given: list[str]) -> dict[str, Any]:
    for old in given:
        _warn(old)
        if FORMER_NAMES[old] in named:
            raise TypeError(f"{old}={named[old]!r} is a former name, and that of today is given too; give one of them")
    return with_todays_names(named)


def _alias(old: str, new: str) -> property:
    def read(settings: Any) -> Any:
        _warn(old)
        return getattr(settings, new)

    def change(settings: Any, value: Any) -> None:
        _warn(old)
        setattr(settings, new, value)

    return property(read, change, doc=f"The former name of `{new}`.")


def _warn(old: str) -> None:
    warn_user(f"{old} is now {FORMER_NAMES[old]}; the old name goes with the next release", DeprecationWarning)
