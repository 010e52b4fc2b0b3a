"""How far raters agree: with one another, and with the reward model.

What lives here: Krippendorff's α, each rater's numbers, and disputed pairs. What does not: choices themselves
(``store.py``), the page that shows all this (``page.py``).

References:
    Krippendorff, "Content analysis" (2004), chapter 11: α = 1 − observed / expected disagreement.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import krippendorff
import numpy as np

from .store_records import Opinion, Said

CODES = {"a": 0, "tie": 1, "b": 2}
"""What counts as a judgement; "cannot tell" is a missing one."""


def krippendorff_alpha(said: Sequence[Said]) -> float | None:
    """α of all raters on all pairs, for nominal data (a, tie, b): 1 full agreement, 0 that of chance.

    Returns:
        None while no pair has two judgements, or all judgements are the same.
    """
    judged = [each for each in said if each.pair.choice in CODES]
    raters = {who: i for i, who in enumerate(sorted({each.pair.who or "" for each in judged}))}
    pairs = {number: i for i, number in enumerate(sorted({each.number for each in judged}))}
    table = np.full((len(raters), len(pairs)), np.nan)
    for each in judged:
        table[raters[each.pair.who or ""], pairs[each.number]] = CODES[each.pair.choice or ""]
    paired = table[:, (~np.isnan(table)).sum(axis=0) > 1]  # a judgement that stands alone says nothing of agreement
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement="nominal"))


@dataclass(frozen=True)
class RaterSummary:
    """A rater in numbers.

    Attributes:
        who: the rater.
        choices: how many stand.
        ties, cannot_tell: how many of them are that.
        median_seconds: per choice, where it is known.
        left_share: of the choices between left and right, how many were left: far from ½ where there are many, they
            may not be looking.
        agreement: share of choices that the reward model shares; a tie counts half. None where it has no opinion.
        agreement_error: standard error of that share.
    """

    who: str
    choices: int
    ties: int
    cannot_tell: int
    median_seconds: float | None
    left_share: float | None
    agreement: float | None
    agreement_error: float | None


def summarize_raters(said: Sequence[Said], opinions: Mapping[int, Opinion]) -> list[RaterSummary]:
    """Every rater, by name."""
    by_rater: dict[str, list[Said]] = {}
    for each in said:
        if not each.skipped:
            by_rater.setdefault(each.pair.who or "", []).append(each)
    return [_summary(who, by_rater[who], opinions) for who in sorted(by_rater)]


def _summary(who: str, said: Sequence[Said], opinions: Mapping[int, Opinion]) -> RaterSummary:
    choices = [each.pair.choice for each in said]
    seconds = [each.pair.seconds for each in said if each.pair.seconds is not None]
    left = [each.pair.choice == each.pair.columns["left"] for each in said if _is_left_known(each)]
    agreed = [value for each in said if (value := _agrees(each, opinions.get(each.number))) is not None]
    share = statistics.fmean(agreed) if agreed else None
    error = statistics.stdev(agreed) / math.sqrt(len(agreed)) if len(agreed) > 1 else None
    return RaterSummary(
        who,
        len(said),
        choices.count("tie"),
        choices.count("cannot tell"),
        statistics.median(seconds) if seconds else None,
        statistics.fmean(left) if left else None,
        share,
        error,
    )


def _is_left_known(said: Said) -> bool:
    return said.pair.choice in ("a", "b") and said.pair.columns.get("left") in ("a", "b")


def _agrees(said: Said, opinion: Opinion | None) -> float | None:
    if opinion is None or said.pair.choice not in CODES:
        return None
    if said.pair.choice == "tie" or opinion.difference == 0:
        return 0.5
    return float((said.pair.choice == "a") == (opinion.difference > 0))


def disputed_pairs(said: Sequence[Said], opinions: Mapping[int, Opinion]) -> tuple[list[int], list[int]]:
    """Pairs of which raters say different things; and those that they prefer the other way than the reward model.

    Returns:
        Their numbers; the second kind without the first, by how sure the reward model is.
    """
    judged: dict[int, list[str]] = {}
    for each in said:
        if each.pair.choice in CODES:
            judged.setdefault(each.number, []).append(each.pair.choice or "")
    among_raters = sorted(number for number, choices in judged.items() if len(set(choices)) > 1)
    wrong_way = {"a": -1.0, "b": 1.0}
    against_model = [
        number
        for number, choices in judged.items()
        if len(set(choices)) == 1
        and number in opinions
        and wrong_way.get(choices[0], 0.0) * opinions[number].difference > 0
    ]
    return among_raters, sorted(against_model, key=lambda number: -abs(opinions[number].difference))
