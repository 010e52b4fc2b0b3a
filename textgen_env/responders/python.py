"""Python for an agent, in the sandbox Monty: an interpreter of its own in another process, without files or network."""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Mapping
from typing import Any

from textgen_env.notices import shown

_CLOCK = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)  # the same reply at any time
_MISSING = "the tool 'python' needs pydantic-monty ({}): pip install 'textgen_env[tools]'"


class Python:
    """The tool "python": runs a program and returns what it prints, then the value of its last line, if it has one.

    Each call begins anew and ends the same: clocks stand still, random numbers have a fixed seed, sleeping takes no
    time. There are no files, no network, no environment variables and only part of the standard library. What the
    program does wrong, its limits included, is text for the agent.

    Args:
        max_seconds: of computing.
        max_memory: bytes of its heap.
        max_output: characters printed that are kept.

    Raises:
        ImportError: pydantic-monty is not installed.
        ValueError: a limit out of range.
    """

    description = "Runs a Python program and returns what it prints and the value of its last line."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the program"}},
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(self, max_seconds: float = 2.0, max_memory: int = 64 * 2**20, max_output: int = 2000) -> None:
        for name, value in (("max_seconds", max_seconds), ("max_memory", max_memory), ("max_output", max_output)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"python: {name}={shown(value)} must be a number > 0")
        try:
            import pydantic_monty  # optional
        except ImportError as error:
            raise ImportError(_MISSING.format(error), name="pydantic_monty") from error
        self.max_output = int(max_output)
        self._limits = {
            "max_feed_duration_secs": float(max_seconds),
            "max_memory": int(max_memory),
            "max_suspensions": 100,
        }
        self._monty: Any = pydantic_monty
        self._pool: Any = None

    def __call__(self, code: str) -> str:
        monty, printed = self._monty, self._monty.CollectString(max_bytes=16 * self.max_output + 16384)
        policy = {"datetime": _CLOCK, "sleep": "zero", "random_start": {"seed": 0}}
        try:
            with self._workers().checkout(limits=self._limits, os_policy=policy) as session:
                value = session.feed_run(code, print_callback=printed)
        except monty.MontyCrashedError:
            self._close()  # the next program gets a new process
            raise ValueError("the program crashed") from None
        except (monty.MontySyntaxError, monty.MontyRuntimeError) as error:
            raise ValueError(_joined(self._cut(printed.output), error.display("type-msg"))) from None
        return _joined(self._cut(printed.output), "" if value is None else self._cut(repr(value))) or "(no output)"

    def _cut(self, text: str) -> str:
        return text if len(text) <= self.max_output else text[: self.max_output] + "…"

    def _workers(self) -> Any:
        if self._pool is None:
            pool = self._monty.Monty(max_processes=2)
            pool.__enter__()
            self._pool, self._closer = pool, weakref.finalize(self, pool.__exit__, None, None, None)
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._closer()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {"max_output": self.max_output, "_limits": self._limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)


def _joined(printed: str, rest: str) -> str:
    return "\n".join(part for part in (printed.rstrip("\n"), rest) if part)
