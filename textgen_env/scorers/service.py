"""Scorers that cost something: a cache for what was scored before, and patience with endpoints that fail."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .answers import ScorerError, Scores, scorer_name
from .base import raw_scores, select_rows
from .coroutines import give_up
from .formats import check_failure
from .shared_state import Lock, LRUCache
from .worker import Workers, pickled
from .wrapper import Spec, Wrapper


class Cached(Wrapper):
    """Remembers the scores of texts: the scorer is asked once for each different one. Thread-safe.

    Texts are the same when completion, prompt, references and the named columns are. Not for scorers that answer
    differently each time or keep statistics, such as `Normalize`: put those around the cache. One that sees the policy
    is refused: what it says changes with the weights.

    `hits` and `misses` count the texts that were known and those that were not.

    Args:
        scorer: what is remembered.
        maxsize: texts to keep; the longest unused are forgotten first.
        columns: further columns that the score depends on, such as "finish_reasons".
    """

    def __init__(self, scorer: Spec, maxsize: int = 65536, columns: Sequence[str] = ()) -> None:
        super().__init__(scorer)
        if isinstance(columns, str):
            raise ValueError(f"cached: columns must be a list of names, got the text {columns!r}")
        if maxsize < 1:
            raise ValueError(f"cached: maxsize must be at least 1, got {maxsize}")
        if self.needs_policy:
            raise ValueError(f"cached: scorer {self.name!r} sees the policy, and its scores change with every update")
        self.columns = tuple(columns)
        self._scores = LRUCache(maxsize)
        self.hits = self.misses = 0
        self._lock = Lock()

    def parts(self, completions: Sequence[str], **columns: Any) -> dict[str, Scores]:
        """Parts from memory, and from the scorer for new texts, in one batch."""
        n = len(completions)
        keys = [self._key(completions, columns, row) for row in range(n)]
        known = {key: self._scores.get(key) for key in keys}
        new = {key: row for row, key in reversed(list(enumerate(keys))) if known[key] is None}
        rows = sorted(new.values())
        with self._lock:
            self.hits, self.misses = self.hits + n - len(rows), self.misses + len(rows)
        if rows:
            parts = super().parts([completions[row] for row in rows], **select_rows(columns, rows, n))
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

    What can be interrupted: an `async def` is cancelled. Any other call runs in a thread, which Python cannot end: it
    is left behind until it returns or the process ends, so that an endpoint's client should have a time limit of its
    own; and while it computes inside a C library that does not let other threads run, as Python's `re` does, nobody is
    there to see that its time is over. With `process` each request runs in one of `workers` processes, and one that
    does not answer in time is ended, whatever it does. The scorer must then be importable and picklable, not defined in
    the script or notebook that runs; its models are loaded once per process, and what it learns while scoring stays
    there (put `Normalize` around `Patient`, not into it).

    Without `process` the scorer must be thread-safe. Its parts become one.

    Args:
        scorer: the slow one.
        workers: requests at a time.
        batch_size: texts a request.
        timeout: seconds that one attempt may take.
        retries: further attempts after the first.
        backoff: seconds before the first further attempt.
        max_backoff: seconds at most between attempts.
        on_failure: "raise", or the score of texts that could not be scored.
        process: ask in processes instead of threads. The time to start one does not count.

    Raises:
        ValueError: an argument outside its range.
        TypeError: `process`, and the scorer cannot be pickled.
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
        process: bool = False,
    ) -> None:
        super().__init__(scorer)
        counts = min(workers, batch_size) >= 1 and retries >= 0
        if not (counts and 0 < timeout < math.inf and min(backoff, max_backoff) >= 0):
            raise ValueError(
                f"patient: need workers, batch_size >= 1, finite timeout > 0, retries, backoff, max_backoff >= 0, "
                f"got {workers=}, {batch_size=}, {timeout=}, {retries=}, {backoff=}, {max_backoff=}"
            )
        check_failure("patient: on_failure", on_failure)
        self.workers, self.batch_size, self.timeout = workers, batch_size, timeout
        self.retries, self.backoff, self.max_backoff = retries, backoff, max_backoff
        self.on_failure, self.process = on_failure, process
        if process and self.needs_policy:
            raise ValueError(f"patient: process=True with scorer {self.name!r}, which sees the policy: it learns here")
        if process:
            pickled(self.scorer, self.name)  # refused now rather than at the end of the first episode
        self._workers = Workers(self.scorer)
        self._failed = self._retried = 0
        self._lock = Lock()

    @property
    def part_names(self) -> tuple[str, ...]:
        """One part, named like the scorer."""
        return (scorer_name(self.scorer),)

    def parts(self, completions: Sequence[str], **columns: Any) -> dict[str, Scores]:
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

    def load_models(self) -> None:
        """Load the scorer's models, where it will be asked."""
        if self.process:
            self._workers.give_back(self._workers.borrow())
        else:
            super().load_models()

    def fit_references(self, references: Sequence[Sequence[str]]) -> None:
        """Fits the inner scorer, before any process has a copy of it."""
        super().fit_references(references)
        self._workers = Workers(self.scorer)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self._workers = Workers(self.scorer)

    def info(self) -> dict[str, float]:
        """Texts that got `on_failure`, attempts that were repeated, and the scorer's own counters."""
        return {**super().info(), "failed": float(self._failed), "retried": float(self._retried)}

    def _request(self, completions: list[str], columns: dict[str, Any]) -> Scores:
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

    def _attempt(self, completions: list[str], columns: dict[str, Any]) -> Scores:
        """One call in a thread of its own, so that it can be left behind or ended."""
        answer: queue.SimpleQueue[Scores | Exception] = queue.SimpleQueue()
        worker = self._workers.borrow() if self.process else None

        def ask() -> None:
            try:
                if worker is None:
                    answer.put(raw_scores(self.scorer, completions, **columns))
                else:
                    answer.put(worker.ask(completions, columns, self.timeout))
            except Exception as error:
                answer.put(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            result = answer.get(timeout=self.timeout)
        except queue.Empty:
            give_up(thread)
            if worker is not None:
                worker.kill()
            raise ScorerError(
                f"scorer {self.name!r} took more than {self.timeout} s; text {completions[0]!r}"
            ) from None
        if worker is not None:
            self._workers.give_back(worker)
        if isinstance(result, Exception):
            raise result
        return result


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
