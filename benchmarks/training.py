"""Whole training iterations beside other libraries: rollout, scoring and update, by turns on the same work.

    python -m benchmarks.throughput training --model smollm2-135m --epochs 1 4 --rounds 3 \\
        --peer-python trl_ppo /venvs/trl-1.12/bin/python trl_grpo /venvs/trl-1.16/bin/python

What lives here: the alternation. Each library runs its own program (``benchmarks/peers/``) in its own environment; the
two of a pairing stay loaded and take turns, A B A B, so that what else the machine does touches both alike. What does
not: the work (``peers/workload.py``) and the tables (``report.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.report import keep, training_table
from textgen_env.assets import resolve_model

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class TrainingSettings:
    """Whole training iterations of ours and of other libraries, by turns."""

    peer_python: dict[str, Path]
    """A program in benchmarks/peers and the Python of the environment to run it in, once or more often."""
    model: str = "smollm2-135m"
    """An embedded or fetched name, or a folder in transformers format."""
    ours: str = "ours_ppo"
    """Our program."""
    epochs: list[int] = field(default_factory=lambda: [1, 4])
    """Passes over the completions of an iteration."""
    dtype: list[Literal["bfloat16", "float32"]] = field(default_factory=lambda: ["bfloat16"])
    """Of all weights."""
    rounds: int = 3
    """Turns of each side, after an iteration that warms up."""
    iterations: int = 2
    """Iterations a turn."""
    completions: int = 64
    """Trajectories an iteration."""
    new_tokens: int = 32
    """Tokens of each."""
    micro_batch: int = 16
    """Trajectories per forward and backward pass."""
    critic: Literal["small", "full"] = "small"
    """What a library gets that needs a model of its own as critic: an embedding table, or one of the policy's size."""
    old_log_probs: Literal["sampled", "scored"] = "sampled"
    """Where ours takes old log-probs from: decoding, as TRL's PPO does, or a teacher-forced pass of their own."""
    threads: int = 0
    """Threads of torch; 0 leaves its choice."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


class Worker:
    """A program of ``benchmarks/peers`` that stays loaded and runs an iteration whenever it is asked to.

    Args:
        python: the interpreter of the environment that has its library.
        peer: name of the program.
        flags: the work, as command-line flags.

    Raises:
        RuntimeError: the program ended; the message has the end of what it printed.
    """

    def __init__(self, python: Path, peer: str, flags: list[str]) -> None:
        self.peer = peer
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{peer}", "--on-request", *flags],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.warm_up = self._read()

    def iterate(self) -> dict[str, Any]:
        """One iteration; what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Let the program end."""
        self._process.communicate()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.peer} ended early:\n{self._errors.read()[-2000:]}")
        measured: dict[str, Any] = json.loads(line)
        return measured


def measure(settings: TrainingSettings) -> Iterator[dict[str, Any]]:
    """One record per iteration; see `benchmarks.report.training_table` for what becomes of them."""
    for dtype, epochs, peer in product(settings.dtype, settings.epochs, settings.peer_python):
        flags = _flags(settings, dtype, epochs)
        workers = [Worker(Path(sys.executable), settings.ours, flags)]
        try:
            workers.append(Worker(settings.peer_python[peer], peer, flags))
            pairing = f"{settings.ours} : {peer}" + (" (full critic)" if settings.critic == "full" else "")
            yield from ({**worker.warm_up, "pairing": pairing, "round": -1} for worker in workers)
            for turn, worker, _ in product(range(settings.rounds), workers, range(settings.iterations)):
                yield {**worker.iterate(), "pairing": pairing, "round": turn, "load": os.getloadavg()[0]}
        finally:
            for worker in workers:
                worker.close()


def _flags(settings: TrainingSettings, dtype: str, epochs: int) -> list[str]:
    flags = {
        "model": resolve_model(settings.model),
        "dtype": dtype,
        "epochs": epochs,
        "completions": settings.completions,
        "new-tokens": settings.new_tokens,
        "micro-batch": settings.micro_batch,
        "critic": settings.critic,
        "old-log-probs": settings.old_log_probs,
        "threads": settings.threads,
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def report(settings: TrainingSettings) -> None:
    """Measure and print the table."""
    print(training_table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    report(tyro.cli(TrainingSettings))
