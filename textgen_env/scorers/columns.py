"""The columns that scorers are handed: rows of them, references that are there, names that none may have.

How scorers are called is in `base.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from .policy_view import PolicyView


def taken_names(scorer: Callable[..., Any]) -> frozenset[str]:
    """Names that no column may have: those of parameters through which a scorer gets the completions.

    `def words(texts, **columns)` gets the completions as `texts`, so that a column "texts" would be given twice.

    Args:
        scorer: a scorer, or one made of scorers, which are looked into.
    """
    return frozenset(name for part in _parts(scorer) for name in _first_parameter(part))


def select_rows(columns: Mapping[str, Any], rows: Sequence[int], n: int) -> dict[str, Any]:
    """Some rows of every column of length n, and of a policy; anything else in `columns` is handed on as it is."""

    def chosen(value: Any) -> Any:
        if isinstance(value, PolicyView):
            return value.rows(rows)
        return [value[row] for row in rows] if isinstance(value, (list, tuple)) and len(value) == n else value

    return {key: chosen(value) for key, value in columns.items()}


def usable_references(references: Sequence[Sequence[str | None] | None], scorer: str) -> list[tuple[str, ...]]:
    """The references of each text as tuples without `None`, for scorers that cannot do without them.

    Raises:
        ValueError: a text has no reference left; the message says which.
        TypeError: a reference is no text, or a bare string stands where a list of references belongs.
    """
    if not {*map(type, references)} - {list, tuple}:
        rows: list[tuple[Any, ...]] = [*map(tuple, references)]  # type: ignore[arg-type]
        if all(rows) and {*map(type, chain.from_iterable(rows))} <= {str}:
            return rows  # the short way, for nearly all
    usable = []
    for row, texts in enumerate(references):
        if isinstance(texts, str):
            raise TypeError(f"{scorer}: references[{row}] must be a list of texts, got the text {texts[:60]!r}")
        kept = tuple(text for text in texts or () if text is not None)
        if not kept:
            raise ValueError(f"{scorer}: references[{row}] is empty; it needs at least one reference a prompt")
        if not all(isinstance(text, str) for text in kept):
            raise TypeError(f"{scorer}: references[{row}] must hold texts, got {kept!r}")
        usable.append(kept)
    return usable


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
