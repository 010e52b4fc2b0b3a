"""The door of a training program: a mistake on the command line is one line and exit code 2.

What lives here: reading the settings, what is said of mistakes, the command that goes on with a stopped run, and files
that settings name. What does not: the settings and the programs (``ppo.py``, ``sb3_ppo.py``).
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import textgen_env

from .display import one_line
from .extra import tyro

T = TypeVar("T")
PACKAGE = Path(textgen_env.__file__).parent


class Program(Protocol):
    """What is set up and then runs."""

    @property
    def begun(self) -> bool:
        """Whether its settings have proved to work."""

    def execute(self) -> Any:
        """To the end."""


def parse(kind: type[T], module: str, arguments: Sequence[str] | None = None) -> T:
    """Settings from command-line flags.

    Args:
        kind: dataclass of the settings.
        module: for the help text: ``python -m module``.
        arguments: the flags; None takes those of the process.

    Raises:
        SystemExit: after ``--help``, with code 0; after a mistake, with code 2 and one line on standard error.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"python -m {module}", args=arguments)
    except SystemExit as end:
        if end.code:
            lines = [line.strip("│╭╮╰╯─|+- \n") for line in said.getvalue().splitlines()[1:]]
            _say(_first_sentence(lines), f"python -m {module} --help")
        raise


def _first_sentence(lines: Sequence[str]) -> str:
    """What tyro says in its box, up to the first rule or paragraph about other things."""
    sentence: list[str] = []
    for line in lines:
        if sentence and (not line or line.startswith(("Argument helptext", "For full helptext"))):
            break
        sentence.append(line)
    return re.sub(r"^Error parsing ([\w-]+): (?=\w+=)", "", " ".join(part for part in sentence if part))


def _say(mistake: str, help_command: str = "") -> None:
    more = f" (see {help_command})" if help_command else ""
    print(f"error: {one_line(mistake)}{more}", file=sys.stderr)


def run(set_up: Callable[[], Program]) -> None:
    """Set up a program and run it, as a process: exceptions become what people read, and the exit code.

    A mistake in the settings, found before the run has begun, ends it with one line and code 2 (with ``--debug`` the
    traceback comes first); what fails in training shows its traceback, with everything in it made visible, and code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    program: Program | None = None
    try:
        with _plain_warnings():
            program = set_up()
            program.execute()
    except KeyboardInterrupt:  # `execute` makes something better of it
        print("stopped while it was set up; nothing has begun", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        begun = program is not None and program.begun
        if begun or "--debug" in sys.argv:
            _show_traceback()
        if not begun:
            _say(str(error) or type(error).__name__)
        raise SystemExit(1 if begun else 2) from None


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of this package as lines of their own: no line of the user's led to them, and the file is no news.

    Each is shown once, though the environments of training and of evaluation may both give it for prompts of theirs.
    """
    told: set[str] = set()
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if not Path(filename).is_relative_to(PACKAGE) and not Path(filename).is_relative_to(Path(__file__).parent):
            before(message, category, filename, *rest)
            return
        kind = re.sub(r"\d+|'.*'|\".*\"", "", str(message))
        if kind not in told:
            told.add(kind)
            print(f"warning: {one_line(str(message))}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_traceback() -> None:
    lines = traceback.format_exc().splitlines()
    print("\n".join(" " * (len(line) - len(line.lstrip())) + one_line(line) for line in lines), file=sys.stderr)


def read_lines(setting: str, name: str) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        ValueError: it cannot be read, or is not in UTF-8; names the setting that it was given as.
    """
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{setting}={name!r} must be a text file in UTF-8: {error}") from error
    return [line for line in lines if line.strip()]


def resume_command(module: str, arguments: Sequence[str] | None) -> Callable[[Path], str]:
    """From a run's folder to the command that goes on with it."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def command(folder: Path) -> str:
        more = [] if any(flag.split("=")[0] == "--output" for flag in given) else ["--output", str(folder)]
        more += [] if "--resume" in given else ["--resume"]
        return shlex.join([sys.executable, "-m", module, *given, *more])

    return command
