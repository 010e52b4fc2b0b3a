"""Tasks of the reasoning-gym library: which data set a name means, its questions as prompts, and whose they are.

A prompt carries where its question stands (data set, settings, index), since an entry may hold what no JSON can; the
data set makes the same entry from that again. Their scorer is `scorers/reasoning.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from textgen_env.locations import close_to
from textgen_env.notices import shown

PREFIX = "reasoning-gym:"
COLUMN = "reasoning_gym"
DEFAULTS = {"size": 500, "seed": 0}


def is_reasoning_source(source: Any) -> bool:
    """Whether `prompts` names a data set of reasoning-gym."""
    name = source.get("dataset") if isinstance(source, Mapping) else source
    return isinstance(name, str) and name.startswith(PREFIX)


def reasoning_rows(source: str | Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a data set as rows of prompts, each with the words that say where it stands.

    Args:
        source: "reasoning-gym:basic_arithmetic", with settings behind a question mark
            ("reasoning-gym:basic_arithmetic?size=100&max_terms=3"), or a mapping `{"dataset": …, "size": 100, …}`.
            `size` is 500 and `seed` 0 by default; `prompt` is a template with "{question}" in it; the rest are the
            data set's own settings.

    Yields:
        `{"prompt", "references": [the answer] or [], "reasoning_gym": {"dataset", settings, "index"}}`.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: no such data set, or settings that it refuses.
    """
    name, settings = _described(source)
    template = settings.pop("prompt", "{question}")
    if not isinstance(template, str) or "{question}" not in template:
        raise ValueError(f"prompts: prompt={shown(template)} must be a text with '{{question}}' in it")
    address = {"dataset": name, **DEFAULTS, **settings}
    made = dataset_of(address)
    for index in range(len(made)):
        entry = made[index]
        yield (
            f"{PREFIX}{name}[{index}]",
            {
                "prompt": template.replace("{question}", entry["question"]),
                "references": [] if entry["answer"] is None else [str(entry["answer"])],
                COLUMN: {**address, "index": index},
            },
        )


def _described(source: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the settings."""
    if isinstance(source, Mapping):
        settings = {key: value for key, value in source.items() if key != "dataset"}
        name, _, query = str(source["dataset"]).removeprefix(PREFIX).partition("?")
    else:
        settings = {}
        name, _, query = source.removeprefix(PREFIX).partition("?")
    for key, text in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        settings[key] = _value(text)
    return name, settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def dataset_of(address: Mapping[str, Any]) -> Any:
    """The data set that an address is in, made once.

    Raises:
        ImportError, ValueError: see `reasoning_rows`.
    """
    settings = {key: value for key, value in address.items() if key != "index"}
    try:
        return _made(json.dumps(settings, sort_keys=True))
    except TypeError as error:
        raise ValueError(
            f"{PREFIX}{settings.get('dataset')}: settings {shown(settings)} are refused: {error}"
        ) from error


@lru_cache(maxsize=64)
def _made(settings: str) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError("prompts and scorer of reasoning-gym need: pip install 'textgen_env[reasoning]'") from error
    arguments = json.loads(settings)
    name = arguments.pop("dataset", None)
    if name not in DATASETS:
        raise ValueError(
            f"{PREFIX}{name} is unknown; reasoning-gym has {len(DATASETS)} data sets, such as basic_arithmetic, "
            f"leg_counting, word_sorting{close_to(name, DATASETS)}"
        )
    try:
        return reasoning_gym.create_dataset(name, **arguments)
    except AssertionError as error:  # which is how the library checks settings
        raise ValueError(f"{PREFIX}{name}: settings {shown(arguments)} are refused: {error}") from error
