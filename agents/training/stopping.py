"""Stopping a run from outside: the update in hand is finished and saved, then the process ends as signals end it.

What lives here: `Stopping`, which turns Ctrl-C, SIGTERM and SIGHUP into a request. What does not: what is saved
(``checkpoint.py``) and what is said (``run.py``).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal asked the run to end, and nothing is in hand that must be finished first.

    Attributes:
        code: what the process exits with: 128 + the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Stopping:
    """While this is entered, the first signal raises `Stopped`; inside `deferred` it waits for `raise_if_requested`.

    The second signal finds the system's own handlers and ends the process at once. On exit the handlers are as they
    were. Outside the main thread, where Python allows no handlers, signals do what they did; those that the process
    ignores (SIGHUP under nohup) stay ignored.

    Args:
        note: said on standard error when a signal arrives inside `deferred`.
    """

    def __init__(self, note: str) -> None:
        self._note = f"\n{note}\n".encode()
        self._before: dict[int, Any] = {}
        self._deferring = False
        self.requested: int | None = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):  # None: not set from Python
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        self.requested = number
        if not self._deferring:
            raise Stopped(number)
        try:
            show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides it, and may not come to its end
            os.write(2, show_cursor + self._note)  # not print: it may be in the middle of printing
        except OSError:  # the terminal is gone
            pass

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals wait in here for `raise_if_requested`, or for the end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.requested is not None:
            raise Stopped(self.requested)
