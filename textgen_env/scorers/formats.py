"""Rewards for form and content that can be checked: a regular expression, a JSON schema, keywords."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from textgen_env.notices import shown

from .answers import ScorerError
from .json_text import find_json, read_json
from .words import composed, occurs

_MODES = ("search", "match", "fullmatch")


class Regex:
    """1 where the completion matches a regular expression, else 0.

    Patterns with nested repetition, such as "(a|aa)+$", can take longer than the universe has on a text that a policy
    may well find: beyond `timeout` the search is given up.

    Args:
        pattern: in the syntax of the `regex` library, which takes in that of Python's `re`.
        mode: "search" (anywhere), "match" (from the start) or "fullmatch" (all of it).
        flags: letters of inline flags: "i" ignores case, "s" lets "." match line ends, "m", "x".
        timeout: seconds for one text, of processor time of the process (its other threads' included).
        on_timeout: "raise" (a ScorerError that shows the text), or the score of such a text.

    Raises:
        ValueError: unknown mode or flag, an argument out of range, or the pattern does not compile.
    """

    name = "regex"

    def __init__(
        self,
        pattern: str,
        mode: str = "search",
        flags: str = "",
        timeout: float = 1.0,
        on_timeout: str | float = "raise",
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"regex: mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if not set(flags) <= set("imsx"):
            raise ValueError(f'regex: flags must be letters of "imsx", got {flags!r}')
        check_timeout(self.name, timeout)
        check_failure(f"{self.name}: on_timeout", on_timeout)
        try:
            self.pattern = regex.compile(f"(?{flags}){pattern}" if flags else pattern)
        except regex.error as error:
            raise ValueError(f"regex: pattern {pattern!r} does not compile: {error}") from error
        self.mode, self.timeout, self.on_timeout = mode, timeout, on_timeout

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        try:
            return 1.0 if _within(self.timeout, self.pattern, text, self.mode) else 0.0
        except ScorerError:
            if self.on_timeout == "raise":
                raise
            return float(self.on_timeout)


class JsonSchema:
    """1 where the completion is JSON that a schema accepts, `partial` where it is other JSON, else 0.

    An empty completion is no JSON; neither are NaN and Infinity. References to other documents are not followed, and
    JSON that is nested too deeply to be read or checked breaks every schema. Needs the optional library jsonschema,
    unless no schema is given.

    Args:
        schema: a schema as a mapping, or the path of a JSON file; `None` accepts all JSON.
        partial: the reward of JSON that breaks the schema, in [0, 1].
        find: look for objects and arrays inside other text instead of reading the whole completion as JSON; one that
            the schema accepts is enough, wherever it stands.
        timeout: seconds for one match of the schema's regular expressions, as for `Regex`; beyond it a ScorerError is
            raised.

    Raises:
        ValueError: the schema itself is not valid, or cannot be read, or `partial` is outside [0, 1].
        ImportError: a schema is given and jsonschema is not installed.
    """

    name = "json_schema"

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str | Path | None = None,
        partial: float = 0.0,
        find: bool = False,
        timeout: float = 1.0,
    ) -> None:
        if not 0.0 <= partial <= 1.0:
            raise ValueError(f"json_schema: partial must lie in [0, 1], got {partial}")
        check_timeout(self.name, timeout)
        self.partial, self.find, self.timeout = partial, find, timeout
        self.schema = _read_schema(schema) if isinstance(schema, (str, Path)) else schema
        self._validator = None if self.schema is None else _validator(self.schema, timeout)

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float:
        score = 0.0
        for value in self._values(text):
            if self._accepts(value):
                return 1.0
            score = self.partial
        return score

    def _values(self, text: str) -> Iterator[Any]:
        """The JSON in a text."""
        if self.find:
            yield from find_json(text)
            return
        try:
            yield read_json(text)
        except (ValueError, RecursionError):  # RecursionError: ten thousand opening brackets
            return

    def _accepts(self, value: Any) -> bool:
        try:
            return self._validator is None or bool(self._validator.is_valid(value))
        except (RecursionError, ArithmeticError):  # too deep, or numbers such as 1e999 in "multipleOf"
            return False

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonSchema, (self.schema, self.partial, self.find, self.timeout)  # validators cannot be pickled


class Keywords:
    """Share of keywords that occur in the completion, in [0, 1]; higher is better. Without keywords it is 1.

    Keywords and phrases are found as whole words, with all their accents and vowel signs; in scripts that put no spaces
    between words, such as Chinese and Thai, anywhere.

    Args:
        keywords: the same for every prompt; without them, each prompt's own are taken from a column of the prompts.
        column: the prompts' column with a list of keywords.
        ignore_case: compare in lower case.

    Raises:
        TypeError, ValueError: keywords that are no list of texts, or an empty one; when scoring, likewise for the
            column, or neither keywords nor the column were given.
    """

    name = "keywords"

    def __init__(
        self, keywords: Sequence[str] | None = None, column: str = "keywords", ignore_case: bool = True
    ) -> None:
        self.keywords = None if keywords is None else _checked_keywords("keywords", keywords)
        self.column, self.ignore_case = column, ignore_case

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        if self.keywords is not None:
            wanted: Sequence[Sequence[str]] = [self.keywords] * len(completions)
        elif self.column in columns:
            wanted = [_checked_keywords(f"{self.column}[{i}]", ws or ()) for i, ws in enumerate(columns[self.column])]
        else:
            raise ValueError(f"keywords: give keywords, or prompts with a column {self.column!r}")
        return [self._score(text, words) for text, words in zip(completions, wanted, strict=True)]

    def _score(self, text: str, words: Sequence[str]) -> float:
        text = self._plain(text)
        found = [occurs(self._plain(word), text) for word in words]
        return sum(found) / len(found) if found else 1.0

    def _plain(self, text: str) -> str:
        return composed(text.lower() if self.ignore_case else text)


def _checked_keywords(label: str, words: Any) -> tuple[str, ...]:
    if isinstance(words, (str, bytes)) or not isinstance(words, Iterable):
        raise ValueError(f"keywords: {label} must be a list of texts, got the {type(words).__name__} {words!r}")
    words = tuple(words)
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"keywords: {label}[{index}] must be a text, got {type(word).__name__} {word!r}")
        if not word.strip():
            raise ValueError(f"keywords: {label}[{index}] must not be empty, got {word!r}")
    return words


def check_timeout(scorer: str, timeout: float) -> None:
    """See that a limit is a positive number of seconds."""
    if not 0 < timeout < math.inf:
        raise ValueError(f"{scorer}: timeout must be a positive number of seconds, got {timeout!r}")


def check_failure(label: str, value: str | float) -> None:
    """See that what a failure scores is "raise" or a finite number."""
    if value != "raise" and (isinstance(value, (str, bool)) or not math.isfinite(value)):
        raise ValueError(f'{label} must be "raise" or a finite number, got {value!r}')


def _within(timeout: float, pattern: Any, text: str, mode: str = "search") -> bool:
    """Whether a pattern matches a text, found out without holding up other threads.

    Raises:
        ScorerError: not found out within `timeout` seconds.
    """
    try:
        return getattr(pattern, mode)(text, timeout=timeout, concurrent=True) is not None
    except TimeoutError:
        raise ScorerError(
            f"regular expression {pattern.pattern!r} was not done after {timeout} s with the text {shown(text)}; "
            "write it without nested repetition, raise timeout, or give on_timeout of the scorer regex"
        ) from None


def _read_schema(source: str | Path) -> Any:
    try:
        return json.loads(Path(source).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        hint = ": give a schema as a mapping, not as text" if str(source).lstrip()[:1] == "{" else ""
        raise ValueError(f"json_schema: schema={shown(str(source))} must be a JSON file{hint}: {error}") from error


def _validator(schema: Mapping[str, Any] | bool, timeout: float) -> Any:
    """A validator for the schema's own draft, which fetches nothing and bounds the time of regular expressions."""
    import jsonschema  # optional library
    import referencing

    try:
        draft = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        draft.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema: the schema is not valid: {error.message}") from error
    except (regex.error, TypeError) as error:
        raise ValueError(f"json_schema: the schema is not valid: {error}") from error
    bounded = jsonschema.validators.extend(draft, _bounded_keywords(draft, timeout))
    return bounded(schema, registry=referencing.Registry())


def _bounded_keywords(draft: Any, timeout: float) -> dict[str, Any]:
    """The keywords of JSON Schema that match regular expressions, with a limit of time."""
    import jsonschema

    def matches(pattern: str, text: str) -> bool:
        return _within(timeout, regex.compile(pattern), text)

    def pattern(validator: Any, wanted: str, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and not matches(wanted, instance):
            yield jsonschema.ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            for key, value in instance.items():
                for subschema in (wanted[expression] for expression in wanted if matches(expression, key)):
                    yield from validator.descend(value, subschema)

    def additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
            for key in instance:
                if key not in known and not any(matches(expression, key) for expression in patterns):
                    yield from validator.descend(instance[key], wanted)

    bounded = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
    }
    return {keyword: function for keyword, function in bounded.items() if keyword in draft.VALIDATORS}
