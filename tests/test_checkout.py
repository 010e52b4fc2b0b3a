"""A plain checkout, not installed: its trainers are found as ``textgen_env.agents``, and nothing else of it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*arguments: str, folder: Path, path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Elsewhere than the copy that may be installed."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("textgen_env", "agents", "tests", "benchmarks", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("models", "__pycache__"))
    return folder


@pytest.mark.parametrize("by", ["working directory", "PYTHONPATH"])
def test_agents_alone_are_found_beside_the_package(by: str, checkout: Path, tmp_path: Path) -> None:
    code = """
import importlib, pathlib
import textgen_env, textgen_env.agents.losses as losses
print(textgen_env.__file__, losses.__file__, losses.__spec__.parent, *textgen_env.__path__, sep="\\n")
for name in ("tests", "benchmarks", "docs", "examples", "agents.nonsense", "textgen_env"):
    try:
        importlib.import_module(f"textgen_env.{name}")
    except ModuleNotFoundError as error:
        assert error.name == f"textgen_env.{name}", error
    else:
        print("found", name)
"""
    where = {"folder": checkout} if by == "working directory" else {"folder": tmp_path, "path": checkout}
    assert python("-c", code, **where).split() == [
        str(checkout / "textgen_env" / "__init__.py"),
        str(checkout / "agents" / "losses.py"),
        "textgen_env.agents",
        str(checkout / "textgen_env"),
    ]


def test_its_trainer_starts(checkout: Path, tmp_path: Path) -> None:
    assert "--kl-coef" in python("-m", "textgen_env.agents.ppo", "--help", folder=tmp_path, path=checkout)


def test_what_lies_inside_the_package_comes_first(checkout: Path, tmp_path: Path) -> None:
    """As when it is installed, whatever lies beside it."""
    shutil.copytree(checkout / "textgen_env", tmp_path / "textgen_env")
    shutil.copytree(checkout / "agents", tmp_path / "textgen_env" / "agents")
    shutil.copytree(checkout / "agents", tmp_path / "agents")
    code = "import textgen_env.agents.losses as losses; print(losses.__file__)"
    found = python("-c", code, folder=tmp_path).strip()
    assert found == str(tmp_path / "textgen_env" / "agents" / "losses.py")
