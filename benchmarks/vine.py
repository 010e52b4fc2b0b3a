"""VinePPO beside PPO: what each learns from as many decoded tokens, where what decides comes late and elsewhere.

    python -m benchmarks.vine --out vine.jsonl

What lives here: the tasks, the settings of each trainer, and the table. What does not: the trainers (``agents/``).

Every token that the policy decodes is counted, those of continuations as well. A run ends with the update in which its
tokens are spent, and is judged on held-out prompts on the way: by sampled responses, the same luck for all. How
the settings were chosen is in README.md.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from numpy.typing import NDArray

from benchmarks.report import keep, markdown, read, with_interval
from textgen_env import LanguageModel
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOSettings
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.evaluate import evaluate
from textgen_env.agents.vine_ppo import VinePPO, VinePPOSettings
from textgen_env.scorers.wrapper import Parts, Spec, Wrapper
from textgen_env.vector_env import NOOP


def all_told(completions: Sequence[str], *, prompts: Sequence[str], **_: Any) -> list[float]:
    """1 for a description that tells every field of its record, else 0.

    The embedded model puts the first four fields into its first sentence, however it words it, and in half of its
    responses leaves out what would need a second or a third. What decides is whether it ends there.
    """
    return [
        float(all(_told(text, *field) for field in _fields(p))) for p, text in zip(prompts, completions, strict=True)
    ]


def _fields(prompt: str) -> list[list[str]]:
    """Of "Record: name: Golden Anchor | type: pub | …"."""
    return [pair.split(": ") for pair in prompt.partition("Record: ")[2].partition("\n")[0].split(" | ")]


def _told(text: str, name: str, value: str) -> bool:
    text, value = text.lower(), value.lower()
    known = value in text or OTHER_WORDS.get(value, value) in text
    return NAMED[name] in text and (known or name == "family") if name in NAMED else known


NAMED = {"price": "price", "rating": "rat", "family": "famil"}  # what is told in a sentence of its own
OTHER_WORDS = {"cheap": "low", "expensive": "high"}


class Ending(Wrapper):
    """The score of a text's last words alone.

    Args:
        scorer: of what.
        words: how many.
    """

    def __init__(self, scorer: Spec, words: int = 8) -> None:
        super().__init__(scorer)
        self.words = words

    def parts(self, completions: Sequence[str], **columns: Any) -> Parts:
        """The inner parts, of the endings."""
        return super().parts([" ".join(text.split()[-self.words :]) for text in completions], **columns)


ENDING = "benchmarks/Ending-v0"
if ENDING not in gym.registry:  # as a program, this file is imported twice
    sentiment = gym.spec("textgen/Sentiment-v0")
    gym.register(
        ENDING,
        entry_point=sentiment.entry_point,
        vector_entry_point=sentiment.vector_entry_point,
        kwargs={
            **sentiment.kwargs,
            "scorer": {"name": "benchmarks.vine:Ending", "scorer": "sentiment"},
            "min_new_tokens": 40,
            "max_new_tokens": 40,
        },
    )
TASKS = {
    "Ending": "--env benchmarks.vine:benchmarks/Ending-v0",
    "Describe, all told": "--env textgen/Describe-v0 --scorer benchmarks.vine:all_told",
    "Sentiment": "--env textgen/Sentiment-v0",
}
COMMON = "--warmup-updates 0 --lr-decay constant"  # a run ends by its tokens, and does not know its updates before
TRAINERS: dict[str, tuple[Any, Any, str]] = {
    "PPO": (PPO, PPOSettings, "--episodes 16 --num-envs 16 --minibatch-size 16 --micro-batch-size 16"),
    "PPO, 32 episodes": (PPO, PPOSettings, "--episodes 32 --num-envs 32"),
    "PPO, 32 episodes, resets": (PPO, PPOSettings, "--episodes 32 --num-envs 32 --reset-share 0.5"),
    "VinePPO": (VinePPO, VinePPOSettings, "--episodes 16 --num-envs 16 --continuations 2 --branch-every 12"),
    "VinePPO, all": (
        VinePPO,
        VinePPOSettings,
        "--episodes 16 --num-envs 16 --continuations 2 --branch-every 12 --learn-from all",
    ),
}


@dataclass
class VineSettings:
    """Train by each, on each task."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Names."""
    trainers: tuple[str, ...] = tuple(TRAINERS)
    """Names."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each."""
    tokens: int = 3_000
    """Decoded per run."""
    looks: int = 3
    """Evaluations on the way, evenly by tokens; the last is at the end."""
    prompts: int = 100
    """Held out."""
    constant: bool = False
    """The control: train by a reward that is always the same."""
    flags: str = ""
    """Further settings for all, to choose them by."""
    out: Path | None = None
    """Also append the JSON lines to this file; runs that it holds already are not repeated."""


class Counted(gym.vector.VectorWrapper):
    """Counts the tokens that are written."""

    written = 0

    def step(self, actions: NDArray[Any]) -> Any:
        """One token of each slot that does not rest."""
        self.written += int((actions != NOOP).sum())
        return super().step(actions)


def measure(settings: VineSettings) -> Iterator[dict[str, Any]]:
    """One record per run that is not in the file yet."""
    known = [record["run"] for record in read([settings.out])] if settings.out and settings.out.exists() else []
    for task in settings.tasks:
        for seed in settings.seeds:
            for trainer in settings.trainers:
                flags = " ".join(filter(None, (TASKS[task], COMMON, TRAINERS[trainer][2], settings.flags)))
                flags += f" --seed {seed} --eval-prompts {settings.prompts}"
                run = f"{trainer}: {flags} ({settings.tokens}{', constant' * settings.constant})"
                if run not in known:
                    record = {"benchmark": "vine", "run": run, "task": task, "trainer": trainer, "seed": seed}
                    yield {**record, "constant": settings.constant, **train(trainer, flags, settings)}


def train(trainer: str, flags: str, settings: VineSettings) -> dict[str, Any]:
    """One run: held-out scores by tokens, and what they cost."""
    make, kind, _ = TRAINERS[trainer]
    run = tyro.cli(kind, args=shlex.split(flags))
    held_out = make_environments(run)[1]
    if settings.constant:
        run.scorer = "benchmarks.controls:constant"
    venv = Counted(make_environments(run)[0])
    policy = ActorCritic(LanguageModel(run.model), run.policy, generator=torch.Generator().manual_seed(run.seed))
    algorithm = run.ppo if kind is PPOSettings else run.vine_ppo
    learner = make(venv, policy, algorithm, seed=run.seed, total_updates=run.updates)
    curve, cpu, step = [judged(learner, held_out, 0, 0.0)], 0.0, settings.tokens / settings.looks
    while venv.written < settings.tokens:
        begin = time.process_time()
        learner.iterate()
        cpu += time.process_time() - begin
        if venv.written >= step * len(curve):
            curve.append(judged(learner, held_out, venv.written, cpu))
    return {"curve": curve, "updates": learner.updates}


def judged(learner: Any, held_out: Any, tokens: int, cpu: float) -> dict[str, float]:
    """A point of the curve."""
    report = evaluate(held_out, learner.policy, learner.reference, seed=0, sampling=learner.sampling)
    names = ("score", "kl_per_response", "response_length")
    point = {name: round(float(report.metrics[name]), 4) for name in names if name in report.metrics}
    return {"tokens": tokens, "cpu_seconds": round(cpu, 1), "updates": learner.updates, **point}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Per task and trainer: the mean of the curve, its end, and the paired difference to PPO over seeds."""
    groups: dict[tuple[str, bool], dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        groups[record["task"], record["constant"]][record["trainer"]][record["seed"]] = record
    rows = []
    for (task, constant), trainers in groups.items():
        for trainer, runs in trainers.items():
            base = trainers.get("PPO", {})
            pairs = [(gain(runs[seed]), gain(base[seed])) for seed in runs if seed in base and trainer != "PPO"]
            ends = [run["curve"][-1] for run in runs.values()]
            rows.append(
                [
                    task + ", constant reward" * constant,
                    trainer,
                    " → ".join(
                        f"{statistics.mean(run['curve'][i]['score'] for run in runs.values()):.3f}"
                        for i in range(min(len(run["curve"]) for run in runs.values()))
                    ),
                    with_interval([mine - other for mine, other in pairs]) if pairs else "–",
                    *(f"{statistics.mean(end[name] for end in ends):{form}}" for name, form in COSTS.items()),
                ]
            )
    return markdown(("task", "trainer", "score by tokens", "gain less PPO's", *COSTS), rows)


COSTS = {"kl_per_response": ".1f", "tokens": ".0f", "updates": ".0f", "cpu_seconds": ".0f"}


def gain(record: dict[str, Any]) -> float:
    """Mean of the held-out score over the curve, less where it began: learning early counts."""
    scores = [point["score"] for point in record["curve"]]
    return statistics.mean(scores[1:]) - scores[0]


def main(settings: VineSettings) -> None:
    """Print the records, then the table."""
    records = keep(measure(settings), settings.out)
    print("\n" + table(records if settings.out is None else read([settings.out])))


if __name__ == "__main__":
    main(tyro.cli(VineSettings, description=__doc__))
