"""Questions of reasoning-gym before and after GRPO: a real model, a peer's tasks, the peer's own judgement.

    python -m textgen_env.assets fetch smollm2-135m
    python -m benchmarks.reasoning --out reasoning.jsonl

What lives here: three tasks with examples in their prompts, and the runs. What does not: the questions and who judges
them (`textgen_env.reasoning_tasks`, ``scorers/reasoning.py``), GRPO (``agents/grpo.py``).
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from benchmarks.report import keep, markdown
from textgen_env.agents.grpo import make_run
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.evaluate import EvalReport, evaluate, standard_error_of_difference
from textgen_env.agents.training.run import Run

QUESTIONS = {
    "chain_sum": "State the final answer to the following arithmetic problem: {} =",
    "letter_counting": 'How many times does the letter "a" appear in the text: "{}"?',
    "gcd": "Find the Greatest Common Divisor (GCD) of these numbers: {}. Give only the GCD as your final answer.",
}
ANSWERED = {
    "chain_sum": {"1 + 4": "5", "8 - 2": "6"},
    "letter_counting": {"a small cat": "3", "ant": "1"},
    "gcd": {"4, 6": "2", "9, 5": "1"},
}
"""Two questions of each data set that stand in the prompts with their answers."""
SETTINGS: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "gcd": {"max_value": 20},
}
"""Small ones, such as a model of 135 million parameters answers now and then."""


def prompt_of(data_set: str) -> str:
    """Two answered questions, and the place of the third."""
    question, pairs = QUESTIONS[data_set], ANSWERED[data_set].items()
    shown = [f"Q: {question.format(asked)}\nA: {answer}" for asked, answer in pairs]
    return "\n\n".join([*shown, "Q: {question}\nA:"])


def register(data_set: str) -> str:
    """The id of an environment of its questions."""
    name = f"reasoning/{data_set}-v0"
    if name not in gym.registry:
        prompts = {"dataset": f"reasoning-gym:{data_set}", "size": 600, "prompt": prompt_of(data_set)}
        gym.register(
            name,
            entry_point="textgen_env:TextGenEnv",
            vector_entry_point="textgen_env:TextGenVectorEnv",
            kwargs={
                "prompts": {**prompts, **SETTINGS[data_set]},
                "scorer": {"name": "reasoning-gym"},
                "stop_strings": ["\n"],
                "max_new_tokens": 5,
                "max_prompt_tokens": 256,
            },
        )
    return name


@dataclass
class ReasoningSettings:
    """Train on each data set, and judge held-out questions before and after."""

    data_sets: list[str] = field(default_factory=lambda: list(QUESTIONS))
    """Which of them."""
    seeds: list[int] = field(default_factory=lambda: [1])
    """One run each."""
    model: str = "smollm2-135m"
    """Any causal language model."""
    updates: int = 16
    """Of GRPO, 32 responses each."""
    lr: float = 4e-4
    """Of the adapters."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def measure(settings: ReasoningSettings) -> Iterator[dict[str, Any]]:
    """One record per run."""
    for data_set in settings.data_sets:
        for seed in settings.seeds:
            yield {"benchmark": "reasoning", "data_set": data_set, "seed": seed, **train(settings, data_set, seed)}


def train(settings: ReasoningSettings, data_set: str, seed: int) -> dict[str, Any]:
    """A run from start to end."""
    sizes = "--num-envs 32 --episodes 32 --group-size 8 --minibatch-size 32 --micro-batch-size 8 --lora-rank 16"
    quiet = "--eval-every None --optimum-samples 0 --sample-every 1000 --save-every 1000 --eval-prompts 100"
    flags = [*sizes.split(), *quiet.split(), "--env", register(data_set), "--model", settings.model]
    flags += ["--updates", str(settings.updates), "--lr", str(settings.lr), "--seed", str(seed)]
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        run = make_run([*flags, "--output", str(Path(folder) / "run")])
        before = judged(run)
        run.execute()
        after = judged(run)
    names = ("score", "kl_per_response")
    told = {f"{name}_after": after.metrics[name] for name in names} | {"score_before": before.metrics["score"]}
    error = standard_error_of_difference(before, after, "score")
    return {**told, "gain_stderr": error, "texts": after.texts[:4], "cpu_seconds": time.process_time() - begin}


def judged(run: Run) -> EvalReport:
    """The policy on held-out questions, with the luck of the run's seed."""
    judge = make_environments(run.settings)[1]
    return evaluate(judge, run.policy, run.reference, seed=run.settings.seed, sampling=run.trainer.sampling)


def table(records: Sequence[dict[str, Any]]) -> str:
    """One line per run."""
    rows = []
    for r in records:
        gain, width = r["score_after"] - r["score_before"], 1.96 * r["gain_stderr"]
        scores = f"{r['score_before']:.3f} → {r['score_after']:.3f}"
        rows.append([r["data_set"], str(r["seed"]), scores, f"{gain:+.3f} ± {width:.3f}", f"{r['cpu_seconds']:.0f}"])
    return markdown(("data set", "seed", "score, held out", "gain (95 %)", "CPU s"), rows)


def main(settings: ReasoningSettings) -> None:
    """Print the records, then the table."""
    print("\n" + table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main(tyro.cli(ReasoningSettings, description=__doc__))
