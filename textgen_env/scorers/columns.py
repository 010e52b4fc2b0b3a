"""Which columns of a prompt set a scorer cannot be handed. How scorers are called is in `base.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any


def taken_names(scorer: Callable[..., Any]) -> frozenset[str]:
    """Names that no column may have: those of parameters through which a scorer gets the completions.

    `def words(texts, **columns)` gets the completions as `texts`, so that a column "texts" would be given twice.

    Args:
        scorer: a scorer, or one made of scorers, which are looked into.
    """
    return frozenset(name for part in _parts(scorer) for name in _first_parameter(part))


def _parts(scorer: Any) -> Iterator[Any]:
    """A scorer and the callables it is made of: members of a sum, what a wrapper wraps."""
    yield scorer
    inner = [getattr(scorer, name, None) for name in ("scorer", "function")]
    inner += [member[-1] for member in getattr(scorer, "members", ()) if isinstance(member, tuple) and member]
    for part in inner:
        if callable(part) and part is not scorer:
            yield from _parts(part)


def _first_parameter(scorer: Any) -> list[str]:
    try:
        parameters = list(inspect.signature(scorer).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return []
    if any(parameter.name == "completions" for parameter in parameters):
        return []  # it gets them by that name
    return [parameter.name for parameter in parameters[:1] if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
