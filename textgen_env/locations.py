"""What somebody wrote to name something: the object at "module:attribute", and a hint at the name that was meant."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LOCATION = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")
"""The form of "module:attribute"."""


def import_location(location: str, what: str) -> Any:
    """What "module:attribute" stands for; runs the module's code.

    Args:
        location: of the form `LOCATION`.
        what: is looked for, for errors.

    Raises:
        ImportError: the module is not there, or fails.
        ValueError: it has no such attribute.
    """
    module, _, attribute = location.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever its code does
        raise ImportError(f"{what}: cannot import {module}: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [other for other in dir(found) if not other.startswith("_")]
            raise ValueError(f"{what}: {module} has no {attribute!r}{close_to(part, public)}")
        found = getattr(found, part)
    return found


def close_to(name: Any, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant, or nothing."""
    meant = get_close_matches(name, [*known], 1, 0.5) if isinstance(name, str) else []
    return f"; did you mean {meant[0]!r}?" if meant else ""
