"""Draws the training corpus of the language model: which texts, in which shares. Formats belong to their own files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import descriptions, reviews, sources, summaries, translations

SHARES = {"review": 0.52, "real review": 0.08, "summary": 0.14, "translation": 0.15, "verse": 0.01, "description": 0.10}


@dataclass(frozen=True)
class Text:
    """One training text: what is given and what the model writes after it (up to EOS)."""

    prompt: str
    response: str


class Corpus:
    """An endless stream of training texts, and held-out texts of each kind.

    Args:
        modeldata: folder of the R package modeldata.
        sword: SWORD folder with the two Bibles.
    """

    def __init__(self, modeldata: Path, sword: Path) -> None:
        self.real = {
            split: sources.short_reviews(sources.read_food_reviews(modeldata, split))
            for split in ("training", "testing")
        }
        self._real_pools = {
            five_stars: [text for text, great in self.real["training"] if great == five_stars]
            for five_stars in (False, True)
        }
        verses = sources.read_parallel_verses(sword)
        self.verses = [Text(translations.prompt_text(spanish), f" {english}") for spanish, english in verses]

    def draw(self, kind: str, rng: random.Random) -> Text:
        """Draws one training text of a kind in ``SHARES``. Real five-star reviews are drawn as often as others."""
        if kind == "review":
            return Text("", reviews.sample_review(rng).text)
        if kind == "real review":
            return Text("", self.draw_real(rng.random() < 0.5, rng))
        if kind == "verse":
            return rng.choice(self.verses)
        module = {"summary": summaries, "translation": translations, "description": descriptions}[kind]
        return Text(*module.sample_text(rng))

    def draw_real(self, five_stars: bool, rng: random.Random) -> str:
        """Draws a short part of a real training review with five stars, or with fewer."""
        return rng.choice(self._real_pools[five_stars])

    def stream(self, rng: random.Random) -> Iterator[Text]:
        """Draws training texts without end."""
        kinds, weights = list(SHARES), list(SHARES.values())
        while True:
            yield self.draw(rng.choices(kinds, weights)[0], rng)

    def held_out(self, rng: random.Random, count: int) -> dict[str, list[Text]]:
        """Draws ``count`` unseen texts of each kind (verses have no held-out part)."""

        def tasks(sample: Callable[..., tuple[str, list[str]]]) -> list[Text]:
            drawn = (sample(rng, want_held_out=True) for _ in range(count))
            return [Text(prompt, " " + responses[0]) for prompt, responses in drawn]

        own = [reviews.sample_review(rng, want_held_out=True) for _ in range(count)]
        return {
            "review": [Text(review.opening, review.continuation) for review in own],
            "real review": [Text("", text) for text, _ in rng.sample(self.real["testing"], count)],
            "summary": tasks(summaries.sample_summary),
            "translation": tasks(translations.sample_translation),
            "description": tasks(descriptions.sample_description),
        }
