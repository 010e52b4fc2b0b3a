"""The scorer around another scorer, from which those of `combine`, `penalties`, `dense` and `service` derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .answers import Scores, add_applying, scorer_name
from .base import part_names, raw_parts
from .registry import get_scorer

Spec = str | Mapping[str, Any] | Callable[..., Any]
Parts = dict[str, Scores]


class Wrapper:
    """A scorer around one other: hands on its parts, name, density, counters, fitting and state.

    A subclass changes `parts`, and `part_names` where it adds one. The call returns the sum of the parts. To a text to
    which the inner scorer does not apply, what is around it does not either.
    """

    def __init__(self, scorer: Spec) -> None:
        self.scorer = get_scorer(scorer)

    @property
    def name(self) -> str:
        """The inner scorer's name."""
        return scorer_name(self.scorer)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The inner scorer's parts."""
        return part_names(self.scorer)

    @property
    def dense(self) -> bool:
        """Whether the inner scorer is to be asked at every step."""
        return bool(getattr(self.scorer, "dense", False))

    def parts(self, completions: Sequence[str], **columns: Any) -> Mapping[str, Scores]:
        """One list of n floats a part, `None` where the inner scorer's does not apply."""
        return raw_parts(self.scorer, completions, **columns)

    def __call__(self, completions: Sequence[str], **columns: Any) -> Scores:
        return add_applying(self.parts(completions, **columns), len(completions))

    def info(self) -> dict[str, float]:
        """The inner scorer's counters."""
        return dict(self.scorer.info()) if hasattr(self.scorer, "info") else {}

    def load_models(self) -> None:
        """Load the inner scorer's models, if it has any."""
        if hasattr(self.scorer, "load_models"):
            self.scorer.load_models()

    def fit_references(self, references: Sequence[Sequence[str]]) -> None:
        """Fits the inner scorer, if it fits itself to a task's references."""
        if hasattr(self.scorer, "fit_references"):
            self.scorer.fit_references(references)

    def state_dict(self) -> dict[str, Any]:
        """What the inner scorer has learned while scoring; empty for most."""
        return dict(self.scorer.state_dict()) if hasattr(self.scorer, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if hasattr(self.scorer, "load_state_dict"):
            self.scorer.load_state_dict(state)
