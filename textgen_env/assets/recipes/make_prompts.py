"""Writes the prompt files: held-out prompts of the four tasks, with references where the task has any.

python -m textgen_env.assets.recipes.make_prompts --tokenizer DIR --out DIR
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from . import descriptions, reviews, summaries, translations

Sampler = Callable[[random.Random], tuple[str, list[str]]]


def _opening(rng: random.Random) -> tuple[str, list[str]]:
    """A held-out opening of a review; it has no references."""
    while True:
        _, _, opening = reviews.sample_opening(rng, want_held_out=True)
        if 3 <= len(opening.split()) <= 8:
            return opening, []


# file: (sampler, whether all responses are references or the first alone, most tokens of a prompt)
FILES: dict[str, tuple[Sampler, bool, int]] = {
    "reviews": (_opening, True, 64),
    "summaries": (lambda rng: summaries.sample_summary(rng, want_held_out=True), False, 128),
    "translations": (lambda rng: translations.sample_translation(rng, want_held_out=True), False, 64),
    "descriptions": (lambda rng: descriptions.sample_description(rng, want_held_out=True), True, 64),
}


def make_lines(name: str, count: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Draws ``count`` distinct prompts of one task as JSON lines, none longer than the task allows."""
    sample, all_are_references, limit = FILES[name]
    rng = random.Random(f"{name}-{seed}")
    lines: dict[str, str] = {}
    while len(lines) < count:
        prompt, responses = sample(rng)
        if len(tokenizer(prompt).input_ids) > limit:
            continue
        references = responses if all_are_references else responses[:1]
        lines.setdefault(prompt, json.dumps({"prompt": prompt, "references": references}, ensure_ascii=False))
    return list(lines.values())


def main() -> None:
    """Reads the arguments and writes one file per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--count", type=int, default=400, help="prompts in each file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        lines = make_lines(name, args.count, tokenizer, args.seed)
        (args.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} prompts")


if __name__ == "__main__":
    main()
