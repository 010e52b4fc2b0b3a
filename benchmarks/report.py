"""Tables made of the JSON lines that the benchmarks print.

    python -m benchmarks.report results.jsonl …

What lives here: medians, ratios and Markdown. What does not: measuring (``training.py``, ``learning.py``,
``rollout.py``).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "ours_"  # how the names of this project's own programs begin
LEARNING_COLUMNS = {
    "score_before": "{:.3f}",
    "score_after": "{:.3f}",
    "kl_per_token": "{:.3f}",
    "kl_per_response": "{:.2f}",
    "perplexity_before": "{:.1f}",
    "perplexity_after": "{:.1f}",
    "distinct_2_before": "{:.3f}",
    "distinct_2_after": "{:.3f}",
    "minutes": "{:.1f}",
}
REWARDS = ("true", "constant", "shuffled")
METHOD_COSTS = {"kl_per_response": ".2f", "cpu_seconds": ".0f"}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantiles of Student's t for so many values."""
Record = Mapping[str, Any]


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The JSON lines of some files; other lines are passed over."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def keep(records: Iterable[dict[str, Any]], out: Path | None) -> list[dict[str, Any]]:
    """Print each record as a JSON line as soon as it is there, append it to the file ``out``, and return them all."""
    kept = []
    for record in records:
        kept.append(record)
        line = json.dumps(record)
        print(line, flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    return kept


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def training_table(records: Iterable[Record]) -> str:
    """Whole iterations: for each peer the medians of both sides, their ratio and both peaks of memory.

    Args:
        records: of ``benchmarks.training``; each names the ``pairing`` it was measured in.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["benchmark"] == "training" and not record["warm_up"]:
            setting = tuple(record[key] for key in ("pairing", "dtype", "epochs", "completions", "new_tokens"))
            groups[setting][record["peer"]].append(record)
    rows = []
    for (pairing, dtype, epochs, completions, new_tokens), sides in groups.items():
        ours = next((name for name in sides if name.startswith(OURS)), None)
        other = next((name for name in sides if not name.startswith(OURS)), None)
        if ours is None or other is None:
            continue
        work = f"{completions} × {new_tokens}"
        rows.append([pairing, dtype, str(epochs), work, *_compare(sides[ours], sides[other])])
    titles = ("ours, tokens/s", "peer, tokens/s", "ratio (rounds)", "ours, peak GB", "peer, peak GB")
    return markdown(("pairing", "dtype", "epochs", "completions × tokens", *titles), rows)


def _compare(ours: Sequence[Record], other: Sequence[Record]) -> list[str]:
    """Medians, the ratio of medians with the range of the ratios of single rounds, peaks."""
    speed = [statistics.median(record["tokens_per_second"] for record in side) for side in (ours, other)]
    by_round = [_by_round(side) for side in (ours, other)]
    ratios = [by_round[0][turn] / by_round[1][turn] for turn in by_round[0].keys() & by_round[1].keys()]
    spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else ""
    memory = [max(record["peak_rss_gb"] for record in side) for side in (ours, other)]
    return [
        f"{speed[0]:.0f}",
        f"{speed[1]:.0f}",
        f"{speed[0] / speed[1]:.2f}{spread}",
        f"{memory[0]:.1f}",
        f"{memory[1]:.1f}",
    ]


def _by_round(records: Iterable[Record]) -> dict[int, float]:
    rounds: dict[int, list[float]] = defaultdict(list)
    for record in records:
        rounds[record["round"]].append(record["tokens_per_second"])
    return {turn: statistics.median(values) for turn, values in rounds.items()}


def learning_table(records: Iterable[Record]) -> str:
    """What training changed, one row per seed, and the means."""
    records = [record for record in records if record["benchmark"] == "learning"]
    means = {name: statistics.mean(record[name] for record in records) for name in LEARNING_COLUMNS}
    rows = [
        [str(record["seed"]), *(form.format(record[name]) for name, form in LEARNING_COLUMNS.items())]
        for record in (*records, {"seed": "mean", **means})
    ]
    return markdown(("seed", *(name.replace("_", " ") for name in LEARNING_COLUMNS)), rows)


def methods_table(records: Iterable[Record]) -> str:
    """What each method gained on its task by each reward: the mean over seeds, with its 95 % interval."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["benchmark"] == "methods":
            groups[record["method"], record["task"]][record["reward"]].append(record)
    rows = []
    for (method, task), by_reward in groups.items():
        gains = {reward: [record["gain"] for record in runs] for reward, runs in by_reward.items()}
        runs = by_reward["true"]
        sides = [f"{statistics.mean(r[name] for r in runs):.3f}" for name in ("score_before", "score_after")]
        told = [with_interval(gains[reward]) if reward in gains else "–" for reward in REWARDS]
        cost = [f"{statistics.mean(r[name] for r in runs):{form}}" for name, form in METHOD_COSTS.items()]
        rows.append([method, task, " → ".join(sides), *told, *cost])
    titles = ("held-out score", *(f"gain, {reward} reward" for reward in REWARDS), "KL, nats per response", "CPU s")
    return markdown(("method", "task", *titles), rows)


def with_interval(values: Sequence[float]) -> str:
    """A mean with the half-width of its 95 % interval by Student's t; without one for a single value."""
    mean = f"{statistics.mean(values):+.3f}"
    if len(values) < 2:
        return mean
    width = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {width:.3f}"


TABLES = {"training": training_table, "learning": learning_table, "methods": methods_table}


def main(arguments: Sequence[str]) -> None:
    """Print a table for each benchmark that the files hold."""
    records = [record for record in read(map(Path, arguments)) if record.get("benchmark") in TABLES]
    for name in dict.fromkeys(record["benchmark"] for record in records):
        print(f"\n{name}\n\n{TABLES[name]([record for record in records if record['benchmark'] == name])}")


if __name__ == "__main__":
    main(sys.argv[1:])
