"""Shared by the tests of environments that answer back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dialogues import letters

from textgen_env import TextGenEnv


@pytest.fixture
def make(byte_model: str) -> Callable[..., TextGenEnv]:
    """A single environment of the byte model with a responder."""

    def made(responder: Any, **more: Any) -> TextGenEnv:
        arguments: dict[str, Any] = {"model": byte_model, "prompts": ["p"], "scorer": letters, "max_new_tokens": 12}
        return TextGenEnv(responder=responder, **arguments | more)

    return made
