"""A pair of responses and what somebody said of it; files of pairs, in our own form and in TRL's.

What lives here: `Pair`, checked where it is made, and reading and writing. What does not: who labels
(``labellers.py``), what is learned from pairs (``dpo.py``, ``reward_model.py``), encodings and lines of files
(`textgen_env.prompt_files`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from textgen_env.episode import Prompt
from textgen_env.messages import is_conversation
from textgen_env.notices import shown
from textgen_env.prompt_files import read_rows
from textgen_env.prompts import as_prompt, prompt_as_dict

from ..training.files import replace_file

Choice: TypeAlias = Literal["a", "b", "tie", "cannot tell"]
CHOICES = ("a", "b", "tie", "cannot tell")


class Ranked(NamedTuple):
    """What can be learned from a pair: P(first ≻ second) is to be ``target``, 1 or, for a tie, ½."""

    first: str
    second: str
    target: float


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, and which of them somebody prefers; all values are plain JSON.

    Attributes:
        prompt: a text, or a conversation as a list of ``{"role", "content"}``.
        a, b: the responses, which differ; read behind the prompt as they are, white space included.
        choice: "a", "b", "tie" or "cannot tell"; None where nobody was asked yet.
        who: the rater.
        when: of the choice, in UTC as ISO 8601 has it: "2026-01-31T12:00:00Z".
        seconds: that the rater took.
        columns: further ones: "references" and others that scorers take, "scores" (of a and b), "ended" (whether a and
            b ended by themselves, so that EOS belongs to them; both did if it is not said), "strength" (how much better
            the preferred one is, a number ≥ 0; see `RewardModelConfig`).

    Raises:
        TypeError, ValueError: a field is wrong; its name, what it was, and what would be right.
    """

    prompt: str | list[dict[str, Any]]
    a: str
    b: str
    choice: Choice | None = None
    who: str | None = None
    when: str | None = None
    seconds: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = _plain(self.columns)
        prompt = as_prompt({**columns, "prompt": self.prompt})
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "prompt", prompt_as_dict(prompt)["prompt"])
        for name in ("a", "b"):
            _check_text(name, getattr(self, name))
        if self.a == self.b:
            raise ValueError(f"a and b are the same text, {shown(self.a)}; a pair has two different responses")
        if self.choice is not None and self.choice not in CHOICES:
            raise ValueError(f"choice={shown(self.choice)} must be one of {', '.join(CHOICES)}, or None")
        _check_rating(self.who, self.when, self.seconds)
        if not _are_two_flags(ended := columns.get("ended", [True, True])):
            raise ValueError(f"ended={shown(ended)} must say of a and of b whether it ended: [true, false]")
        if not _is_not_negative(strength := columns.get("strength", 0)):
            raise ValueError(f"strength={shown(strength)} must be a finite number ≥ 0")

    @property
    def as_prompt(self) -> Prompt:
        """The prompt with its references and columns, as environments and scorers take it."""
        return as_prompt({**self.columns, "prompt": self.prompt})

    @property
    def ended(self) -> tuple[bool, bool]:
        """Whether a and b ended by themselves; one that did not was cut at a limit."""
        a, b = self.columns.get("ended", (True, True))
        return a, b

    @property
    def strength(self) -> float:
        """How much better the preferred response is, in the rater's own units; 0 if it is not said."""
        return float(self.columns.get("strength", 0.0))

    @property
    def ranked(self) -> Ranked | None:
        """The preferred response first; a tie as it stands. None where there is nothing to learn."""
        if self.choice in ("a", "tie"):
            return Ranked(self.a, self.b, 1.0 if self.choice == "a" else 0.5)
        return Ranked(self.b, self.a, 1.0) if self.choice == "b" else None


FIELDS = tuple(each.name for each in fields(Pair) if each.name != "columns")
TRL = ("chosen", "rejected")


def as_pair(value: Any) -> Pair:
    """A pair from a row of a file: our own form, or TRL's, whose chosen response becomes a.

    Raises:
        TypeError, ValueError: it is neither, or a field is wrong.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{shown(value)} must be an object with prompt, a and b (or prompt, chosen and rejected)")
    row = _from_trl(value) if "chosen" in value or "rejected" in value else value
    if missing := [name for name in ("prompt", "a", "b") if name not in row]:
        raise ValueError(
            f"there is no {missing[0]!r}: a pair has prompt, a and b; its keys are {sorted(map(str, row))}"
        )
    own = {name: row[name] for name in FIELDS if name in row}
    return Pair(**own, columns={name: item for name, item in row.items() if name not in FIELDS})


def as_row(pair: Pair) -> dict[str, Any]:
    """The object that `as_pair` reads back; fields that are None are left out."""
    own = {name: value for name in FIELDS if (value := getattr(pair, name)) is not None}
    return {**own, **pair.columns}


def as_trl_row(pair: Pair) -> dict[str, Any] | None:
    """In TRL's preference format, conversational where the prompt is; None for a pair without a preferred response."""
    ranked = pair.ranked
    if ranked is None or ranked.target != 1:
        return None
    texts = dict(zip(TRL, ranked[:2], strict=True))
    if isinstance(pair.prompt, str):
        return {"prompt": pair.prompt, **texts}
    return {"prompt": pair.prompt, **{name: [{"role": "assistant", "content": text}] for name, text in texts.items()}}


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a file: one JSON object per line, in our own form or in TRL's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong: file, line, field, and what would be right; or there is none.
    """
    path, pairs = Path(path), []
    if not path.is_file():
        raise FileNotFoundError(f"pairs={str(path)!r}: there is no such file")
    for where, value in read_rows(path):
        try:
            pairs.append(as_pair(value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    if not pairs:
        raise ValueError(f"pairs={str(path)!r} holds no pair")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write a file that `read_pairs` reads back, as a whole or not at all."""
    _write(path, map(as_row, pairs))


def write_trl(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Write what TRL's trainers read, as a whole or not at all; returns how many pairs have no preferred response.

    Those (ties, "cannot tell", not labelled) are left out: TRL knows no word for them.
    """
    rows = [as_trl_row(pair) for pair in pairs]
    kept = [row for row in rows if row is not None]
    _write(path, kept)
    return len(rows) - len(kept)


def _write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    replace_file(Path(path), "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _from_trl(row: Mapping[str, Any]) -> dict[str, Any]:
    """One of TRL's rows in our own words; whole conversations that differ in their last message are understood too."""
    if missing := [name for name in TRL if name not in row]:
        raise ValueError(f"there is no {missing[0]!r} beside the other of chosen and rejected")
    if clash := sorted({"a", "b", "choice"} & row.keys()):
        raise ValueError(f"it has {clash[0]!r} beside chosen and rejected; which of them counts?")
    rest = {name: value for name, value in row.items() if name not in TRL}
    chosen, rejected = row["chosen"], row["rejected"]
    if is_conversation(chosen) and is_conversation(rejected):
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("chosen and rejected must be the same conversation up to their last message")
        if len(chosen) > 1:
            rest["prompt"] = chosen[:-1]
        chosen, rejected = (
            _said(name, messages[-1]) for name, messages in (("chosen", chosen), ("rejected", rejected))
        )
    if "prompt" not in rest:
        raise ValueError("there is no 'prompt' beside chosen and rejected; split it off where both begin alike")
    return {**rest, "a": chosen, "b": rejected, "choice": "a"}


def _said(name: str, message: Mapping[str, Any]) -> Any:
    if message["role"] != "assistant":
        raise ValueError(f"{name} ends with a message of {message['role']!r}; it must be the assistant's")
    return message.get("content")


def _plain(columns: Any) -> dict[str, Any]:
    """Columns as JSON has them, so that they come back from a file as they are."""
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns={shown(columns)} must be a mapping")
    taken = {*FIELDS, *TRL, "columns"}
    for name in columns:
        if not isinstance(name, str) or name in taken:
            raise ValueError(f"columns has {name!r}; names are texts, and {', '.join(sorted(taken))} are taken")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(columns), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"columns={shown(columns)} cannot be written as JSON: {error}") from error
    return plain


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name}={shown(text)} must be a text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}={shown(text)} holds {text[error.start]!r}, which is half a character") from error


def _check_rating(who: Any, when: Any, seconds: Any) -> None:
    if who is not None:
        _check_text("who", who)
        if not who.strip():
            raise ValueError(f"who={who!r} must name a rater, or be None")
    if when is not None and not _is_utc(when):
        raise ValueError(f"when={shown(when)} must be a time in UTC as ISO 8601 has it: '2026-01-31T12:00:00Z'")
    if seconds is not None and not _is_not_negative(seconds):
        raise ValueError(f"seconds={shown(seconds)} must be a finite number ≥ 0, or None")


def _is_utc(when: Any) -> bool:
    try:
        return datetime.fromisoformat(when.replace("Z", "+00:00")).utcoffset() == timedelta(0)
    except (AttributeError, TypeError, ValueError):
        return False


def _is_not_negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_two_flags(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(each, bool) for each in value)
