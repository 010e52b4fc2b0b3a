"""The scorer around another scorer, from which those of `combine`, `penalties`, `dense` and `service` derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .answers import Scores
from .base import BoundScorer
from .registry import get_scorer

Spec = str | Mapping[str, Any] | Callable[..., Any]
Parts = dict[str, Scores]


class Wrapper(BoundScorer):
    """A scorer around one other: hands on its parts, name, density, counters, fitting and state.

    A subclass changes `parts`, and `part_names` where it adds one. The call returns the sum of the parts. To a text to
    which the inner scorer does not apply, what is around it does not either.

    Args:
        scorer: a name, a mapping or a callable, see `get_scorer`.
    """

    def __init__(self, scorer: Spec) -> None:
        super().__init__(get_scorer(scorer))
