"""How texts, choices and numbers look on the labelling page.

What lives here: texts of models made safe to show, their differences, and choices in words. What does not: the
templates (``templates/``), what is asked for (``page.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex
from markupsafe import Markup, escape
from rapidfuzz.distance import Indel

from textgen_env.render import visible

from .pairs import Choice, Pair
from .store_records import Opinion, Said, Task, left_side

WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]\p{M}*|[\w\p{M}]+|\s+|.", regex.DOTALL)
MOST_WORDS = 5000
"""Longer texts are compared by what they begin and end with alone."""
SIDES = ("left", "right")


def shown(text: str) -> str:
    """A text with what would steer a reader's eye made visible; tabs and the marks of right-to-left text stay."""
    return "".join(
        part if part in ("\t", "\u200e", "\u200f", "\u061c") else visible(part)
        for part in re.split("([\t\u200e\u200f\u061c])", text)
    )


def clipped(text: str, most: int) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: 4 * most].split())
    return shown(line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 1]}…")


def differing(first: Sequence[str], second: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Which words of two texts the other has not, so that as few as possible are; of long ones all in the middle."""
    if max(len(first), len(second)) <= MOST_WORDS:
        flags = [True] * len(first), [True] * len(second)
        for operation in Indel.opcodes(first, second):
            if operation.tag == "equal":
                flags[0][operation.src_start : operation.src_end] = [False] * (operation.src_end - operation.src_start)
                flags[1][operation.dest_start : operation.dest_end] = [False] * (
                    operation.dest_end - operation.dest_start
                )
        return flags
    shorter = min(len(first), len(second))
    same = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    end = next((i for i in range(shorter - same) if first[-1 - i] != second[-1 - i]), shorter - same)
    middle = [[same <= i < len(text) - end for i in range(len(text))] for text in (first, second)]
    return middle[0], middle[1]


def marked(words: Iterable[str], differs: Iterable[bool]) -> Markup:
    """A text as HTML in which words that the other text has not can be marked."""
    runs: list[tuple[bool, list[str]]] = []
    for word, is_different in zip(words, differs, strict=True):
        if not runs or runs[-1][0] != is_different:
            runs.append((is_different, []))
        runs[-1][1].append(word)
    parts = ((is_different, escape(shown("".join(run)))) for is_different, run in runs)
    return Markup("").join(Markup('<span class="d">{}</span>').format(text) if d else text for d, text in parts)


@dataclass(frozen=True)
class Side:
    """One response as it stands on the page."""

    name: str  # "left" or "right"
    text: Markup
    empty: bool
    cut: bool  # it was ended by a limit


@dataclass(frozen=True)
class PairView:
    """A pair as a rater sees it."""

    number: int
    prompt: list[tuple[str, str]]  # role, or "", and text
    sides: list[Side]
    left: Literal["a", "b"]

    @classmethod
    def of(cls, number: int, pair: Pair, left: Literal["a", "b"]) -> PairView:
        """Both responses, the one that is to stand on the left first."""
        texts, ended = ((pair.a, pair.b), pair.ended)
        if left == "b":
            texts, ended = texts[::-1], ended[::-1]
        words = [WORDS.findall(text) for text in texts]
        flags = differing(*words)
        sides = [Side(SIDES[i], marked(words[i], flags[i]), not texts[i].strip(), not ended[i]) for i in range(2)]
        return cls(number, _messages(pair), sides, left)

    @classmethod
    def of_task(cls, task: Task) -> PairView:
        """As a rater is asked about it."""
        return cls.of(task.number, task.pair, task.left)

    def side_of(self, response: str | None) -> str:
        """Where "a" or "b" stands; "tie" and "cannot tell" as they are; "skipped"."""
        return side_of(response, self.left)


def side_of(choice: str | None, left: str) -> str:
    """A choice as it looks where one response stands on the left."""
    if choice is None:
        return "skipped"
    return choice if choice not in ("a", "b") else SIDES[choice != left]


def response_of(side: str, left: str) -> Choice:
    """A choice from how it looks: the inverse of `side_of`."""
    if side in SIDES:
        return "a" if (side == "left") == (left == "a") else "b"
    return "tie" if side == "tie" else "cannot tell"


def _messages(pair: Pair) -> list[tuple[str, str]]:
    if isinstance(pair.prompt, str):
        return [("", shown(pair.prompt))]
    return [(shown(str(m.get("role", ""))), shown(_said(m.get("content")))) for m in pair.prompt]


def _said(content: Any) -> str:
    return content if isinstance(content, str) else repr(content)


@dataclass(frozen=True)
class Row:
    """A choice in a list."""

    number: int
    who: str
    choice: str  # as the rater saw it: left, right, …
    preferred: str  # the beginning of the preferred response
    other: str
    prompt: str
    comment: str
    strength: str
    seconds: str
    when: str
    withdrawn: str | None


def row(said: Said) -> Row:
    """A choice as lists show it."""
    pair, columns = said.pair, said.pair.columns
    left = columns.get("left") or left_side(said.number, pair.who or "")
    first, second = (pair.b, pair.a) if pair.choice == "b" else (pair.a, pair.b)
    return Row(
        number=said.number,
        who=shown(pair.who or ""),
        choice=side_of(pair.choice, left),
        preferred=clipped(first, 160),
        other=clipped(second, 160),
        prompt=clipped(_messages(pair)[-1][1], 120),
        comment=shown(str(columns.get("comment") or "")),
        strength=f"{pair.strength:g}" if columns.get("strength") else "",
        seconds="" if pair.seconds is None else f"{pair.seconds:.1f}",
        when=(pair.when or "")[:19].replace("T", " "),
        withdrawn=None if said.withdrawn is None else said.withdrawn[:19].replace("T", " "),
    )


@dataclass(frozen=True)
class OpinionView:
    """What the reward model thinks, as a rater sees it."""

    model: str
    side: str  # that it prefers
    percent: int  # how surely
    left_percent: int
    difference: str


def opinion_view(opinion: Opinion | None, left: str) -> OpinionView | None:
    """In words and numbers, for the side that it prefers."""
    if opinion is None:
        return None
    probability = opinion.probability if left == "a" else 1 - opinion.probability  # of the left one
    spread = "" if opinion.spread is None else f" ± {opinion.spread:.2f}"
    percent, side = round(100 * max(probability, 1 - probability)), "left" if probability >= 0.5 else "right"
    return OpinionView(
        visible(opinion.model), side, percent, round(100 * probability), f"{abs(opinion.difference):.2f}{spread}"
    )
