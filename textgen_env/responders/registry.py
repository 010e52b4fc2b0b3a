"""From a name, a description or a function to a responder. No responder lives here.

A module is imported when its responder is made, so that nobody pays for what is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

from textgen_env.locations import LOCATION, import_location
from textgen_env.notices import shown

from .base import PerText, Responder

_LOCATIONS = {
    "browser": "textgen_env.responders.browser:Browser",
    "echo": "textgen_env.responders.echo:Echo",
    "partner": "textgen_env.responders.partner:Partner",
    "patient": "textgen_env.responders.patient:Patient",
    "person": "textgen_env.responders.person:Person",
    "script": "textgen_env.responders.script:Script",
    "site": "textgen_env.responders.site:Site",
    "tools": "textgen_env.responders.tools:Tools",
    "text_env": "textgen_env.responders.text_env:TextEnvResponder",
}
_REGISTERED: dict[str, str] = {}


def responder_names() -> list[str]:
    """All names that `as_responder` knows."""
    return sorted([*_LOCATIONS, *_REGISTERED])


def register_responder(name: str, location: str) -> None:
    """Give a responder of one's own a name, for this process. Nothing is imported until it is made.

    Args:
        name: the new name, without a colon.
        location: "module:attribute", where the attribute is a class, a responder, or a function of one text.

    Raises:
        ValueError: a name or a location of another form, or a name that stands for something else already.
    """
    if not isinstance(name, str) or not name.strip() or ":" in name:
        raise ValueError(f"register_responder: name={shown(name)} must be a text without a colon, and not empty")
    if not isinstance(location, str) or not LOCATION.fullmatch(location):
        raise ValueError(f'register_responder: location={shown(location)} must be "module:attribute"')
    if (before := _REGISTERED.get(name) or _LOCATIONS.get(name, location)) != location:
        raise ValueError(f"register_responder: name={name!r} stands for {before} already, it cannot be {location}")
    _REGISTERED[name] = location


def as_responder(spec: Any) -> Responder:
    """Make a responder of what a user or a registered task wrote.

    Args:
        spec: a name (`"echo"`), or the place of one's own (`"module:attribute"`); a mapping `{"name": "echo",
            **arguments}`; an object with `reset` and `respond` (see `Responder`); or a function `f(text) -> str`. Of
            one's own, a class is made with the arguments, and a function is called with them. Naming a module runs its
            code.

    Raises:
        TypeError: none of these, or arguments that the responder does not take.
        ValueError: an unknown name, or a mapping without one.
        ImportError: a module that is not there, or fails.
    """
    if isinstance(spec, str):
        return _make(spec, {})
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        if not isinstance(name := arguments.pop("name", None), str):
            raise ValueError(f'responder={shown(spec)} must have a "name", one of {", ".join(responder_names())}')
        return _make(name, arguments)
    if isinstance(spec, type):
        raise TypeError(f"responder={spec.__name__} is a class, which answers nothing; make one: {spec.__name__}(…)")
    if hasattr(spec, "respond"):
        if not hasattr(spec, "reset"):
            raise TypeError(
                f"responder={shown(spec)} has respond but no reset(slots, prompts, seeds), which returns what the "
                "environment says first: [''] * len(slots) for nothing"
            )
        return spec  # type: ignore[no-any-return]
    if not callable(spec):
        raise TypeError(
            f"responder={shown(spec)} must be a name, a mapping, a function of a text, or an object with reset and "
            f"respond, not {type(spec).__name__}"
        )
    return PerText(spec)


def _make(name: str, arguments: dict[str, Any]) -> Responder:
    found = _imported(name)
    if isinstance(found, type) or (arguments and not hasattr(found, "respond")):
        try:
            found = found(**arguments) if isinstance(found, type) else partial(found, **arguments)
        except TypeError as error:
            raise TypeError(f"responder {name!r} with {shown(arguments)}: {error}") from error
    elif arguments:
        raise TypeError(f"responder {name!r} is an object, which takes no arguments here, got {shown(arguments)}")
    return as_responder(found)


def _imported(name: str) -> Any:
    """What a name stands for."""
    location = _LOCATIONS.get(name) or _REGISTERED.get(name, name)
    if not LOCATION.fullmatch(location):
        close = get_close_matches(name, responder_names(), 1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(responder_names())
        raise ValueError(f'responder={name!r} is unknown; it must be one of {known}, or "module:attribute"{hint}')
    return import_location(location, f"responder {name!r}")
