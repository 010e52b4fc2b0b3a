"""Texts to score: several hundred pairs of packaged references and seeded perturbations of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from textgen_env.assets import prompt_path


@dataclass(frozen=True)
class Pairs:
    """n completions with n prompts and n lists of references."""

    completions: list[str]
    prompts: list[str]
    references: list[list[str]]

    def first_references(self) -> list[list[str]]:
        return [texts[:1] for texts in self.references]


def packaged(name: str) -> list[dict]:
    return [json.loads(line) for line in prompt_path(name).read_text("utf-8").splitlines()]


def perturbed(text: str, rng: random.Random, words: list[str]) -> str:
    """The text with words dropped, doubled, swapped, replaced and put on new lines."""
    result = []
    for word in text.split():
        kind = rng.random()
        if kind < 0.08:
            continue
        result.append(rng.choice(words) if kind < 0.2 else word)
        if kind > 0.94:
            result.append(word)
        if len(result) > 1 and 0.85 < kind < 0.9:
            result[-1], result[-2] = result[-2], result[-1]
    joiner = rng.choice([" ", " ", "  ", "\n"])
    return joiner.join([" ".join(result[: len(result) // 2]), " ".join(result[len(result) // 2 :])])


def make_pairs() -> Pairs:
    """300 texts near to their references: 100 each of descriptions, summaries and translations."""
    rng = random.Random(7)
    chosen = [row for name in ("descriptions", "summaries", "translations") for row in rng.sample(packaged(name), 100)]
    words = sorted({word for row in chosen for text in row["references"] for word in text.split()})
    completions = [perturbed(rng.choice(row["references"]), rng, words) for row in chosen]
    return Pairs(completions, [row["prompt"] for row in chosen], [row["references"] for row in chosen])


PAIRS = make_pairs()
