"""The command ``textgen``: every name is a program, and is run as ``python -m`` runs it."""

from __future__ import annotations

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from textgen_env.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


def textgen(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "textgen_env", *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_program(name: str) -> None:
    module, what = COMMANDS[name]
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin)
    program = path.with_name("__main__.py") if path.name == "__init__.py" else path
    guards = [node for node in ast.parse(program.read_text()).body if isinstance(node, ast.If)]
    assert any("__main__" in ast.unparse(guard.test) for guard in guards)
    assert what


def test_every_program_of_the_agents_is_a_command() -> None:
    programs = {path.stem for path in (ROOT / "agents").glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert programs == set(COMMANDS) - {"assets"}


def test_help_names_all() -> None:
    shown = textgen("--help")
    assert shown.returncode == 0
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    assert textgen().stdout == shown.stdout


def test_a_command_gets_its_arguments() -> None:
    shown = textgen("optimum", "--kl-coef", "-1")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("error: kl_coef=-1.0 must be a finite number > 0")
    assert shown.stderr.count("\n") == 1


def test_an_unknown_command_is_one_line() -> None:
    shown = textgen("ppoo")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == "error: no command 'ppoo'; did you mean 'ppo'? (see textgen --help)\n"


def test_it_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split("\n")
    assert "textgen = textgen_env.__main__:main" in scripts
