"""How the package speaks to its users: values in errors, and warnings that point at the user's own line.

What an error says stands where it is raised; nothing here knows what the package does.
"""

from __future__ import annotations

import reprlib
import sys
import sysconfig
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

_HERE = Path(__file__).parent
_PATHS = sysconfig.get_paths()
# Frames that are not the user's: this package, its agents (beside it in a checkout), and what Python has installed.
_NOT_THE_USER = tuple(
    f"{folder}/" for folder in {_HERE, _HERE.parent / "agents", *map(_PATHS.get, ("stdlib", "purelib", "platlib"))}
) + ("<frozen",)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """The value's `repr`, shortened in the middle when it is long: what an error shows of it."""
    return _short.repr(value)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, at the line of the user's that led here, however many libraries lie between.

    Python's `stacklevel` would need their number, and its `skip_file_prefixes` is younger than the oldest Python that
    the package runs on. Where no frame is the user's (`python -m textgen_env.agents.ppo`), it is the caller's line.
    """
    caller: FrameType | None = sys._getframe(1)
    frame = caller
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USER):
        frame = frame.f_back
    frame = frame or caller
    assert frame is not None
    names = frame.f_globals
    registry = names.setdefault("__warningregistry__", {})
    module = names.get("__name__", "<unknown>")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)
