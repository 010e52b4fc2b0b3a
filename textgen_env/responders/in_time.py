"""Calls of functions side by side, each with a time limit, and again where what they need was not there.

Whose functions, and what becomes of their failures, is for `tools.py` and `patient.py` to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .base import Unavailable

TRANSIENT = (TimeoutError, ConnectionError, Unavailable)
"""What may be better the next time: nobody's mistake."""


class Call:
    """A function that has been called in a thread of its own, which Python cannot end.

    Attributes:
        outcome: what it has returned, or the exception that it raised; None while it runs.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="responder")
        self._thread.start()

    def _run(self) -> None:
        self.outcome = outcome(self._function)

    @property
    def running(self) -> bool:
        """Whether it has not returned yet."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Until it has returned, or so long."""
        self._thread.join(seconds)


def in_time(
    functions: Sequence[Callable[[], Any]],
    *,
    timeout: float | None,
    retries: int = 0,
    backoff: float = 0.5,
    workers: int = 16,
) -> tuple[list[Any], dict[int, Call]]:
    """Call functions side by side.

    Args:
        functions: without arguments; with a time limit they must be thread-safe.
        timeout: seconds for each attempt, from when it begins; None: no limit, one after the other, and no threads.
        retries: further attempts after one of `TRANSIENT` was raised. What is too late is not called again.
        backoff: seconds before the first of these, then twice as many, …
        workers: how many run at a time.

    Returns:
        What each of them returned, or the exception that it raised, a TimeoutError where it was too late; and the calls
        that were, by the function's index.
    """
    results: list[Any] = [None] * len(functions)
    late: dict[int, Call] = {}
    pending = list(range(len(functions)))
    for attempt in range(retries + 1):
        if attempt and pending:
            time.sleep(backoff * 2 ** (attempt - 1))
        for start in range(0, len(pending), workers):
            part = pending[start : start + workers]
            if timeout is None:
                for index in part:
                    results[index] = outcome(functions[index])
            else:
                _attempt({index: Call(functions[index]) for index in part}, timeout, results, late)
        pending = [index for index in pending if isinstance(results[index], TRANSIENT) and index not in late]
    return results, late


def _attempt(calls: Mapping[int, Call], timeout: float, results: list[Any], late: dict[int, Call]) -> None:
    end = time.monotonic() + timeout
    for index, call in calls.items():
        call.wait(max(0.0, end - time.monotonic()))
        if call.running:
            late[index], results[index] = call, TimeoutError(f"no answer within {timeout:g} seconds")
        else:
            results[index] = call.outcome


def outcome(function: Callable[[], Any]) -> Any:
    """What a function returns, or the exception that it raises."""
    try:
        return function()
    except Exception as error:
        return error


def check_patience(what: str, timeout: float | None, retries: int, backoff: float, workers: int) -> None:
    """Check the arguments of `in_time`.

    Raises:
        ValueError: one out of range; names it.
    """
    right = {
        "timeout": timeout is None or 0 < timeout <= threading.TIMEOUT_MAX,
        "retries": isinstance(retries, int) and retries >= 0,
        "backoff": 0 <= backoff < threading.TIMEOUT_MAX,
        "workers": isinstance(workers, int) and workers >= 1,
    }
    given = {"timeout": timeout, "retries": retries, "backoff": backoff, "workers": workers}
    wanted = {
        "timeout": "a number of seconds > 0, or None",
        "retries": "a whole number ≥ 0",
        "backoff": "a number of seconds ≥ 0",
        "workers": "a whole number ≥ 1",
    }
    for name, fine in right.items():
        if not fine:
            raise ValueError(f"{what}: {name}={given[name]!r} must be {wanted[name]}")
