"""Pairs and choices of several raters in one SQLite file: what is said is on the disk before the call returns.

What lives here: the file, who gets which pair, and import and export. What does not: the pair (``pairs.py``), pages
that show it to people.

Each call is one transaction with ``synchronous=FULL`` in a write-ahead log, so that a kill or a power cut loses
nothing that was acknowledged and leaves nothing half done. Processes may share the file, not over a network.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from .pairs import CHOICES, Choice, Pair, as_pair

VERSION = 1
SCHEMA = """
CREATE TABLE pairs (id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
                    columns TEXT NOT NULL);
CREATE INDEX texts ON pairs (a, b);
CREATE TABLE choices (pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL, choice TEXT NOT NULL,
                      "when" TEXT, seconds REAL, PRIMARY KEY (pair, who));
CREATE TABLE leases (pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL, expires REAL NOT NULL,
                     PRIMARY KEY (pair, who));
"""
NEXT = """
SELECT id, prompt, a, b, columns FROM pairs
WHERE (SELECT count(*) FROM (SELECT who FROM choices WHERE pair = id UNION
                             SELECT who FROM leases WHERE pair = id AND expires > :now) WHERE who != :who) < :overlap
  AND NOT EXISTS (SELECT 1 FROM choices WHERE pair = id AND who = :who)
ORDER BY NOT EXISTS (SELECT 1 FROM leases WHERE pair = id AND who = :who AND expires > :now), id LIMIT 1
"""


@dataclass(frozen=True)
class Task:
    """A pair that a rater is asked about, by its number in the store."""

    number: int
    pair: Pair


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
        try:
            with self._transaction() as database:
                self._prepare(database)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"path={str(path)!r} is no store of preferences: {error}") from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if version == 0 and not tables:
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION or not {"pairs", "choices", "leases"} <= set(tables):
            raise ValueError(
                f"path={str(self.path)!r} holds version {version} with the tables {tables}; "
                f"this program reads stores of version {VERSION}"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk at its end; a connection of its own, so that any thread may call."""
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

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
        with self._transaction() as database:
            return [_add(database, pair) for pair in pairs]

    def next_task(self, who: str) -> Task | None:
        """A pair for a rater, who has it for ``lease_seconds``: the one they have already, or the first that is free.

        A pair is free for those who have not judged it, while fewer than ``overlap`` others have judged or hold it.

        Returns:
            None where there is nothing left for them, at present.
        """
        now = self._clock()
        with self._transaction() as database:
            found = database.execute(NEXT, {"now": now, "who": who, "overlap": self.overlap}).fetchone()
            if found is None:
                return None
            lease = (found[0], who, now + self.lease_seconds)
            database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", lease)
        return Task(found[0], _pair(found[1:]))

    def choose(self, number: int, who: str, choice: Choice, *, seconds: float | None = None) -> None:
        """Write down what a rater says of a pair, in place of what they said before; on the disk when this returns.

        A choice counts even if the lease has run out.

        Raises:
            ValueError: there is no such pair; or ``who``, ``choice`` or ``seconds`` is wrong, as `Pair` says.
        """
        if choice not in CHOICES:
            raise ValueError(f"choice={choice!r} must be one of {', '.join(CHOICES)}")
        if not isinstance(who, str):
            raise ValueError(f"who={who!r} must name a rater")
        moment = datetime.fromtimestamp(self._clock(), timezone.utc).isoformat().replace("+00:00", "Z")
        with self._transaction() as database:
            row = database.execute("SELECT prompt, a, b, columns FROM pairs WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise ValueError(f"number={number!r}: there is no such pair in {self.path}")
            _write_choice(database, number, replace(_pair(row), choice=choice, who=who, when=moment, seconds=seconds))
            database.execute("DELETE FROM leases WHERE pair = ? AND who = ?", (number, who))

    def pairs(self) -> list[Pair]:
        """Everything: each pair once per choice, in the order of both; without one where nobody has chosen yet."""
        query = """SELECT prompt, a, b, columns, choice, who, "when", seconds
                   FROM pairs LEFT JOIN choices ON pair = id ORDER BY id, choices.rowid"""
        with self._transaction() as database:
            rows = database.execute(query).fetchall()
        names = ("choice", "who", "when", "seconds")
        return [replace(_pair(row[:4]), **dict(zip(names, row[4:], strict=True))) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many choices each rater has made."""
        with self._transaction() as database:
            return dict(database.execute("SELECT who, count(*) FROM choices GROUP BY who ORDER BY who").fetchall())


def _add(database: sqlite3.Connection, pair: Pair) -> int:
    texts = (json.dumps(pair.prompt, sort_keys=True), pair.a, pair.b, json.dumps(pair.columns, sort_keys=True))
    same = database.execute(
        "SELECT id FROM pairs WHERE prompt = ? AND a = ? AND b = ? AND columns = ?", texts
    ).fetchone()
    if same is None:
        same = [database.execute("INSERT INTO pairs (prompt, a, b, columns) VALUES (?, ?, ?, ?)", texts).lastrowid]
    if pair.choice is not None:
        _write_choice(database, same[0], pair)
    return int(same[0])


def _write_choice(database: sqlite3.Connection, number: int, pair: Pair) -> None:
    said = (number, pair.who, pair.choice, pair.when, pair.seconds)
    database.execute("INSERT OR REPLACE INTO choices VALUES (?, ?, ?, ?, ?)", said)


def _pair(row: Sequence[str]) -> Pair:
    return as_pair({"prompt": json.loads(row[0]), "a": row[1], "b": row[2], **json.loads(row[3])})
