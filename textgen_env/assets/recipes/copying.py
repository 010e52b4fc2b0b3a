"""How much of what a good answer takes over from its prompt an answer has: names, numbers, and nouns and adjectives.

A language model that writes well but does not read scores near the chance of a lucky guess here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from . import descriptions, summaries, translations

_WORD = re.compile(r"\w+")


def word_set(text: str) -> set[str]:
    """The distinct words of a text, as they are written."""
    return set(_WORD.findall(text))


def _words_of(texts: Collection[str]) -> frozenset[str]:
    return frozenset(word for text in texts for word in word_set(text))


NAMES = _words_of(
    [
        *summaries.TOWNS, *summaries.GIVEN_NAMES, *summaries.FAMILY_NAMES, *translations.NAMES,
        *descriptions.FIRST, *descriptions.SECOND,
        *(food for food in descriptions.FIELDS["food"] if food[0].isupper()),
    ]
)  # fmt: skip
_NUMBER_WORDS = (
    "one two three four five six eight nine ten twelve fifteen eighteen twenty forty fifty sixty seventy eighty ninety "
    "hundred"
)
NUMBERS = _words_of([_NUMBER_WORDS, *map(str, range(100))])
_SLOTS = (choice for slots, *_ in summaries.EVENTS for choices in slots.values() for choice in choices.split("|"))
NOUNS = (
    _words_of(
        [
            *_SLOTS, *descriptions.FIELDS["type"], *descriptions.FIELDS["area"],
            *(english for *_, english in (*translations.PEOPLE, *translations.THINGS, *translations.ADJECTIVES)),
        ]
    )
    - NAMES - NUMBERS - word_set("a an the in at by to of old too many much not is it few people cost safe use near")
)  # fmt: skip


def copied_share(answer: str, references: Sequence[str], wanted: Collection[str]) -> float | None:
    """Of the wanted words that all references have, the share that the answer has; None where they have none."""
    needed = set.intersection(*map(word_set, references)) & set(wanted)
    return len(needed & word_set(answer)) / len(needed) if needed else None


def invented_share(answer: str, prompt: str, wanted: Collection[str] = NAMES | NUMBERS) -> float | None:
    """Of the names and numbers that the answer has, the share that stands nowhere in the prompt; None without any."""
    said = word_set(answer) & set(wanted)
    return len(said - word_set(prompt)) / len(said) if said else None
