"""Tasks on tiny random models for the tests of the libraries."""

from __future__ import annotations

from typing import Any

import pytest
from small_task import letters


def share_of_e(completions: list[str], **_: Any) -> list[float]:
    return [text.count("e") / max(len(text), 1) for text in completions]


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["ab", "abcde", "x"],
        "scorer": share_of_e,
        "max_prompt_tokens": 8,
        "max_new_tokens": 6,
    }


@pytest.fixture
def task(byte_model: str, other_model: str) -> dict[str, Any]:
    models = {"model": byte_model, "reference": other_model}
    return {**models, "prompts": ["a", "bcd", "ef"], "scorer": letters, "max_new_tokens": 5}
