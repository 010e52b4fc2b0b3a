"""Python in its sandbox: what it returns, that it always returns the same, and that nothing gets out."""

from __future__ import annotations

import copy
import pickle
import time
from pathlib import Path

import pytest

pytest.importorskip("pydantic_monty", reason="the sandbox is the extra 'tools'")

from textgen_env.responders.python import Python


@pytest.fixture(scope="module")
def python() -> Python:
    return Python(max_seconds=0.5, max_output=100)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("1 + 2", "3"),
        ("print('a')\nprint('b')", "a\nb"),
        ("print('a')\n'b'", "a\n'b'"),
        ("x = 1", "(no output)"),
        ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nf(20)", "2432902008176640000"),
        ("sorted({'b': 1, 'a': 2}.items())", "[('a', 2), ('b', 1)]"),
        ("", "(no output)"),
    ],
)
def test_by_hand(python: Python, code: str, shown: str) -> None:
    assert python(code) == shown


def test_each_call_begins_anew_and_ends_the_same(python: Python) -> None:
    python("x = 5")
    with pytest.raises(ValueError, match="NameError"):
        python("x")
    program = "import random, time, datetime\n(random.random(), time.time(), str(datetime.datetime.now()))"
    assert python(program) == python(program) == Python()(program)


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/passwd').read()",
        "from pathlib import Path\nPath('/etc/passwd').read_text()",
        "from pathlib import Path\nlist(Path('/').iterdir())",
        "import os\nos.environ['PATH']",
        "import os\nos.getenv('PATH').lower()",
        "import os\nos.system('true')",
        "import subprocess",
        "import socket",
        "import urllib.request",
        "import ctypes",
        "import importlib",
        "__import__('os')",
        "().__class__.__bases__[0].__subclasses__()",
        "(lambda: 0).__globals__",
        "print.__self__",
        "eval(\"__import__('os')\")",
        "exec('import socket')",
        "globals()['__builtins__']['open']('/etc/passwd')",
        "import sys\nsys.modules['os']",
        "breakpoint()",
        "input()",
    ],
)
def test_nothing_gets_out(python: Python, attempt: str) -> None:
    """Each of these is an error in the sandbox; none returns anything."""
    with pytest.raises(ValueError, match=r"^\w*(Error|Exception): "):
        python(attempt)


def test_files_that_are_written_are_nowhere(python: Python, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    with pytest.raises(ValueError, match="Error: "):
        python(f"open({str(target)!r}, 'w').write('x')")
    assert not target.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("while True: pass", "TimeoutError"),
        ("sum(range(10**12))", "TimeoutError"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("x = []\nwhile True: x.append('a' * 10**6)", "MemoryError|TimeoutError"),
        ("2**10**10", "MemoryError|TimeoutError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("print('x' * 10**6)", "MemoryError"),
        ("while True: print('x')", "MemoryError|TimeoutError"),
        ("(" * 10_000 + ")" * 10_000, "Error|crashed"),
        ("x = (", "SyntaxError"),
        ("raise KeyError('a')", "KeyError"),
    ],
)
def test_limits(python: Python, code: str, said: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match=said) as error:
        python(code)
    assert len(str(error.value)) < 1000
    assert time.monotonic() - begin < 60
    assert python("1") == "1"  # the next program runs


def test_long_output_is_cut(python: Python) -> None:
    assert python("print('x' * 150)") == "x" * 100 + "…"
    assert len(python("'y' * 1000")) == 101


def test_what_was_printed_before_an_error_is_kept(python: Python) -> None:
    with pytest.raises(ValueError, match="^so far\nZeroDivisionError: "):
        python("print('so far')\n1 / 0")


def test_copies_have_processes_of_their_own(python: Python) -> None:
    for other in (copy.deepcopy(python), pickle.loads(pickle.dumps(python))):
        assert other("print('z' * 150)") == "z" * 100 + "…"
        assert other._pool is not python._pool


def test_what_is_wrong_is_named() -> None:
    for name in ("max_seconds", "max_memory", "max_output"):
        for value in (0, -1, float("inf"), True, "1"):
            with pytest.raises(ValueError, match=f"python: {name}=.* must be a number > 0"):
                Python(**{name: value})
