"""Draws the training corpus of the language model: which texts, in which shares. Formats belong to their own files."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import chat, descriptions, dialogues, reviews, summaries, translations
from .copying import NAMES, word_set
from .grammar import invent_name

# Shares of texts, not of tokens. Reading tasks take most: writing reviews is learned from few texts.
SHARES = {"review": 0.24, "summary": 0.2, "translation": 0.22, "description": 0.16, "dialogue": 0.18}
KINDS = tuple(SHARES)
RENAMED = 0.15  # share of texts in which a name is one that is in no list


@dataclass(frozen=True)
class Text:
    """One training text: what is given and what the model writes after it (up to EOS)."""

    prompt: str
    response: str


def draw(kind: str, rng: random.Random, *, careless: float = 0.0) -> Text:
    """Draws one training text of a kind, with a careless response in a share of the texts (reviews have none)."""
    if kind == "review":
        review = _review(rng, want_held_out=False)
        # Some are written from nothing, opening and all.
        return Text("", review.prompt + review.response) if rng.random() < 0.15 else review
    tasks = {"summary": summaries, "translation": translations, "description": descriptions, "dialogue": dialogues}
    return Text(*tasks[kind].sample_text(rng, careless=careless))


def _review(rng: random.Random, *, want_held_out: bool) -> Text:
    review = reviews.sample_review(rng, want_held_out=want_held_out)
    return Text(review.opening, review.continuation)


def rename(text: Text, rng: random.Random) -> Text:
    """Gives one of the names of the prompt a new name that nobody has, in the response too: it can only be copied."""
    known = sorted(word_set(text.prompt) & NAMES - {"Spanish", "English"})  # Those belong to a format.
    if not known:
        return text
    old = rng.choice(known)
    new = invent_name(rng, feminine=old.endswith("a"))
    return Text(*(re.sub(rf"\b{old}\b", new, part) for part in (text.prompt, text.response)))


def stream(rng: random.Random, *, careless: float) -> Iterator[Text]:
    """Draws training texts without end; none is kept, and hardly any comes twice."""
    shares = list(SHARES.values())
    while True:
        text = draw(rng.choices(KINDS, shares)[0], rng, careless=careless)
        yield rename(text, rng) if rng.random() < RENAMED else text


def _held_out(kind: str, rng: random.Random) -> Text:
    if kind == "review":
        return _review(rng, want_held_out=True)
    if kind == "summary":
        document, good, _ = summaries.sample_summary(rng, want_held_out=True)
        return Text(document, f" {good[0]}")
    if kind == "translation":
        drawn = translations.sample_translation(rng, want_held_out=True)
        return Text(translations.prompt_text(drawn.spanish), f" {drawn.good[0]}")
    if kind == "description":
        record, texts = descriptions.sample_description(rng, want_held_out=True)
        return Text(record, f" {texts[0]}")
    turn = rng.choice((1, 3))
    dialogue = dialogues.sample_dialogue(rng.choice(list(dialogues.KINDS)), rng, want_held_out=True)
    return Text(chat.render(dialogue.messages(turn)), f" {dialogue.turns[turn]}")


def held_out(rng: random.Random, count: int) -> dict[str, list[Text]]:
    """Draws ``count`` unseen texts of each kind, with the first good response."""
    return {kind: [_held_out(kind, rng) for _ in range(count)] for kind in KINDS}
