"""How a text says that a tool is to be called: as JSON between marks, or by a pattern. Calling is `tools.py`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import regex

from textgen_env.notices import shown

MOST_CHARACTERS = 100_000  # of a turn that is looked through
PATTERN_SECONDS = 1.0  # for all matches of a pattern in a turn


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool's name and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


class CallFormat(Protocol):
    """Finds the calls in a text."""

    def __call__(self, text: str) -> list[ToolCall | str]:
        """All calls in the order of the text; for one that is none, what is wrong with it, for the agent to read."""


class JSONCalls:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as many chat templates teach it.

    Args:
        start, end: the marks around each call.

    Raises:
        ValueError: a mark that is empty.
    """

    def __init__(self, start: str = "<tool_call>", end: str = "</tool_call>") -> None:
        for name, mark in (("start", start), ("end", end)):
            if not isinstance(mark, str) or not mark.strip():
                raise ValueError(f"calls: {name}={shown(mark)} must be a text that is not empty")
        self.start, self.end = start, end

    def __call__(self, text: str) -> list[ToolCall | str]:
        parts = text[:MOST_CHARACTERS].split(self.start)[1:]
        return [self._read(*part.partition(self.end)[:2]) for part in parts]

    def _read(self, content: str, end: str) -> ToolCall | str:
        if not end:
            return f"the call has no {self.end} at its end"
        try:
            call = json.loads(content)
        except (ValueError, RecursionError) as error:
            return f"the call is no JSON: {error}"
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return 'a call must be an object {"name": …, "arguments": {…}}'
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            return f'"arguments" must be an object, not {type(arguments).__name__}'
        return ToolCall(call["name"], arguments)


class PatternCalls:
    """A regular expression for each tool; its named groups are the arguments, as texts.

    Args:
        patterns: by the tool's name, for the library `regex`: `{"calculator": r"calc (?P<expression>.+)"}`.

    Raises:
        ValueError: a pattern that is none.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._patterns = {}
        for name, pattern in patterns.items():
            try:
                self._patterns[name] = regex.compile(pattern)
            except (regex.error, TypeError) as error:
                raise ValueError(f"calls: the pattern {shown(pattern)} of {name!r} is none: {error}") from error

    def __call__(self, text: str) -> list[ToolCall | str]:
        text, found = text[:MOST_CHARACTERS], []
        for name, pattern in self._patterns.items():
            try:
                matches = list(pattern.finditer(text, timeout=PATTERN_SECONDS))
            except TimeoutError:
                return [f"the text takes too long to be searched for a call of {name}"]
            found += [(match.start(), ToolCall(name, _arguments(match))) for match in matches]
        return [call for _, call in sorted(found, key=lambda pair: pair[0])]


def _arguments(match: Any) -> dict[str, str]:
    return {name: value.strip() for name, value in match.groupdict().items() if value is not None}


def as_call_format(calls: Any, names: list[str]) -> CallFormat:
    """ "json", a mapping of marks or patterns, or a function, as what finds calls.

    Args:
        calls: "json"; `{"start": …, "end": …}` for JSON between other marks; a pattern for each tool; a `CallFormat`.
        names: of the tools.

    Raises:
        TypeError, ValueError: none of these, or a tool without a pattern.
    """
    if calls == "json":
        return JSONCalls()
    if isinstance(calls, Mapping):
        if calls and set(calls) <= {"start", "end"} and not set(calls) & set(names):
            return JSONCalls(**calls)
        if set(calls) != set(names):
            raise ValueError(f"calls={shown(dict(calls))} must have a pattern for each of the tools {sorted(names)}")
        return PatternCalls(calls)
    if callable(calls):
        return calls  # type: ignore[no-any-return]
    raise TypeError(f'calls={shown(calls)} must be "json", a mapping of a pattern for each tool, or a function')
