"""A scorer in a process of its own, which can be ended when it does not answer. `service.Patient` decides when.

The process is a fresh Python that gets the scorer pickled, so that neither threads nor locks of this one are copied and
a script needs no guard for its main module. It also ends by itself: when this process is gone, and soon after the time
for an answer is over, even inside a loop of a C library.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import ScorerError, Scores, scorer_name
from .base import bound, raw_scores
from .shared_state import Lock

_GRACE = 5.0  # seconds after which a process that was not ended from outside ends by itself
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); import textgen_env.scorers.worker as w; w.serve()"


class Worker:
    """A process that asks a scorer, one request at a time.

    Args:
        scorer: the pickled scorer.
        name: the scorer's name.

    Raises:
        ScorerError: the scorer cannot be made in another process; the message says why.
    """

    def __init__(self, scorer: bytes, name: str) -> None:
        self.name = name
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._exchange(scorer)

    def ask(self, completions: Sequence[str], columns: Mapping[str, Any], timeout: float) -> Scores:
        """The scores of a batch.

        Raises:
            ScorerError: the scorer failed, or the process has ended.
        """
        return self._exchange(pickle.dumps((completions, columns, timeout)))

    def kill(self) -> None:
        """End the process, whatever it does; a thread that waits for its answer gets a ScorerError."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End an idle process."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not sent need not be
                pipe.close()

    def answers(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def _exchange(self, message: bytes) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            self.end()
            code = self._process.returncode
            raise ScorerError(f"scorer {self.name!r}: its process ended with exit code {code}") from error
        if isinstance(answer, ScorerError):
            raise answer
        return answer


class Workers:
    """Processes of one scorer, started when needed and used again; those that are idle end with this object.

    Thread-safe. Copies and pickles start without processes.
    """

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self._pickled: bytes | None = None
        self._idle: list[Worker] = []
        self._lock = Lock()
        weakref.finalize(self, _end_all, self._idle)

    def borrow(self) -> Worker:
        """An idle process, or a new one."""
        with self._lock:
            while self._idle:
                if (worker := self._idle.pop()).answers():
                    return worker
                worker.end()
            self._pickled = self._pickled or pickled(self._scorer, scorer_name(self._scorer))
        return Worker(self._pickled, scorer_name(self._scorer))

    def give_back(self, worker: Worker) -> None:
        """Keep a process for the next request."""
        with self._lock:
            self._idle.append(worker)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (self._scorer,)


def _end_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.end()


def pickled(scorer: Any, name: str) -> bytes:
    """The scorer for another process.

    Raises:
        TypeError: it cannot be pickled.
    """
    try:
        return pickle.dumps(scorer)
    except Exception as error:
        raise TypeError(
            f"scorer {name!r} cannot be sent to a process of its own; it must be defined in a module: {error}"
        ) from error


def serve() -> None:
    """Answer requests from standard input until it ends. Runs in the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a scorer prints must not come between the answers
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # nor be lost when the process is killed
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    scorer: Any = None
    answer: Scores | ScorerError | None
    while True:
        try:
            message = pickle.load(source)
        except EOFError:
            return
        try:
            if scorer is None:
                scorer, answer = _received(message), None
            else:
                answer = _answer(scorer, *pickle.loads(message))
        except ScorerError as error:
            answer = error
        except Exception as error:
            answer = ScorerError(f"a scorer in a process of its own: {type(error).__name__}: {error}")
        pickle.dump(answer, target)
        target.flush()


def _received(message: bytes) -> Any:
    try:
        scorer = pickle.loads(message)
    except Exception as error:
        raise ScorerError(f"a scorer for a process of its own must be defined in a module: {error}") from error
    bound(scorer).load_models()
    return scorer


def _answer(scorer: Any, completions: Sequence[str], columns: Mapping[str, Any], timeout: float) -> Scores:
    with open(os.devnull, "w") as nothing:
        faulthandler.dump_traceback_later(timeout + _GRACE, exit=True, file=nothing)
        try:
            return raw_scores(scorer, completions, **columns)
        finally:
            faulthandler.cancel_dump_traceback_later()
