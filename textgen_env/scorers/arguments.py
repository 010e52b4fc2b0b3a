"""What a description of a scorer may say: its arguments by name and type, as the scorer's signature shows them.

Every scorer that is made from a description passes through here, so that a mistyped option says what would be right.
Which values of the right type make sense is each scorer's own matter.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from textgen_env.locations import close_to
from textgen_env.notices import shown

Function = TypeVar("Function", bound=Callable[..., Any])

_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "None",
    Callable: "a function",
    Mapping: "a mapping",
    Sequence: "a list",
}
_JSON = (type(None), bool, int, float, str, list, dict)  # other things, such as a torch.dtype, a scorer checks itself


class ArgumentError(TypeError, ValueError):
    """An argument of a type that a scorer does not take: in Python a TypeError, in a JSON file a wrong value."""


def check_arguments(
    name: str, factory: Callable[..., Any], arguments: Mapping[str, Any], *, complete: bool = True
) -> None:
    """See that a class or function takes these keyword arguments.

    Args:
        name: the scorer's name, for errors.
        factory: the class or function.
        arguments: what it is to be called with.
        complete: whether it is called with nothing else.

    Raises:
        TypeError: one that it does not know, or one that is missing.
        ArgumentError: one of another type. All name scorer, argument and value, and say what would be right.
    """
    parameters = inspect.signature(factory).parameters.values()
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    unknown = [key for key in arguments if key not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"scorer {name!r} got an unexpected keyword argument {unknown[0]!r} with the value "
            f"{shown(arguments[unknown[0]])}{close_to(unknown[0], known)}; it takes {', '.join(known) or 'none'}"
        )
    missing = [key for key, p in known.items() if p.default is p.empty and key not in arguments]
    if missing and complete:
        raise TypeError(f"scorer {name!r} needs {' and '.join(missing)}; it takes {', '.join(known)}")
    hints = _hints(factory)
    for key, value in arguments.items():
        hint = hints.get(key, Any)
        if isinstance(value, _JSON) and not _fits(value, hint):
            raise ArgumentError(
                f"scorer {name!r}: {key} must be {_described(hint)}, got the {_kind(value)} {shown(value)}"
            )


def hands_on(target: Callable[..., Any], *without: str, **defaults: Any) -> Callable[[Function], Function]:
    """Show in the signature of a function what its `**kwargs` hand on to another one.

    They are written down once, and `help()`, editors and `check_arguments` see all of them.

    Args:
        target: where the keyword arguments go.
        without: its parameters that do not come from there.
        **defaults: defaults that are not those of `target`.
    """
    taken = [p for p in inspect.signature(target).parameters.values() if p.name not in ("self", *without)]

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in own}
        further = [
            p.replace(kind=p.KEYWORD_ONLY, default=defaults.get(p.name, p.default))
            for p in taken
            if p.name not in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *further])  # type: ignore[attr-defined]
        hints = _hints(target)
        function.__annotations__ |= {p.name: hints.get(p.name, Any) for p in further}
        return function

    return show


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters, as far as they can be found out."""
    function = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except Exception:  # names that only a type checker sees
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is what an annotation says."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    kind = origin or hint
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not isinstance(kind, type):
        return True
    if issubclass(kind, Sequence) and not issubclass(kind, str):
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value if options)
    return isinstance(value, kind)


def _described(hint: Any) -> str:
    """An annotation in words."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        *first, last = dict.fromkeys(_described(option) for option in typing.get_args(hint))
        return f"{', '.join(first)} or {last}" if first else last
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str and typing.get_args(hint):
        inner = {int: "integers", float: "numbers", str: "texts"}.get(typing.get_args(hint)[0])
        return f"a list of {inner}" if inner else "a list"
    return _WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _kind(value: Any) -> str:
    """What a value of JSON is called."""
    names = {type(None): "value", bool: "truth value", int: "integer", float: "number", str: "text", dict: "mapping"}
    return names.get(type(value), type(value).__name__)
