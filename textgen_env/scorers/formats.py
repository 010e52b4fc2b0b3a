"""Rewards for form and content that can be checked: a regular expression, a JSON schema, keywords."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MODES = ("search", "match", "fullmatch")


class Regex:
    """1 where the completion matches a regular expression, else 0.

    Args:
        pattern: in the syntax of Python's `re`. A pattern with nested repetition can take very long on some texts.
        mode: "search" (anywhere), "match" (from the start) or "fullmatch" (all of it).
        flags: letters of inline flags: "i" ignores case, "s" lets "." match line ends, "m", "x".

    Raises:
        ValueError: unknown mode or flag, or the pattern does not compile.
    """

    name = "regex"

    def __init__(self, pattern: str, mode: str = "search", flags: str = "") -> None:
        if mode not in _MODES:
            raise ValueError(f"regex: mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if not set(flags) <= set("imsx"):
            raise ValueError(f'regex: flags must be letters of "imsx", got {flags!r}')
        try:
            self.pattern = re.compile(f"(?{flags}){pattern}" if flags else pattern)
        except re.error as error:
            raise ValueError(f"regex: pattern {pattern!r} does not compile: {error}") from error
        self.mode = mode

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        match = getattr(self.pattern, self.mode)
        return [1.0 if match(text) else 0.0 for text in completions]


class JsonSchema:
    """1 where the completion is JSON that a schema accepts, `partial` where it is other JSON, else 0.

    An empty completion is no JSON; neither are NaN and Infinity. References to other documents are not followed. Needs
    the optional library jsonschema, unless no schema is given.

    Args:
        schema: a schema as a mapping, or the path of a JSON file; `None` accepts all JSON.
        partial: the reward of JSON that breaks the schema, in [0, 1].
        find: look for the first object or array inside other text instead of reading the whole completion as JSON.

    Raises:
        ValueError: the schema itself is not valid, or `partial` is outside [0, 1].
        ImportError: a schema is given and jsonschema is not installed.
    """

    name = "json_schema"

    def __init__(
        self, schema: Mapping[str, Any] | str | Path | None = None, partial: float = 0.0, find: bool = False
    ) -> None:
        if not 0.0 <= partial <= 1.0:
            raise ValueError(f"json_schema: partial must lie in [0, 1], got {partial}")
        self.partial, self.find = partial, find
        self.schema = json.loads(Path(schema).read_text("utf-8")) if isinstance(schema, (str, Path)) else schema
        self._validator = None if self.schema is None else _validator(self.schema)

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        try:
            value = self._parse(text)
        except (ValueError, RecursionError):  # RecursionError: ten thousand opening brackets
            return 0.0
        return 1.0 if self._validator is None or self._validator.is_valid(value) else self.partial

    def _parse(self, text: str) -> Any:
        """The JSON value; ValueError where there is none."""
        if not self.find:
            return _DECODER.decode(text)
        start = re.search(r"[\[{]", text)
        if start is None:
            raise ValueError("no object or array")
        return _DECODER.raw_decode(text, start.start())[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonSchema, (self.schema, self.partial, self.find)  # validators cannot be pickled


class Keywords:
    """Share of keywords that occur in the completion, in [0, 1]; higher is better. Without keywords it is 1.

    Keywords and phrases are found as whole words.

    Args:
        keywords: the same for every prompt; without them, each prompt's own are taken from a column of the prompts.
        column: the prompts' column with a list of keywords.
        ignore_case: compare in lower case.

    Raises:
        ValueError: when scoring, neither keywords nor the column were given.
    """

    name = "keywords"

    def __init__(
        self, keywords: Sequence[str] | None = None, column: str = "keywords", ignore_case: bool = True
    ) -> None:
        if isinstance(keywords, str):
            raise ValueError(f"keywords: keywords must be a list of texts, got the text {keywords!r}")
        self.keywords = None if keywords is None else tuple(keywords)
        self.column, self.ignore_case = column, ignore_case

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        if self.keywords is not None:
            wanted: Sequence[Sequence[str]] = [self.keywords] * len(completions)
        elif self.column in columns:
            wanted = columns[self.column]
        else:
            raise ValueError(f"keywords: give keywords, or prompts with a column {self.column!r}")
        return [self._score(text, words) for text, words in zip(completions, wanted, strict=True)]

    def _score(self, text: str, words: Sequence[str] | None) -> float:
        found = [self._occurs(word, text) for word in words or ()]
        return sum(found) / len(found) if found else 1.0

    def _occurs(self, word: str, text: str) -> bool:
        if self.ignore_case:
            word, text = word.lower(), text.lower()
        # look-arounds rather than \b, so that keywords such as "C++" are found too
        return word in text and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _validator(schema: Mapping[str, Any]) -> Any:
    """A validator for the schema's own draft, which fetches nothing."""
    import jsonschema  # optional library
    import referencing

    try:
        draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        draft.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema: the schema is not valid: {error.message}") from error
    return draft(schema, registry=referencing.Registry())
