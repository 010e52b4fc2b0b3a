"""What runs on tasks that answer back have learned: the right answer, and the calls that lead to it.

    textgen ppo --env textgen/Browse-v0 --seed 1 --output runs/browse
    python -m benchmarks.dialogues runs/browse

What lives here: judging the policy that a run began with and its last one on the held-out prompts, by the task's own
scorer whatever the run was paid, and by whether the environment said what the right calls lead to, which is the column
"reply" of the packaged prompt sets. What does not: the runs (``agents/``), what is paid in a control (``controls.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.report import keep, markdown
from textgen_env import LanguageModel
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.evaluate import EvalReport, evaluate
from textgen_env.agents.training.run_settings import TaskSettings

KEPT = ("env", "model", "prompts", "max_new_tokens", "max_prompt_tokens", "temperature", "eval_prompts")
SAMPLES = 4  # per held-out prompt
JUDGES = {"score": None, "called": "benchmarks.dialogues:called"}


@dataclass
class DialoguesSettings:
    """Judge the policies of runs."""

    runs: tyro.conf.Positional[list[Path]]
    """Their folders."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def called(
    completions: Sequence[str], *, turns: Sequence[Sequence[Mapping[str, str]]], reply: Sequence[str]
) -> list[float]:
    """1 where the environment has said the prompt's column "reply"."""
    said = [{turn["content"] for turn in own if turn["role"] == "environment"} for own in turns]
    return [float(wanted in own) for wanted, own in zip(reply, said, strict=True)]


def measure(settings: DialoguesSettings) -> Iterator[dict[str, Any]]:
    """One record per run: both policies by both judges, with standard errors."""
    for folder in settings.runs:
        made_with = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        record = {
            "benchmark": "dialogues",
            "run": folder.name,
            "env": made_with["env"],
        }
        record |= {"seed": made_with["seed"], "scorer": made_with["scorer"]}
        for when, model in (("before", made_with["model"]), ("after", str(folder / "last"))):
            for judge, scorer in JUDGES.items():
                report = judged(made_with, model, scorer)
                record |= {f"{judge}_{when}": report.metrics["score"]}
                record |= {f"{judge}_{when}_stderr": report.standard_error("score")}
        yield record


def judged(made_with: Mapping[str, Any], model: str, scorer: str | None) -> EvalReport:
    """A policy on the held-out prompts of a run."""
    task = TaskSettings(**{name: made_with[name] for name in KEPT}, scorer=scorer)
    venv = make_environments(task)[1]
    policy = ActorCritic(LanguageModel(model))
    return evaluate(venv, policy, policy.reference(), samples=SAMPLES)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(DialoguesSettings)
    rows = [
        [record["run"], record["env"]]
        + [f"{record[name]:.3f} ± {record[f'{name}_stderr']:.3f}" for judge in JUDGES for name in _names(judge)]
        for record in keep(measure(settings), settings.out)
    ]
    print(markdown(["run", "env", *(name for judge in JUDGES for name in _names(judge))], rows))


def _names(judge: str) -> list[str]:
    return [f"{judge}_before", f"{judge}_after"]


if __name__ == "__main__":
    main()
