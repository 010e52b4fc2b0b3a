"""Seconds until a first observation: imports, and then making and resetting each embedded task.

    python -m benchmarks.loading --repeats 5

Each repeat is a process of its own for each task, in which nothing is loaded yet: files are in the disk's cache after
the first, which is therefore left out. Four spans follow each other:

* ``package``: ``import gymnasium, textgen_env``, which registers the tasks;
* ``libraries``: ``import textgen_env.env``, with it torch and transformers;
* ``first``: ``gym.make`` and ``reset``, with what transformers and the scorer import at their first use;
* ``again``: another environment of the same task, made and reset in the same process.

Both clocks are kept: on a machine that others use too, ``--clock cpu``, the processor time of that process, is the
steadier one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.report import keep, markdown

SPANS = ("package", "libraries", "first", "again")
CHILD = """
import json, sys, time

def clocks():
    return time.perf_counter(), time.process_time()

marks = [clocks()]

import gymnasium, textgen_env
marks.append(clocks())

import textgen_env.env
marks.append(clocks())

for _ in range(2):
    gymnasium.make(sys.argv[1]).reset(seed=0)
    marks.append(clocks())

print(json.dumps([[later - sooner for later, sooner in zip(*pair)] for pair in zip(marks[1:], marks)]))
"""


@dataclass
class LoadingSettings:
    """How long a user waits for the first observation."""

    tasks: list[str] = field(default_factory=lambda: ["Sentiment", "Summarize", "Translate", "Describe"])
    """each in processes of its own"""
    repeats: int = 5
    """processes per task, after one that warms up the disk's cache"""
    threads: int = 0
    """threads of torch; 0 leaves its default"""
    clock: Literal["wall", "cpu"] = "wall"
    """which of both clocks the table is of"""
    out: Path | None = None
    """also append the JSON lines to this file"""


def measure(settings: LoadingSettings) -> Iterator[dict[str, Any]]:
    """One record per process."""
    for task in settings.tasks:
        for repeat in range(-1, settings.repeats):
            spans = load(f"textgen/{task}-v0", settings.threads)
            yield {"benchmark": "loading", "task": task, "repeat": repeat, "warm_up": repeat < 0, **spans}


def load(task: str, threads: int = 0) -> dict[str, float]:
    """Seconds of each span in a new process, by both clocks: ``first_wall``, ``first_cpu``, …

    Raises:
        RuntimeError: the process failed; with what it said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([sys.executable, "-c", CHILD, task], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{task} was not loaded: {done.stderr.strip()}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    return {
        f"{span}_{clock}": value
        for span, both in zip(SPANS, seconds, strict=True)
        for clock, value in zip(("wall", "cpu"), both, strict=True)
    }


def table(records: Sequence[Mapping[str, Any]], clock: str = "wall") -> str:
    """Medians per task, and the slowest ``first``."""
    rows = []
    for task in dict.fromkeys(record["task"] for record in records):
        runs = [record for record in records if record["task"] == task and not record["warm_up"]]
        medians = [statistics.median(run[f"{span}_{clock}"] for run in runs) for span in SPANS]
        slowest = max(run[f"first_{clock}"] for run in runs)
        rows.append([task, *(f"{seconds:.2f}" for seconds in (*medians, slowest))])
    return markdown(("task", *SPANS, "slowest first"), rows)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(LoadingSettings)
    print(table(keep(measure(settings), settings.out), settings.clock))


if __name__ == "__main__":
    main()
