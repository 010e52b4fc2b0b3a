"""What a tool is, how one is made of what a user wrote, and what it may be called with. No tool lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from textgen_env.locations import LOCATION, close_to, import_location
from textgen_env.notices import shown

_LOCATIONS = {
    "calculator": "textgen_env.responders.calculator:Calculator",
    "python": "textgen_env.responders.python:Python",
    "search": "textgen_env.responders.search:Search",
}


@dataclass(frozen=True)
class Tool:
    """A function that an agent may call.

    Attributes:
        name: as calls have it.
        function: takes its arguments by name. What it raises is text for the agent, but for `TRANSIENT`.
        description: for the chat template.
        parameters: JSON schema of the arguments.
    """

    name: str
    function: Callable[..., Any]
    description: str
    parameters: Mapping[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}


def as_tool(name: str, spec: Any) -> Tool:
    """Make a tool of what a user wrote.

    Args:
        name: as calls will have it.
        spec: a `Tool`; the name of a known one; `{"name": known, **arguments}`; "module:attribute"; a function, whose
            type hints and docstring say what it takes (by `transformers.utils.get_json_schema`); or an object with
            `description`, `parameters` and `__call__`.

    Raises:
        TypeError, ValueError, ImportError: none of these; names the tool.
    """
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"tools: the name {shown(name)} must be a text that is not empty")
    if isinstance(spec, Tool):
        return spec
    if isinstance(spec, (str, Mapping)):
        spec = _make(name, spec)
    if not callable(spec):
        raise TypeError(f"tool {name!r}: {shown(spec)} must be a known name, a mapping with one, or a function")
    if hasattr(spec, "parameters") and hasattr(spec, "description"):
        return Tool(name, spec, spec.description, spec.parameters)
    from transformers.utils import get_json_schema

    try:
        about = get_json_schema(spec)["function"]
    except Exception as error:  # its own kinds of error, and what docstrings make of them
        raise TypeError(
            f"tool {name!r}: {shown(spec)} must have type hints and a docstring that describes it and, under 'Args:', "
            f"each argument, or `description` and `parameters`: {error}"
        ) from error
    return Tool(name, spec, about["description"], about.get("parameters", {"type": "object", "properties": {}}))


def _make(name: str, spec: str | Mapping[str, Any]) -> Any:
    """A known tool, or what a place stands for; a class is made."""
    arguments = {} if isinstance(spec, str) else dict(spec)
    kind = spec if isinstance(spec, str) else arguments.pop("name", None)
    location = _LOCATIONS.get(kind, kind) if isinstance(kind, str) else None
    if location is None or not LOCATION.fullmatch(location):
        known = ", ".join(_LOCATIONS)
        raise ValueError(
            f'tool {name!r}: {shown(kind)} must be one of {known}, or "module:attribute"{close_to(kind, _LOCATIONS)}'
        )
    found = import_location(location, f"tool {name!r}")
    if not isinstance(found, type) and not arguments:
        return found
    try:
        return found(**arguments)
    except TypeError as error:
        raise TypeError(f"tool {name!r} with {shown(arguments)}: {error}") from error


def argument_checks(tools: Sequence[Tool]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """For each tool, from the arguments of a call to what is wrong with them, or nothing.

    Raises:
        ImportError: jsonschema is not installed.
        ValueError: the schema of a tool is none.
    """
    try:
        import jsonschema  # optional
    except ImportError as error:
        raise ImportError(
            f"calls=\"json\" needs jsonschema ({error}): pip install 'textgen_env[tools]'", name="jsonschema"
        ) from error
    checks: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    for tool in tools:
        try:
            jsonschema.Draft202012Validator.check_schema(tool.parameters)
        except jsonschema.SchemaError as error:
            raise ValueError(f"tool {tool.name!r}: its parameters are no JSON schema: {error.message}") from error
        checks[tool.name] = partial(_what_is_wrong, jsonschema.Draft202012Validator(tool.parameters))
    return checks


def _what_is_wrong(validator: Any, arguments: Mapping[str, Any]) -> str:
    from jsonschema.exceptions import best_match

    error = best_match(validator.iter_errors(dict(arguments)))
    return "" if error is None else f"{'.'.join(map(str, error.path)) or 'arguments'}: {error.message}"[:500]
