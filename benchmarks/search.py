"""Searching beside sampling: the best response that Monte-Carlo tree search and best-of-n find for the same decodes.

    python -m benchmarks.search --env textgen/Sentiment-v0 --responses 16

What lives here: both on the same prompts, and the paired differences. What does not: the searches
(``agents/search.py``), best-of-n as an estimate over all n (``agents/best_of_n.py``).

Best-of-n samples ``responses`` responses to a prompt and reads the model once for each of their tokens. The tree may
read it as often, and begins no simulation beyond that; where its last ones end above, best-of-n samples on
until it has read no less.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
import tyro

from benchmarks.report import keep, markdown
from textgen_env.agents.branching import Branching
from textgen_env.agents.search import TreeSearch
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.run_settings import TaskSettings


@dataclass
class SearchSettings:
    """Compare tree search with best-of-n."""

    env: str = "textgen/Sentiment-v0"
    """The task."""
    scorer: str | None = None
    """Name of a scorer, or its JSON form, instead of the task's own."""
    responses: int = 16
    """n of best-of-n, which sets the number of decodes."""
    prompts: int = 64
    """Held-out prompts (or the first of the training prompts)."""
    train: bool = False
    """Training prompts instead, to choose settings on."""
    slots: int = 4
    """Simulations side by side."""
    exploration: float = 0.2
    """c of PUCT."""
    top_k: int = 8
    """Continuations of each node."""
    backup: str = "max"
    """What a node is worth: the "max" or the "mean" of what was found below it."""
    seeds: tuple[int, ...] = (1,)
    """Of everything that is sampled; the table has the mean over them per prompt."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def measure(settings: SearchSettings) -> Iterator[dict[str, Any]]:
    """One record per prompt and seed."""
    task = TaskSettings(
        env=settings.env, scorer=settings.scorer, num_envs=settings.slots, eval_prompts=max(settings.prompts, 64)
    )
    venv = make_environments(task)[not settings.train]
    model = cast(Any, venv.unwrapped).language_model
    for seed, prompt in product(settings.seeds, range(settings.prompts)):
        generator = torch.Generator().manual_seed(1000 * seed + prompt)
        branching = Branching(venv, model, generator=generator)
        sampled, forwards, seconds = best_of(branching, prompt, settings.responses)
        begin = time.process_time()
        search = TreeSearch(branching, exploration=settings.exploration, top_k=settings.top_k, backup=settings.backup)
        found = search.search(prompt, simulations=10**6, max_forwards=forwards)
        search_seconds = time.process_time() - begin
        while forwards < found.forwards:  # its last simulations ended above: sampling has no less
            more, cost, took = best_of(branching, prompt, 1)
            sampled, forwards, seconds = max(sampled, more), forwards + cost, seconds + took
        record = {"benchmark": "search", "env": settings.env, "scorer": settings.scorer}
        record |= {"seed": seed, "prompt": prompt}
        record |= {"sampled": sampled, "forwards": forwards}
        record |= {"searched": found.best.rewards, "search_forwards": found.forwards}
        yield {**record, "cpu_seconds": seconds, "search_cpu_seconds": search_seconds}


def best_of(branching: Branching, prompt: int, count: int) -> tuple[float, int, float]:
    """The best reward of ``count`` samples, what they cost in forwards, and in seconds of CPU."""
    begin, before = time.process_time(), branching.forwards
    sampled = branching.play_out([branching.root(prompt)] * count)
    return max(node.rewards for node in sampled), branching.forwards - before, time.process_time() - begin


def table(records: Sequence[dict[str, Any]]) -> str:
    """Means, and the mean difference with its interval over prompts, each of which is one number over the seeds."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for record in records:
        by_prompt[record["prompt"]].append(record["searched"] - record["sampled"])
    differences = [statistics.mean(of_prompt) for of_prompt in by_prompt.values()]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    mean = {name: statistics.mean(record[name] for record in records) for name in records[0] if name in MEASURED}
    row = [
        records[0]["scorer"] or records[0]["env"],
        f"{mean['sampled']:.3f}",
        f"{mean['searched']:.3f}",
        f"{statistics.mean(differences):+.3f} ± {1.96 * error:.3f}",
        f"{mean['forwards']:.0f}, {mean['search_forwards']:.0f}",
        f"{mean['cpu_seconds']:.2f}, {mean['search_cpu_seconds']:.2f}",
    ]
    return markdown(("task", "best of n", "tree search", "difference (95 %)", "forwards", "CPU s per prompt"), [row])


MEASURED = ("sampled", "searched", "forwards", "search_forwards", "cpu_seconds", "search_cpu_seconds")


def main(settings: SearchSettings) -> None:
    """Print the records, then the table."""
    print("\n" + table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main(tyro.cli(SearchSettings, description=__doc__))
