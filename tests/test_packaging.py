"""What an installation holds: the wheel has every module and asset, and nothing of the checkout besides."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` would install, built from the files that git tracks."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_wheel_holds_modules_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listing = subprocess.run(["git", "ls-files", "textgen_env", "agents"], cwd=ROOT, capture_output=True, text=True)
    tracked = [name for name in listing.stdout.splitlines() if "/recipes/" not in name]  # how the assets were made
    moved = [
        name.replace("agents/", "textgen_env/agents/", 1) if name.startswith("agents/") else name for name in tracked
    ]
    assert not set(moved) - names
    assert {name.split("/")[0] for name in names} == {"textgen_env", wheel.name.rsplit("-", 3)[0] + ".dist-info"}


def test_installed_package_works_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import gymnasium as gym, textgen_env, textgen_env.agents.losses as losses, textgen_env.testing;"
        "env = gym.make('textgen/Sentiment-v0'); env.reset(seed=0); print(textgen_env.__file__, losses.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(path.startswith(str(tmp_path / "site")) for path in output)
