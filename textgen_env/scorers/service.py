"""Scorers that cost something: a cache for what was scored before, and patience with endpoints that fail."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .base import ScorerError, call_scorer, score_parts, scorer_name, select_rows
from .shared_state import Lock, LRUCache
from .wrapper import Spec, Wrapper


class Cached(Wrapper):
    """Remembers the scores of texts: the scorer is asked once for each different one. Thread-safe.

    Texts are the same when completion, prompt, references and the named columns are. Not for scorers that answer
    differently each time or keep statistics, such as `Normalize`: put those around the cache.

    `hits` and `misses` count the texts that were known and those that were not.

    Args:
        scorer: what is remembered.
        maxsize: texts to keep; the longest unused are forgotten first.
        columns: further columns that the score depends on, such as "finish_reasons".
    """

    def __init__(self, scorer: Spec, maxsize: int = 65536, columns: Sequence[str] = ()) -> None:
        super().__init__(scorer)
        self.columns = tuple(columns)
        self._scores = LRUCache(maxsize)
        self.hits = self.misses = 0
        self._lock = Lock()

    def parts(self, completions: Sequence[str], **columns: Any) -> Mapping[str, Sequence[float]]:
        """Parts from memory, and from the scorer for new texts, in one batch."""
        n = len(completions)
        keys = [self._key(completions, columns, row) for row in range(n)]
        known = {key: self._scores.get(key) for key in keys}
        new = {key: row for row, key in reversed(list(enumerate(keys))) if known[key] is None}
        rows = sorted(new.values())
        with self._lock:
            self.hits, self.misses = self.hits + n - len(rows), self.misses + len(rows)
        if rows:
            parts = score_parts(self.scorer, [completions[row] for row in rows], **select_rows(columns, rows, n))
            for row, values in zip(rows, zip(*parts.values(), strict=True), strict=True):
                known[keys[row]] = values
                self._scores.put(keys[row], values)
        return {part: [known[key][i] for key in keys] for i, part in enumerate(self.part_names)}

    def _key(self, completions: Sequence[str], columns: Mapping[str, Any], row: int) -> tuple[Any, ...]:
        wanted = [columns["prompts"], columns.get("references"), *(columns[name] for name in self.columns)]
        return (completions[row], *(_hashable(column[row]) if column else None for column in wanted))


class Patient(Wrapper):
    """Asks a slow scorer in parallel, with a time limit, and again when it fails.

    A batch is cut into requests of `batch_size` texts; up to `workers` run at a time. A request that raises, answers
    badly or exceeds `timeout` is sent again after backoff, 2·backoff, 4·backoff … seconds. When all attempts of a
    request have failed, a ScorerError is raised, or its texts get the score `on_failure` and are counted in `info()`.

    A call that exceeds its time cannot be killed from outside: its thread is left behind and ends with the process, so
    an endpoint's client should have a time limit of its own. The scorer must be thread-safe. Its parts become one.

    Args:
        scorer: the slow one.
        workers: requests at a time.
        batch_size: texts a request.
        timeout: seconds that one attempt may take.
        retries: further attempts after the first.
        backoff: seconds before the first further attempt.
        max_backoff: seconds at most between attempts.
        on_failure: "raise", or the score of texts that could not be scored.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        scorer: Spec,
        workers: int = 8,
        batch_size: int = 1,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        on_failure: str | float = "raise",
    ) -> None:
        super().__init__(scorer)
        if min(workers, batch_size) < 1 or retries < 0 or not timeout > 0 or min(backoff, max_backoff) < 0:
            raise ValueError(
                f"patient: need workers, batch_size >= 1, timeout > 0, and retries, backoff, max_backoff >= 0; got "
                f"{workers=}, {batch_size=}, {timeout=}, {retries=}, {backoff=}, {max_backoff=}"
            )
        if on_failure != "raise" and not (isinstance(on_failure, (int, float)) and math.isfinite(on_failure)):
            raise ValueError(f'patient: on_failure must be "raise" or a finite number, got {on_failure!r}')
        self.workers, self.batch_size, self.timeout = workers, batch_size, timeout
        self.retries, self.backoff, self.max_backoff = retries, backoff, max_backoff
        self.on_failure = on_failure
        self._failed = self._retried = 0
        self._lock = Lock()

    @property
    def part_names(self) -> tuple[str, ...]:
        """One part, named like the scorer."""
        return (scorer_name(self.scorer),)

    def parts(self, completions: Sequence[str], **columns: Any) -> Mapping[str, Sequence[float]]:
        """The scores of all requests, in order."""
        n = len(completions)
        requests = [range(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]
        pool = ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="patient")
        try:
            answers = list(
                pool.map(
                    lambda rows: self._request([completions[row] for row in rows], select_rows(columns, rows, n)),
                    requests,
                )
            )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure nobody waits for the other requests
        return {self.part_names[0]: [score for answer in answers for score in answer]}

    def info(self) -> dict[str, float]:
        """Texts that got `on_failure`, attempts that were repeated, and the scorer's own counters."""
        return {**super().info(), "failed": float(self._failed), "retried": float(self._retried)}

    def _request(self, completions: list[str], columns: dict[str, Any]) -> list[float]:
        """The scores of one request, after as many attempts as it takes."""
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(completions, columns)
            except ScorerError:
                if attempt == self.retries and self.on_failure == "raise":
                    raise
            if attempt < self.retries:
                with self._lock:
                    self._retried += 1
                time.sleep(min(self.backoff * 2**attempt, self.max_backoff))
        with self._lock:
            self._failed += len(completions)
        return [float(self.on_failure)] * len(completions)

    def _attempt(self, completions: list[str], columns: dict[str, Any]) -> list[float]:
        """One call in a thread of its own, so that it can be left behind."""
        answer: queue.SimpleQueue[list[float] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(call_scorer(self.scorer, completions, **columns))
            except Exception as error:
                answer.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            result = answer.get(timeout=self.timeout)
        except queue.Empty:
            raise ScorerError(
                f"scorer {self.name!r} took more than {self.timeout} s; text {completions[0]!r}"
            ) from None
        if isinstance(result, Exception):
            raise result
        return result


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
