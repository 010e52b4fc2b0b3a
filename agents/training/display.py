"""What a run shows while it runs: lines, tables and a bar on a terminal, one line per update elsewhere.

What lives here: `Display`. Nothing that it is asked to show can end the run, and nothing that a model wrote can steer
the terminal. What does not: what the tables hold (``report.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from textgen_env.render import visible

from .extra import BarColumn, Console, MofNCompleteColumn, Progress, Text, TextColumn, TimeRemainingColumn


class Display:
    """Prints on a console, whatever becomes of it: a full disk, a closed pipe, a lost terminal cost the output alone.

    Args:
        console: of rich; None makes one on standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress: Progress | None = None
        self._total = 0

    def say(self, text: str) -> None:
        """One line, as it is: no markup, no wrapping."""
        line = Text(one_line(text))
        self._safely(lambda: self.console.print(line, soft_wrap=True, highlight=False))

    def attempt(self, what: str, show: Callable[[], Any]) -> None:
        """Do something that people look at; if it fails, say so in one line and go on.

        Args:
            what: it is, for that line.
            show: draws or writes it, or returns a renderable (or several in a tuple) to print.
        """
        try:
            shown = show()
        except Exception as error:
            self.say(f"{what} left out: {type(error).__name__}: {error}")
            return
        if shown is not None:
            parts = shown if isinstance(shown, tuple) else (shown,)
            self._safely(lambda: self.console.print(*parts), what)

    def _safely(self, show: Callable[[], Any], what: str = "") -> None:
        try:
            show()
        except (Exception, SystemExit) as error:  # rich exits where the pipe behind it was closed
            if what:
                self.say(f"{what} left out: {type(error).__name__}: {error}")

    def start(self, total: int, done: int) -> None:
        """Begin to show progress: ``done`` of ``total`` updates so far."""
        self._total = total
        if self.console.is_interactive and _is_a_terminal(self.console.file):
            live = TextColumn("{task.fields[live]}", markup=False)
            progress = Progress(BarColumn(), MofNCompleteColumn(), live, TimeRemainingColumn(), console=self.console)
            progress.add_task("", total=total, completed=done, live="")
            self._progress = progress
            self._safely(progress.start)

    def update(self, done: int, live: str) -> None:
        """Show what the last update brought."""
        if self._progress is None:
            self.say(f"update {done}/{self._total}  {live}")
            return
        progress = self._progress
        self._safely(lambda: progress.update(progress.task_ids[0], completed=done, live=one_line(live)))

    def stop(self) -> None:
        """The end of what `start` began; the terminal is as it was."""
        if self._progress is not None:
            self._safely(self._progress.stop)
            self._progress = None


def one_line(text: str) -> str:
    """``text`` with control characters made visible and line breaks marked."""
    return visible(text.strip()).replace("\n", " ↵ ")


def _is_a_terminal(file: Any) -> bool:
    """Of the file itself: FORCE_COLOR makes rich take any file for a terminal."""
    with contextlib.suppress(Exception):
        return bool(file.isatty())
    return False
