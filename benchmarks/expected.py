"""Expected policy gradients beside RLOO on answers of one word, at the same number of decodes per update.

    python -m benchmarks.expected

What lives here: the task, both runs, the table. What does not: the trainers (``agents/expected.py``,
``agents/reinforce.py``).

A record of a restaurant is followed by the beginning of a sentence, whose next word it gives: "The prices are …". The
embedded model knows such sentences and has its own idea of the word. The score is 1 for the right word and 0 for each
of the others; actions are all tokens. Held out, the expected score needs no sampling: it is π of the right word.
RLOO reads the model once per response. So does the other, and once more per prompt to see the actions it tries, so
that it plays half as many responses, each to a prompt of its own, in as many steps of the optimiser; what it takes more
of is scores.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode

from benchmarks.report import keep, markdown
from textgen_env import LanguageModel
from textgen_env.agents.expected import ExpectedConfig, ExpectedPolicyGradient
from textgen_env.agents.policy import ActorConfig, ActorCritic
from textgen_env.agents.reinforce import Reinforce, ReinforceConfig
from textgen_env.agents.training.on_policy import OnPolicyTrainer
from textgen_env.prompts import load_prompts
from textgen_env.scorers.policy_view import PolicyView

TAILS = {"price": " The prices are", "rating": " Its rating is"}
LEVELS = (0.5, 0.9)
METHODS = ("RLOO", "expected")
STEPS = 4  # of the optimiser, per update


@dataclass
class ExpectedBenchmarkSettings:
    """Compare expected policy gradients with RLOO."""

    field: str = "price"
    """What is asked for: "price" or "rating"."""
    updates: int = 12
    """Of each run."""
    decodes: int = 128
    """Per update."""
    actions: int = 32
    """The likeliest, tried at each prompt; and one of the others."""
    lr: float = 2e-4
    """Of both."""
    held_out: int = 64
    """Prompts."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of sampling and shuffling."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def questions(field: str) -> list[dict[str, Any]]:
    """Prompts, each with the one word that is right."""
    found = []
    for prompt in load_prompts("descriptions"):
        if told := re.search(rf"\b{field}: (\w+)", prompt.text):
            found.append({"prompt": prompt.text + TAILS[field], "references": [told[1]]})
    return found


def right_word(completions: Sequence[str], *, references: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """1 for the right word alone."""
    return [float(text.strip() == right[0]) for text, right in zip(completions, references, strict=True)]


def make_trainer(method: str, settings: ExpectedBenchmarkSettings, seed: int) -> OnPolicyTrainer:
    """Either, with the same decodes per update, on all but the held-out prompts."""
    venv = gym.make_vec(
        "textgen/TextGen-v0",
        num_envs=32,
        model="tiny",
        prompts=questions(settings.field)[settings.held_out :],
        scorer=right_word,
        max_new_tokens=1,
        max_prompt_tokens=96,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    policy = ActorCritic(LanguageModel("tiny"), ActorConfig())
    episodes = settings.decodes if method == "RLOO" else settings.decodes // 2
    sizes = {"episodes": episodes, **dict.fromkeys(("minibatch_size", "micro_batch_size"), episodes // STEPS)}
    shared: dict[str, Any] = {"lr": settings.lr, "kl_coef": 0.0, **sizes}
    options = {"seed": seed, "total_updates": settings.updates}
    if method == "RLOO":
        return Reinforce(venv, policy, ReinforceConfig(**shared, group_size=4), **options)
    config = ExpectedConfig(**shared, group_size=1, actions=settings.actions)
    return ExpectedPolicyGradient(venv, policy, config, **options)


def held_out_score(model: LanguageModel, asked: Sequence[dict[str, Any]]) -> float:
    """E[score] over prompts: π of the right word, exactly."""
    view = PolicyView(model, [model.encode(question["prompt"]) for question in asked], [False] * len(asked))
    found = view.log_probs([[" " + question["references"][0]] for question in asked])
    return statistics.mean(float(torch.tensor(one.log_prob).exp()) for (one,) in found)


def run(method: str, settings: ExpectedBenchmarkSettings, seed: int) -> dict[str, Any]:
    """One run: the held-out score before each update and after the last, and what it cost."""
    trainer, begin = make_trainer(method, settings, seed), time.process_time()
    asked, model = questions(settings.field)[: settings.held_out], trainer.policy.language_model
    scores, spent = [held_out_score(model, asked)], 0.0
    for _ in range(settings.updates):
        start = time.process_time()
        trainer.iterate()
        spent += time.process_time() - start
        scores.append(held_out_score(model, asked))
    reached = {f"updates_to_{level}": _first(scores, level) for level in LEVELS}
    record = {"benchmark": "expected", "field": settings.field, "method": method, "seed": seed}
    record |= {"decodes_per_update": settings.decodes, "lr": settings.lr, "scores": scores, **reached}
    return {**record, "cpu_seconds": spent, "all_cpu_seconds": time.process_time() - begin}


def _first(scores: Sequence[float], level: float) -> int | None:
    """After how many updates a level is reached; None: never."""
    return next((update for update, score in enumerate(scores) if score >= level), None)


def measure(settings: ExpectedBenchmarkSettings) -> Iterator[dict[str, Any]]:
    """One record per method and seed."""
    for method in METHODS:
        for seed in settings.seeds:
            yield run(method, settings, seed)


def table(records: Sequence[dict[str, Any]]) -> str:
    """A line per method: each seed's numbers."""
    rows = []
    for method in METHODS:
        own = [record for record in records if record["method"] == method]
        reached = [
            ", ".join("never" if (at := record[f"updates_to_{level}"]) is None else str(at) for record in own)
            for level in LEVELS
        ]
        finals = ", ".join(f"{record['scores'][-1]:.3f}" for record in own)
        seconds = statistics.mean(record["cpu_seconds"] / (len(record["scores"]) - 1) for record in own)
        rows.append([method, f"{own[0]['scores'][0]:.3f}", *reached, finals, f"{seconds:.2f}"])
    columns = ("method", "before", *(f"updates to {level}" for level in LEVELS), "at the end", "CPU s per update")
    return markdown(columns, rows)


def main(settings: ExpectedBenchmarkSettings) -> None:
    """Print the records, then the table."""
    print("\n" + table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main(tyro.cli(ExpectedBenchmarkSettings, description=__doc__))
