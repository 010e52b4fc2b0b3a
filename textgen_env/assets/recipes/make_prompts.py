"""Writes the prompt files: held-out prompts of each task, with references where the task has any.

python -m textgen_env.assets.recipes.make_prompts --out DIR
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
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


def _calculation(rng: random.Random) -> Row:
    return _tool_use(dialogues.sample_dialogue("calculation", rng, want_held_out=True))


def _tool_use(dialogue: dialogues.Dialogue) -> Row:
    """A question; its references are the answers after the tool was called, which the other columns are about."""
    question, call, reply, answer = dialogue.turns
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "references": [answer], "call": call, "reply": reply}


def _talk(rng: random.Random) -> Row:
    """What the user says first, and then; the references answer the latter.

    There are 940 of them in all, so that those which models were trained on are among them.
    """
    said, _, asked, answer = dialogues.KINDS["talk"](rng).turns
    return {"messages": [{"role": "user", "content": said}], "references": [answer], "script": [asked]}


def look_ups(world: Sequence[dialogues.Entity], rng: random.Random) -> list[Row]:
    """All that can be asked about a world, in random order."""
    rows = [_tool_use(dialogue) for entity in world for dialogue in entity.dialogues]
    rng.shuffle(rows)
    return rows


FILES: dict[str, Callable[[random.Random], Row]] = {
    "reviews": _opening,
    "summaries": _summary,
    "translations": _translation,
    "descriptions": _description,
    "calculations": _calculation,
    "talks": _talk,
}


COUNTS = {"descriptions": 1700, "talks": 900}  # 1 MB; all but a few of all there are


def make_lines(name: str, count: int, seed: int) -> list[str]:
    """Draws ``count`` distinct prompts of one task as JSON lines."""
    rng = random.Random(f"{name}-{seed}")
    lines: dict[str, str] = {}
    while len(lines) < count:
        row = FILES[name](rng)
        lines.setdefault(str(row.get("prompt") or row["messages"]), json.dumps(row, ensure_ascii=False))
    return list(lines.values())


def main() -> None:
    """Reads the arguments and writes one file per task, and the entries that look-ups are about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the folders prompts/ and documents/")
    parser.add_argument("--count", type=int, default=2000, help="most prompts in a file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    args = parser.parse_args()
    for name in FILES:
        _write(args.out / "prompts" / name, make_lines(name, min(args.count, COUNTS.get(name, args.count)), args.seed))
    rng = random.Random(f"look-ups-{args.seed}")
    world = dialogues.sample_world(rng)
    _write(args.out / "prompts" / "look-ups", [json.dumps(row) for row in look_ups(world, rng)])
    entries = [json.dumps({"title": entity.name, "text": entity.entry}) for entity in world]
    _write(args.out / "documents" / "entries", entries)


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
