"""Writes the prompt files: held-out prompts of each task, with references where the task has any.

python -m textgen_env.assets.recipes.make_prompts --out DIR
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import descriptions, dialogues, reviews, summaries, translations

Row = dict[str, Any]


def _opening(rng: random.Random) -> Row:
    """An opening of a review; it has no references."""
    while True:
        _, _, opening = reviews.sample_opening(rng, want_held_out=True)
        if 3 <= len(opening.split()) <= 8:
            return {"prompt": opening, "references": []}


def _summary(rng: random.Random) -> Row:
    prompt, good, _ = summaries.sample_summary(rng, want_held_out=True)
    return {"prompt": prompt, "references": good}


def _translation(rng: random.Random) -> Row:
    drawn = translations.sample_translation(rng, want_held_out=True)
    return {"prompt": translations.prompt_text(drawn.spanish), "references": drawn.good}


def _description(rng: random.Random) -> Row:
    prompt, texts = descriptions.sample_description(rng, want_held_out=True)
    return {"prompt": prompt, "references": texts}


def _tool_use(kind: str, rng: random.Random) -> Row:
    """A question; its references are the answers after the tool was called, which the other columns are about."""
    question, call, reply, answer = dialogues.sample_dialogue(kind, rng, want_held_out=True).turns
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "references": [answer], "call": call, "reply": reply}


FILES: dict[str, Callable[[random.Random], Row]] = {
    "reviews": _opening,
    "summaries": _summary,
    "translations": _translation,
    "descriptions": _description,
    "calculations": lambda rng: _tool_use("calculation", rng),
    "look-ups": lambda rng: _tool_use("look-up", rng),
}


COUNTS = {"descriptions": 1700, "look-ups": 1000}  # 1 MB; all that can be asked are 1,220 questions


def make_lines(name: str, count: int, seed: int) -> list[str]:
    """Draws ``count`` distinct prompts of one task as JSON lines."""
    rng = random.Random(f"{name}-{seed}")
    lines: dict[str, str] = {}
    while len(lines) < count:
        row = FILES[name](rng)
        lines.setdefault(str(row.get("prompt") or row["messages"]), json.dumps(row, ensure_ascii=False))
    return list(lines.values())


def main() -> None:
    """Reads the arguments and writes one file per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--count", type=int, default=2000, help="most prompts in a file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        lines = make_lines(name, min(args.count, COUNTS.get(name, args.count)), args.seed)
        (args.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} prompts")


if __name__ == "__main__":
    main()
