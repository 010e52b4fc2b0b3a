"""Pairs and choices of several raters in one SQLite file: what is said is on the disk before the call returns.

What lives here: who gets which pair, what they say of it, and what a reward model thinks. What does not: the pair
(``pairs.py``), the file (``store_file.py``), pages that show it to people (``page.py``).

Each call is one transaction with ``synchronous=FULL`` in a write-ahead log, so that a kill or a power cut loses
nothing that was acknowledged and leaves nothing half done. Processes may share the file, not over a network.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from .pairs import CHOICES, Choice, Pair
from .store_file import PAIR, SAID, SKIP, StoreFile, add_pair, read_pair, read_said, write_choice
from .store_records import Opinion, Progress, Said, Task, left_side

SETTLED = "withdrawn IS NULL AND choice != 'skip'"
OTHERS = f"""(SELECT count(*) FROM (SELECT who FROM choices WHERE pair = pairs.id AND {SETTLED} UNION
                  SELECT who FROM leases WHERE pair = pairs.id AND expires > :now) WHERE who != :who)"""
"""How many others have judged a pair or hold it."""

NEXT = f"""
SELECT pairs.id, prompt, a, b, columns FROM pairs
LEFT JOIN leases AS mine ON mine.pair = pairs.id AND mine.who = :who AND mine.expires > :now
WHERE {OTHERS} < :overlap
  AND NOT EXISTS (SELECT 1 FROM choices WHERE pair = pairs.id AND who = :who AND {SETTLED})
ORDER BY mine.given IS NULL, mine.given DESC,
         (SELECT count(*) FROM choices WHERE pair = pairs.id AND who = :who AND choice = 'skip'), pairs.id LIMIT 1
"""
AGAIN = f"""
SELECT pairs.id, prompt, a, b, columns FROM pairs WHERE pairs.id = :number AND (
    EXISTS (SELECT 1 FROM choices WHERE pair = pairs.id AND who = :who AND {SETTLED})
    OR {OTHERS} < :overlap AND (
        EXISTS (SELECT 1 FROM choices WHERE pair = pairs.id AND who = :who AND withdrawn IS NULL)
        OR EXISTS (SELECT 1 FROM leases WHERE pair = pairs.id AND who = :who AND expires > :now)))
"""
LEASE = """
INSERT INTO leases VALUES (:pair, :who, :expires, :now) ON CONFLICT (pair, who) DO UPDATE
SET given = iif(expires > :now, given, :now), expires = :expires RETURNING given
"""


class PreferenceStore:
    """Pairs and choices in a file; every method is one transaction.

    Args:
        path: the file; made if there is none.
        overlap: how many raters are to be asked about each pair.
        lease_seconds: for how long a pair that was given out is kept from other raters.
        clock: seconds since 1970.

    Raises:
        ValueError: the file is no store, or one of another version; ``overlap`` or ``lease_seconds`` is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        overlap: int = 1,
        lease_seconds: float = 600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if overlap < 1 or not lease_seconds > 0:
            raise ValueError(f"overlap={overlap} must be at least 1, and lease_seconds={lease_seconds} above 0")
        self.path, self.overlap, self.lease_seconds, self._clock = Path(path), overlap, lease_seconds, clock
        self._file = StoreFile(path)

    def add(self, pairs: Sequence[Pair]) -> list[int]:
        """Add pairs, all or none; their numbers. Those with a choice bring it along.

        A pair that is there already, with the same columns, is not added again: a file can be read twice, and several
        choices of one pair belong together.

        Raises:
            ValueError: a pair has a choice, and nobody made it.
        """
        for number, pair in enumerate(pairs):
            if pair.choice is not None and pair.who is None:
                raise ValueError(f"pairs[{number}] has the choice {pair.choice!r}; who made it must be named")
        with self._file.transaction() as database:
            return [add_pair(database, pair) for pair in pairs]

    # --- one rater ----------------------------------------------------------------------------------------------------

    def next_task(self, who: str) -> Task | None:
        """A pair for a rater, who has it for ``lease_seconds``: the one they have already, or the first that is free.

        A pair is free for those who have not judged it, while fewer than ``overlap`` others have judged or hold it.
        One that they skipped comes back when nothing else is left.

        Returns:
            None where there is nothing left for them, at present.
        """
        with self._file.transaction() as database:
            found = database.execute(NEXT, self._asked(who)).fetchone()
            return None if found is None else self._give(database, found, who)

    def has_task(self, who: str) -> bool:
        """Whether `next_task` has something; nothing is given out."""
        with self._file.transaction(reading=True) as database:
            return database.execute(NEXT, self._asked(who)).fetchone() is not None

    def task_again(self, number: int, who: str) -> Task | None:
        """A pair that a rater has judged, holds, or has skipped and nobody else took, to be judged (again); or None."""
        with self._file.transaction() as database:
            found = database.execute(AGAIN, {**self._asked(who), "number": number}).fetchone()
            return None if found is None else self._give(database, found, who)

    def was_given(self, number: int, who: str) -> bool:
        """Whether a rater was ever asked about a pair."""
        asked = """SELECT 1 FROM leases WHERE pair = ?1 AND who = ?2
                   UNION SELECT 1 FROM choices WHERE pair = ?1 AND who = ?2"""
        with self._file.transaction(reading=True) as database:
            return database.execute(asked, (number, who)).fetchone() is not None

    def choose(
        self,
        number: int,
        who: str,
        choice: Choice,
        *,
        seconds: float | None = None,
        strength: float | None = None,
        comment: str | None = None,
        left: Literal["a", "b"] | None = None,
    ) -> None:
        """Write down what a rater says of a pair, in place of what they said before; on the disk when this returns.

        A choice counts even if the lease has run out. The same choice once more (a request that was sent twice)
        changes nothing; another one is added, and the first stays in the history.

        Args:
            number: of the pair.
            who: the rater.
            choice: what they prefer.
            seconds: that they took; None: since the pair was given out to them, if it was.
            strength: how much better the preferred response is, in the rater's units.
            comment: in their own words.
            left: which response stood on the left.

        Raises:
            ValueError: there is no such pair; or ``who``, ``choice``, ``seconds`` or ``strength`` is wrong, as `Pair`
                says.
        """
        if choice not in CHOICES:
            raise ValueError(f"choice={choice!r} must be one of {', '.join(CHOICES)}")
        own = {"strength": strength if choice in ("a", "b") else None, "comment": comment or None, "left": left}
        self._write(number, who, choice, seconds, own)

    def skip(self, number: int, who: str) -> None:
        """Leave a pair for later, or for others; it is in the history, and no label.

        Raises:
            ValueError: there is no such pair; ``who`` is no name.
        """
        self._write(number, who, SKIP, None, {})

    def undo(self, who: str, number: int | None = None) -> int | None:
        """Take a rater's last choice or skip back, as far as it stands; it stays in the history.

        They are asked about that pair again, unless somebody else has it by now.

        Args:
            who: the rater.
            number: the pair that they mean; where their last choice is of another, nothing is taken back.

        Returns:
            The number of the pair; None where there is nothing to take back.
        """
        last = "SELECT id, pair FROM choices WHERE who = ? AND withdrawn IS NULL ORDER BY id DESC LIMIT 1"
        with self._file.transaction() as database:
            found = database.execute(last, (who,)).fetchone()
            if found is None or number not in (None, found[1]):
                return None
            database.execute("UPDATE choices SET withdrawn = ? WHERE id = ?", (self._moment(), found[0]))
            free = f"SELECT 1 FROM pairs WHERE pairs.id = :number AND {OTHERS} < :overlap"
            if database.execute(free, {**self._asked(who), "number": found[1]}).fetchone():
                self._lease(database, found[1], who)
        return int(found[1])

    def progress(self, who: str) -> Progress:
        """How far the labelling is, as a rater sees it."""
        counts = f"""SELECT (SELECT count(*) FROM pairs), (SELECT count(*) FROM
            (SELECT pair FROM choices WHERE {SETTLED} GROUP BY pair HAVING count(*) >= ?)),
            (SELECT count(*) FROM choices WHERE {SETTLED} AND who = ?)"""
        with self._file.transaction(reading=True) as database:
            pairs, answered, own = database.execute(counts, (self.overlap, who)).fetchone()
            last = _said(database, "WHERE who = ? AND withdrawn IS NULL ORDER BY choices.id DESC LIMIT 1", who)
        return Progress(pairs, answered, own, last[0] if last else None)

    # --- everything ---------------------------------------------------------------------------------------------------

    def pairs(self) -> list[Pair]:
        """Everything that stands: each pair once per choice, in the order of both; those nobody has chosen of, too."""
        with self._file.transaction(reading=True) as database:
            rows = database.execute(f"SELECT id, {PAIR} FROM pairs ORDER BY id").fetchall()
            said = _said(database, f"WHERE {SETTLED} ORDER BY choices.id")
        by_number: dict[int, list[Pair]] = {}
        for each in said:
            by_number.setdefault(each.number, []).append(each.pair)
        return [pair for number, *row in rows for pair in by_number.get(number) or [read_pair(row)]]

    def numbered(self) -> dict[int, Pair]:
        """Each pair once, without choices, by its number."""
        with self._file.transaction(reading=True) as database:
            return {number: read_pair(row) for number, *row in database.execute(f"SELECT id, {PAIR} FROM pairs")}

    def pair(self, number: int) -> Pair | None:
        """One pair without its choices, or None."""
        with self._file.transaction(reading=True) as database:
            row = database.execute(f"SELECT {PAIR} FROM pairs WHERE id = ?", (number,)).fetchone()
        return None if row is None else read_pair(row)

    def said(self, *, who: str | None = None, number: int | None = None, withdrawn: bool = False) -> list[Said]:
        """Choices and skips in the order in which they were made.

        Args:
            who: of one rater.
            number: of one pair.
            withdrawn: also those that were taken back or replaced.
        """
        wanted = "WHERE (?1 IS NULL OR who = ?1) AND (?2 IS NULL OR pair = ?2)"
        with self._file.transaction(reading=True) as database:
            only = "" if withdrawn else " AND withdrawn IS NULL"
            return _said(database, f"{wanted}{only} ORDER BY choices.id", who, number)

    def choices(self) -> list[tuple[int, str]]:
        """The numbers of pairs and what was said of them, without reading the texts."""
        with self._file.transaction(reading=True) as database:
            return database.execute(f"SELECT pair, choice FROM choices WHERE {SETTLED} ORDER BY id").fetchall()

    def counts(self) -> dict[str, int]:
        """How many choices each rater has made."""
        query = f"SELECT who, count(*) FROM choices WHERE {SETTLED} GROUP BY who ORDER BY who"
        with self._file.transaction(reading=True) as database:
            return dict(database.execute(query).fetchall())

    # --- a reward model -----------------------------------------------------------------------------------------------

    def put_opinions(self, opinions: Mapping[int, Opinion]) -> None:
        """What the present reward model thinks, by the number of the pair, in place of all that was there."""
        rows = [(number, each.model, each.difference, each.spread) for number, each in opinions.items()]
        with self._file.transaction() as database:
            database.execute("DELETE FROM opinions")
            database.executemany("INSERT INTO opinions VALUES (?, ?, ?, ?)", rows)

    def opinions(self) -> dict[int, Opinion]:
        """What the present reward model thinks, by the number of the pair."""
        with self._file.transaction(reading=True) as database:
            rows = database.execute("SELECT pair, model, difference, spread FROM opinions ORDER BY pair").fetchall()
        return {number: Opinion(*row) for number, *row in rows}

    # --- inside -------------------------------------------------------------------------------------------------------

    def _write(self, number: int, who: str, choice: str, seconds: float | None, own: Mapping[str, Any]) -> None:
        if not isinstance(who, str):
            raise ValueError(f"who={who!r} must name a rater")
        lease = "SELECT given FROM leases WHERE pair = ? AND who = ?"
        with self._file.transaction() as database:
            row = database.execute(f"SELECT {PAIR} FROM pairs WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise ValueError(f"number={number!r}: there is no such pair in {self.path}")
            given = database.execute(lease, (number, who)).fetchone()
            if seconds is None and given is not None:
                seconds = max(0.0, self._clock() - given[0])
            pair = read_pair(row)
            told: dict[str, Any] = {"who": who, "when": self._moment(), "seconds": seconds}
            told["columns"] = {**pair.columns, **{k: v for k, v in own.items() if v is not None}}  # which `Pair` checks
            told["choice"] = None if choice == SKIP else choice
            write_choice(database, number, replace(pair, **told), own, told["when"], choice)
            database.execute("DELETE FROM leases WHERE pair = ? AND who = ?", (number, who))

    def _asked(self, who: str) -> dict[str, Any]:
        return {"who": who, "now": self._clock(), "overlap": self.overlap}

    def _give(self, database: sqlite3.Connection, row: Sequence[Any], who: str) -> Task:
        """The pair of a row, leased."""
        given = self._lease(database, row[0], who)
        return Task(row[0], read_pair(row[1:]), left_side(row[0], who), max(0.0, self._clock() - given))

    def _lease(self, database: sqlite3.Connection, number: int, who: str) -> float:
        """Keep a pair for a rater, from now on; when it was given to them."""
        now = self._clock()
        terms = {"pair": number, "who": who, "now": now, "expires": now + self.lease_seconds}
        return float(database.execute(LEASE, terms).fetchone()[0])

    def _moment(self) -> str:
        """Now, in UTC."""
        return datetime.fromtimestamp(self._clock(), timezone.utc).isoformat().replace("+00:00", "Z")


def _said(database: sqlite3.Connection, rest: str, *values: Any) -> list[Said]:
    query = f"SELECT {SAID}, {PAIR} FROM choices JOIN pairs ON pair = pairs.id {rest}"
    return [read_said(row) for row in database.execute(query, values)]
