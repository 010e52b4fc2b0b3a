"""A template expander for seeded probabilistic grammars; no words of any domain live here.

A template is plain text with two kinds of choices: ``[a|b|c]`` takes one of the branches (they may be empty and may
nest), ``{name}`` takes one of the templates that the rules list under that name. Repeating a branch raises its weight.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence

Rules = Mapping[str, Sequence[str]]

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_BRACE = re.compile(r"\{(\w+)\}")
# Vowel letters that do not sound like a vowel keep "a": a one-off, a useful tool, a European town.
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!one|us[eu]|uni|eu)[aeiouAEIOU]|hour|honest)")
_SENTENCE_START = re.compile(r"([.!?] )([a-z])")


def words(text: str) -> list[str]:
    """Splits "a|b|c" into its branches."""
    return text.split("|")


def expand(template: str, rules: Rules, rng: random.Random) -> str:
    """Returns one random expansion of a template, tidied.

    Args:
        template: text with ``[a|b]`` and ``{name}`` choices.
        rules: templates by name.
        rng: where the choices come from.

    Raises:
        KeyError: a ``{name}`` that the rules do not have.
    """
    text = template
    while True:
        if match := _BRACKET.search(text):
            choice = rng.choice(match.group(1).split("|"))
        elif match := _BRACE.search(text):
            choice = rng.choice(rules[match.group(1)])
        else:
            return tidy(text)
        text = text[: match.start()] + choice + text[match.end() :]


def tidy(text: str) -> str:
    """Repairs what gluing breaks: double spaces, a/an, capitals after a full stop."""
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" ([.,!?;])", r"\1", text)
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)


def capitalise(text: str) -> str:
    """Makes the first letter a capital and leaves the rest as it is (unlike ``str.capitalize``)."""
    return text[:1].upper() + text[1:]


def held_out(text: str, share: int = 10) -> bool:
    """Whether a text belongs to the held-out tenth (1/share). A hash of the text decides, so no list must be kept."""
    return zlib.crc32(text.encode()) % share == 0


def invent_name(rng: random.Random, *, feminine: bool = False) -> str:
    """A pronounceable name of two or three syllables that is in no list; feminine ones end in "a"."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 3)))]
    name = "".join(syllables) if feminine else "".join(syllables) + rng.choice("lnrst")
    return capitalise(name[:-1] + "a" if feminine else name)
