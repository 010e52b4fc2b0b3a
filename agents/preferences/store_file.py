"""The SQLite file of a store: its tables, transactions, versions, and rows as pairs.

What lives here: how what is kept lies on the disk. What does not: who gets which pair and what a choice does to it
(``store.py``).

A choice is never overwritten: it stands until its rater withdraws it or says something else, and then its row has the
time of that. So the table is the whole history, and what stands is the rows that nobody withdrew.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .pairs import Pair, as_pair
from .store_records import OWN, Said

VERSION = 2
TABLES = {"pairs", "choices", "leases"}
SCHEMA = """
CREATE TABLE pairs (id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL,
                    columns TEXT NOT NULL);
CREATE INDEX texts ON pairs (a, b);
CREATE TABLE choices (id INTEGER PRIMARY KEY AUTOINCREMENT, pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL,
                      choice TEXT NOT NULL, "when" TEXT, seconds REAL, own TEXT NOT NULL DEFAULT '{}', withdrawn TEXT);
CREATE UNIQUE INDEX standing ON choices (pair, who) WHERE withdrawn IS NULL;
CREATE INDEX history ON choices (pair, who, choice);
CREATE TABLE leases (pair INTEGER NOT NULL REFERENCES pairs, who TEXT NOT NULL, expires REAL NOT NULL,
                     given REAL NOT NULL, PRIMARY KEY (pair, who));
CREATE TABLE opinions (pair INTEGER PRIMARY KEY REFERENCES pairs, model TEXT NOT NULL, difference REAL NOT NULL,
                       spread REAL);
"""
UPGRADE = f"""
ALTER TABLE choices RENAME TO choices_1;
DROP TABLE leases;
{SCHEMA[SCHEMA.index("CREATE TABLE choices") :]}
INSERT INTO choices (pair, who, choice, "when", seconds)
    SELECT pair, who, choice, "when", seconds FROM choices_1 ORDER BY rowid;
DROP TABLE choices_1;
"""
"""From version 1, which knew no withdrawn choices; leases are given again."""

SKIP = "skip"
"""What the table of choices has where a rater left a pair for later, or for others."""


class StoreFile:
    """A file of pairs and choices.

    Args:
        path: the file; made if there is none.

    Raises:
        ValueError: it is no store, or one of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.transaction() as database:
                self._prepare(database)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"path={str(path)!r} is no store of preferences: {error}") from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if version == VERSION and set(tables) >= TABLES:
            return
        if version == 0 and not tables:
            statements = SCHEMA
        elif version == 1 and set(tables) >= TABLES:
            statements = UPGRADE
        else:
            raise ValueError(
                f"path={str(self.path)!r} holds version {version} with the tables {tables}; "
                f"this program reads stores of version {VERSION}"
            )
        for statement in statements.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self, *, reading: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk at its end; a connection of its own, so that any thread may call.

        Args:
            reading: nothing is written: one state of the file, beside whoever writes.
        """
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("BEGIN" if reading else "BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


# --- rows -------------------------------------------------------------------------------------------------------------

PAIR = "prompt, a, b, columns"
SAID = 'pair, choice, who, "when", seconds, own, withdrawn'


def add_pair(database: sqlite3.Connection, pair: Pair) -> int:
    """The number of a pair, which is written down unless it is there already; its choice, if any, comes along."""
    columns, own = dict(pair.columns), {}
    if pair.choice is not None:
        own = {name: columns.pop(name) for name in OWN if name in columns}
    texts = (json.dumps(pair.prompt, sort_keys=True), pair.a, pair.b, json.dumps(columns, sort_keys=True))
    same = database.execute(
        "SELECT id FROM pairs WHERE prompt = ? AND a = ? AND b = ? AND columns = ?", texts
    ).fetchone()
    if same is None:
        same = [database.execute(f"INSERT INTO pairs ({PAIR}) VALUES (?, ?, ?, ?)", texts).lastrowid]
    number = int(same[0])
    if pair.choice is not None:
        write_choice(database, number, pair, own, pair.when)
    return number


def write_choice(
    database: sqlite3.Connection, number: int, pair: Pair, own: Mapping[str, Any], now: str | None, choice: str = ""
) -> None:
    """Let what a rater says of a pair stand in place of what they said before; the same again changes nothing.

    Args:
        database: in a transaction.
        number: of the pair.
        pair: with choice, who, when and seconds.
        own: what of `OWN` was said.
        now: when an earlier choice ends.
        choice: in place of the pair's: `SKIP`.
    """
    text = json.dumps({name: value for name, value in own.items() if value is not None}, sort_keys=True)
    said = (choice or pair.choice, text)
    standing = "pair = ? AND who = ? AND withdrawn IS NULL"
    before = database.execute(f"SELECT choice, own FROM choices WHERE {standing}", (number, pair.who)).fetchone()
    if before == said and choice != SKIP:
        return
    database.execute(f"UPDATE choices SET withdrawn = ? WHERE {standing}", (now or "", number, pair.who))
    row = (number, pair.who, said[0], pair.when, pair.seconds, text)
    database.execute('INSERT INTO choices (pair, who, choice, "when", seconds, own) VALUES (?, ?, ?, ?, ?, ?)', row)


def read_pair(row: Sequence[str]) -> Pair:
    """The columns `PAIR`."""
    return as_pair({"prompt": json.loads(row[0]), "a": row[1], "b": row[2], **json.loads(row[3])})


def read_said(row: Sequence[Any]) -> Said:
    """The columns `SAID`, then `PAIR`."""
    number, choice, who, when, seconds, own, withdrawn = row[:7]
    pair = read_pair(row[7:])
    told: dict[str, Any] = {"choice": None if choice == SKIP else choice, "who": who, "when": when, "seconds": seconds}
    return Said(number, replace(pair, **told, columns={**pair.columns, **json.loads(own)}), withdrawn)
