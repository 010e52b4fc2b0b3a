"""What training achieves: the demo over several seeds, each judged on held-out prompts before and after.

    python -m benchmarks.learning --seeds 1 2 3

What lives here: the sweep. What does not: the run itself (``agents/ppo.py`` with its defaults, or the settings given
here), the table (``report.py``).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes

from benchmarks.peers.workload import peak_rss_gb
from benchmarks.report import keep, learning_table
from textgen_env.agents.ppo import PPO, PPOSettings
from textgen_env.agents.training.run import Run


@dataclass
class LearningSettings:
    """Train with several seeds; all other settings are those of the trainer."""

    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """One run each."""
    run: OmitArgPrefixes[PPOSettings] = field(default_factory=PPOSettings)
    """The run."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def measure(settings: LearningSettings) -> Iterator[dict[str, Any]]:
    """One record per seed."""
    for seed in settings.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = replace(settings.run, seed=seed, output=str(Path(folder) / "run"))
            yield {"benchmark": "learning", "env": run.env, "model": run.model, "seed": seed, **train(run)}


def train(settings: PPOSettings) -> dict[str, float]:
    """One run from start to end: held-out metrics before and after, and its cost."""
    begin = time.perf_counter()
    console = Console(stderr=True)
    folder = Run(settings, lambda run: PPO(run.venv, run.policy, settings.ppo, **run.options), console).execute()
    minutes = (time.perf_counter() - begin) / 60
    before, after = (json.loads((folder / f"{name}.json").read_text())["metrics"] for name in ("before", "after"))
    return {
        "score_before": before["score"],
        "score_after": after["score"],
        "kl_per_token": after["kl_per_token"],
        "kl_per_response": after["kl_per_response"],
        "perplexity_before": before["reference_perplexity"],
        "perplexity_after": after["reference_perplexity"],
        "distinct_2_before": before["distinct_2"],
        "distinct_2_after": after["distinct_2"],
        "minutes": minutes,
        "peak_rss_gb": peak_rss_gb(),
    }


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(LearningSettings)
    print(learning_table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main()
