"""Training that is killed again and again: it must end with the same bits as training that never was.

    python -m benchmarks.kills --kills 100

What lives here: one straight run of PPO, and copies of it that are killed (SIGKILL) at random moments and resumed until
they end. What does not: how a run survives that (``agents/checkpoint.py``). Each process is a fork of one that has
imported the libraries and done nothing else, so that a kill costs the run's own seconds alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.report import keep
from textgen_env.agents.ppo import main as train
from textgen_env.agents.training.metrics_log import read_metrics

FLAGS = {
    "max-new-tokens": 6,
    "num-envs": 8,
    "episodes": 8,
    "minibatch-size": 4,
    "micro-batch-size": 4,
    "eval-prompts": 8,
    "adaptive-kl-target": 1.0,
    "eval-every": 2,
    "save-every": 1,
    "sample-every": 3,
}


@dataclass
class Settings:
    """Kill training runs."""

    kills: int = 100
    """How many, over as many runs as it takes."""
    updates: int = 12
    """Length of a run."""
    seed: int = 0
    """Draws the moments."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def start(folder: Path, updates: int) -> int:
    """Begin or resume the run in a process of its own; its id."""
    if process := os.fork():
        return process
    try:
        os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        values = {**FLAGS, "updates": updates, "output": folder}
        resume = ["--resume"] if (folder / "settings.json").is_file() else []
        train([*(part for name, value in values.items() for part in (f"--{name}", str(value))), *resume])
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def finish(process: int, folder: Path, patience: float | None = None) -> bool:
    """Wait for a run, and kill it when patience (seconds) ends; whether it came to its end by itself.

    Raises:
        RuntimeError: the run failed.
    """
    begin = time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if code := os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the run ended with {code}: {folder.with_suffix('.log').read_text()[-3000:]}")
            return True
        if patience is not None and time.monotonic() - begin > patience:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, Any]:
    """What a run leaves: the bytes of its models, checkpoints and evaluations, and its metrics without the clock's."""
    files = [*folder.glob("*.json"), *folder.glob("last/*"), *folder.glob("best/*"), *folder.glob("checkpoints/*/*")]
    kept: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    settings = json.loads(kept.pop("settings.json"))
    metrics = [
        {name: value for name, value in record.items() if "tokens_per_second" not in name}
        for record in read_metrics(folder / "metrics.jsonl")
    ]
    return {**kept, "metrics": metrics, "settings": {**settings, "output": None, "resume": None}}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def kill(settings: Settings, workplace: Path) -> Iterator[dict[str, Any]]:
    """One record per killed run."""
    begin, straight = time.monotonic(), workplace / "straight"
    finish(start(straight, settings.updates), straight)
    length, moments, kills, number = time.monotonic() - begin, random.Random(settings.seed), 0, 0
    expected = contents(straight)
    while kills < settings.kills:
        folder, number, own = workplace / f"run-{number}", number + 1, 0
        while not finish(start(folder, settings.updates), folder, moments.uniform(0, length * 0.6)):
            own += 1
        kills += own
        yield {
            "benchmark": "kills",
            "run": number,
            "kills": own,
            "total": kills,
            "differences": differences(expected, contents(folder)),
            "straight_seconds": round(length, 2),
        }


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(Settings)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as workplace:
        records = keep(kill(settings, Path(workplace)), settings.out)
    different = sum(bool(record["differences"]) for record in records)
    print(f"{records[-1]['total']} kills in {len(records)} runs; runs that ended with other bits: {different}")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
