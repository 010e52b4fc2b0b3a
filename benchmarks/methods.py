"""The methods side by side: what each gains, held out, by the true reward and by two that say nothing.

    python -m benchmarks.methods --out methods.jsonl

What lives here: which method learns which task, with which settings, and the sweep over rewards and seeds. What does
not: the methods (``agents/``), the rewards that say nothing (``controls.py``), the table (``report.py``).

Whatever a run was paid, it is judged by the task's own scorer, on prompts held out from training. The settings were
chosen with seed 101 on training prompts, see README.md.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import keep, methods_table, read
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.evaluate import EvalReport, evaluate, standard_error_of_difference
from textgen_env.agents.training.run import Run

COMMON = "--eval-prompts 400 --eval-every None --optimum-samples 0 --sample-every 1000 --save-every 1000"


@dataclass(frozen=True)
class Method:
    """A trainer with its flags on one task, and the task's scorer."""

    name: str
    trainer: str
    task: str
    scorer: str
    flags: str

    @property
    def command(self) -> str:
        """What is run, but for the reward and the seed."""
        return f"{self.trainer} --env textgen/{self.task}-v0 {COMMON} {self.flags}".rstrip()

    def rewards(self, seed: int) -> dict[str, list[str]]:
        """From the name of a reward to its flags.

        To DPO a constant reward is a tie in every pair, of which the gradient is exactly 0 where it begins: nothing
        would move, and nothing is measured. Its shuffled reward are labels by chance.
        """
        if self.trainer == "dpo":
            return {"true": [], "shuffled": ["--label-flip", "0.5"]}
        shuffled = {"name": "benchmarks.controls:Shuffled", "scorer": self.scorer, "seed": seed}
        return {
            "true": [],
            "constant": ["--scorer", "benchmarks.controls:constant"],
            "shuffled": ["--scorer", json.dumps(shuffled)],
        }


METHODS = [
    Method("SCST", "reinforce", "Describe", "cider", "--baseline greedy --group-size 1 --updates 12"),
    Method("SCST", "reinforce", "Translate", "bleu", "--baseline greedy --group-size 1 --updates 16"),
    Method("RLOO", "reinforce", "Summarize", "rougeL", "--baseline leave_one_out --group-size 4 --updates 16"),
    Method("GRPO", "grpo", "Summarize", "rougeL", "--group-size 8 --updates 16"),
    Method("DPO", "dpo", "Sentiment", "sentiment", ""),
]


@dataclass
class MethodsSettings:
    """Train by each method, with each reward and seed."""

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """One run each."""
    only: list[str] = field(default_factory=list)
    """Methods to run, by name; none: all."""
    out: Path | None = None
    """Also append the JSON lines to this file; runs that it holds already are not repeated."""


def measure(settings: MethodsSettings, methods: Sequence[Method] = METHODS) -> Iterator[dict[str, Any]]:
    """One record per run that is not in the file yet."""
    known = {identity(record) for record in read([settings.out])} if settings.out and settings.out.exists() else set()
    for method in methods:
        if settings.only and method.name not in settings.only:
            continue
        for seed in settings.seeds:
            for reward, flags in method.rewards(seed).items():
                record = {"benchmark": "methods", "method": method.name, "task": method.task, "reward": reward}
                record |= {"seed": seed, "command": method.command}
                if identity(record) not in known:
                    yield {**record, **train([*shlex.split(method.command), *flags, "--seed", str(seed)])}


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    return tuple(record.get(key) for key in ("command", "reward", "seed"))


def train(arguments: Sequence[str]) -> dict[str, float]:
    """One run from start to end: what the task's own scorer says before and after, and what it cost.

    Args:
        arguments: the trainer's name and its flags.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    trainer = importlib.import_module(f"textgen_env.agents.{arguments[0]}")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        run = trainer.make_run([*arguments[1:], "--output", str(Path(folder) / "run")])
        before = judged(run)
        run.execute()
        after = judged(run)
    return {
        "score_before": before.metrics["score"],
        "score_after": after.metrics["score"],
        "gain": after.metrics["score"] - before.metrics["score"],
        "gain_stderr": standard_error_of_difference(before, after, "score"),
        "kl_per_response": after.metrics["kl_per_response"],
        "length_before": before.metrics["response_length"],
        "length_after": after.metrics["response_length"],
        "distinct_2_before": before.metrics["distinct_2"],
        "distinct_2_after": after.metrics["distinct_2"],
        "minutes": (time.perf_counter() - begin) / 60,
        "cpu_seconds": time.process_time() - cpu,
    }


def judged(run: Run) -> EvalReport:
    """The policy of a run on the held-out prompts by the task's own scorer, with the luck of the run's seed."""
    judge = make_environments(replace(run.settings, scorer=None))[1]
    return evaluate(judge, run.policy, run.reference, seed=run.settings.seed, sampling=run.trainer.sampling)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(MethodsSettings)
    records = keep(measure(settings), settings.out)
    print(methods_table(records if settings.out is None else read([settings.out])))


if __name__ == "__main__":
    main()
