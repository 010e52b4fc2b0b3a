"""Waiting for scorers that are `async def`: one event loop for all of them, in a thread of its own.

A loop that stays is what clients of endpoints need, since they keep connections that belong to it; and it works where
the caller's thread has a loop that runs already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class _Loop:
    """The loop, its thread, and what each other thread is waiting for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.pending: dict[int, Future[Any]] = {}

    def started(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.thread is None:
                self.loop = asyncio.new_event_loop()
                self.thread = threading.Thread(target=self.loop.run_forever, name="scorers", daemon=True)
                self.thread.start()
            return self.loop


_LOOP = _Loop()


def _forget() -> None:
    """A forked process has no threads but one."""
    global _LOOP
    _LOOP = _Loop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def wait_for(awaitable: Awaitable[Any]) -> Any:
    """The result of an awaitable, for code that is not asynchronous. Thread-safe.

    Raises:
        concurrent.futures.CancelledError: `give_up` was called for this thread.
        Exception: whatever the awaitable raised.
    """
    if threading.current_thread() is _LOOP.thread:  # a scorer of this kind that asks another
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _awaited(awaitable)).result()
    future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), _LOOP.started())
    _LOOP.pending[threading.get_ident()] = future
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C ends the wait, not the work
        raise
    finally:
        _LOOP.pending.pop(threading.get_ident(), None)


def give_up(thread: threading.Thread) -> None:
    """Cancel what a thread is waiting for, if it is."""
    if thread.ident is not None and (future := _LOOP.pending.get(thread.ident)) is not None:
        future.cancel()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
