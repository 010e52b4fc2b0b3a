"""Scorers: everything that turns a batch of texts into rewards. One file per scorer or family; this one re-exports.

Importing the package is light: the library behind a scorer is imported when that scorer is built (see `registry`).
"""

from __future__ import annotations

from .base import BoundScorer, Scorer, ScorerError, add_parts, call_scorer, score_parts, scorer_name
from .registry import as_scorer, corpus_score, get_scorer, register_scorer, scorer_names

__all__ = [
    "BoundScorer",
    "Scorer",
    "ScorerError",
    "add_parts",
    "as_scorer",
    "call_scorer",
    "corpus_score",
    "get_scorer",
    "register_scorer",
    "score_parts",
    "scorer_name",
    "scorer_names",
]
