"""Reward for positive wording by VADER's lexicon and rules. Needs the optional library vaderSentiment, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


class Vader:
    """VADER's compound sentiment of the completion mapped to [0, 1]: (compound + 1) / 2 (Hutto & Gilbert, 2014).

    An empty or neutral completion scores 0.5; higher is more positive.
    """

    name = "vader"

    def __init__(self) -> None:
        self.analyzer = SentimentIntensityAnalyzer()

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        return [(self.analyzer.polarity_scores(text)["compound"] + 1.0) / 2.0 for text in completions]
