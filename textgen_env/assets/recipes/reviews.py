"""Short reviews with a known sentiment, from a seeded grammar; the words are in lexicon.py.

A review is a neutral opening and a continuation. The kind of the opening says how the continuation must begin:
``clause`` ("… and" → " it was great"), ``verb`` ("The plot of this film" → " is boring"), ``word`` ("… was" →
" delicious") or ``sentence`` ("We stayed two nights." → " The bed was hard.").
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import lexicon
from .grammar import capitalise, expand, held_out

# (kind, opening). {item}, {aspect}, {person}, {time} are filled by domain; domains that do not fit are listed in VERBS.
OPENINGS = (
    ("clause", "{I} {got} [this|the] {item} {time} and"),
    ("clause", "{I} {got} [this|the] {item} for {person} and"),
    ("clause", "{Person} {got} [this|the] {item} {time} and"),
    ("clause", "{Time} {I} {got} [this|the] {item} and"),
    ("clause", "After [reading|hearing] about this {item}, I [must|have to|can] say"),
    ("clause", "I [must|have to|want to] say that"),
    ("clause", "When it comes to the {aspect},"),
    ("verb", "This {item}"),
    ("verb", "The {aspect} of [this|the] {item}"),
    ("verb", "[For me,|In my opinion,|To be honest,|In short,|I think|I feel] the {aspect}"),
    ("verb", "[For me,|In my opinion,|To be honest,|In short,|I think] this {item}"),
    ("verb", "The {item} [that|which] {I} {got} {time}"),
    ("verb", "{I} {got} this {item} {time}. The {aspect}"),
    ("word", "{I} {found} the {aspect} of this {item}"),
    ("word", "{I} thought [this|the] {item} was"),
    ("word", "The {aspect} [is|was]"),
    ("word", "The {item} [that|which] {person} {got} was"),
    ("word", "Compared to other ones, this {item} is"),
    ("word", "The {item} and its {aspect} were"),
    ("sentence", "{I} {got} [this|the] {item} {time}."),
    ("sentence", "{Person} {got} [this|the] {item} {time}."),
    ("sentence", "{I} {got} [this|the] {item} for {person}."),
    ("sentence", "A few words about the {aspect}."),
    ("sentence", "This is my [first|second|third] {item}."),
    ("sentence", "Here is my review of the {item}."),
    ("sentence", "So this was the {item}."),
)
GOT = {
    "food": "ordered|tried|bought|tasted|picked up",
    "restaurant": "visited|tried|went to|booked|stopped at",
    "film": "watched|saw|rented|streamed",
    "book": "read|bought|finished|borrowed|started",
    "hotel": "booked|stayed at|visited|chose",
    "gadget": "bought|ordered|tried|unpacked|got",
}
CLAUSES = {
    "good": (
        "it [was|is] {so_good}.|I [really|truly||] [love|loved|like|liked|enjoyed] it.|we were [very|so||"
        "] [happy|pleased|impressed].|"
        "the {aspect} [was|is] {good}.|it [was|is] not {bad_word} at all.|I was [pleasantly surprised|"
        "not disappointed].|it [was|is] {good_word} and {good_word}."
    ),
    "bad": (
        "it [was|is] {so_bad}.|I [really|truly||] [hate|hated|dislike|disliked|regret] it.|we were [very|so||"
        "] [unhappy|disappointed|angry].|"
        "the {aspect} [was|is] {bad}.|it [was|is] not {good_word} at all.|I was [badly disappointed|"
        "not impressed].|it [was|is] {bad_word} and {bad_word}."
    ),
}
VERBS = {
    "good": (
        "[is|was] {so_good}.|[is|was] {good_word} and {good_word}.|[is|was] not {bad_word} at all.|"
        "never [let me down|disappoints].|"
        "exceeded [my|our] expectations.|made [me|us|everyone] [very||] happy.|deserves five stars.|[is|"
        "was] what I [like|liked] best."
    ),
    "bad": (
        "[is|was] {so_bad}.|[is|was] {bad_word} and {bad_word}.|[is|was] not {good_word} at all.|[let me down|"
        "disappoints].|"
        "did not meet [my|our] expectations.|made [me|us|everyone] [very||] angry.|deserves no stars.|[is|"
        "was] what I [like|liked] least."
    ),
}
WORDS = {
    "good": "{so_good}.|{good_word} and {good_word}.|{good}, and I mean it.|not {bad_word} at all.|"
    "{good} from start to finish.",
    "bad": "{so_bad}.|{bad_word} and {bad_word}.|{bad}, and I mean it.|not {good_word} at all.|"
    "{bad} from start to finish.",
}
TURNS = "But|However,|Still,|On the other hand,"
# Polarity plans and their labels: what the sentences say in turn, and P(positive) of the whole.
PLANS = (
    (0.45, ("good",), 1.0),
    (0.45, ("bad",), 0.0),
    (0.03, ("good", "bad"), 0.4),
    (0.03, ("bad", "good"), 0.6),
    (0.04, ("neutral",), 0.5),
)


@dataclass(frozen=True)
class Review:
    """A review: neutral opening, continuation (it begins with a space), and P(positive) in [0, 1]."""

    opening: str
    continuation: str
    label: float

    @property
    def text(self) -> str:
        return self.opening + self.continuation


def _graded(adjectives: list[str]) -> list[str]:
    """ "very fresh", "really fresh" … for the adjectives that can be graded ("very superb" cannot)."""
    gradable = [word for word in adjectives if " " not in word and word not in lexicon.EXTREME.split("|")]
    return [f"[very|really|so|truly] {word}" for word in gradable]


def _rules(domain: str) -> dict[str, list[str]]:
    """The grammar's rules for one domain; adjectives of the domain count as much as the general ones."""
    people = lexicon.PEOPLE.split("|")
    times = lexicon.TIMES.split("|")
    good = lexicon.GOOD.split("|") + 2 * lexicon.DOMAIN_GOOD[domain].split("|")
    bad = lexicon.BAD.split("|") + 2 * lexicon.DOMAIN_BAD[domain].split("|")
    return {
        "item": lexicon.ITEMS[domain].split("|"),
        "aspect": lexicon.ASPECTS[domain].split("|"),
        "person": people,
        "Person": [capitalise(person) for person in people],
        "time": times,
        "Time": [capitalise(time) for time in times],
        "I": ["I", "I", "we"],
        "got": GOT[domain].split("|"),
        "found": ["found", "consider", "would call"],
        "dish": lexicon.DISHES.split("|"),
        "good": good,
        "bad": bad,
        "good_word": [word for word in good if " " not in word],
        "bad_word": [word for word in bad if " " not in word],
        "so_good": good + _graded(good),
        "so_bad": bad + _graded(bad),
    }


RULES = {domain: _rules(domain) for domain in lexicon.ITEMS}


def _split(branches: str) -> list[str]:
    """Splits at the "|" outside of brackets."""
    parts, depth = [""], 0
    for char in branches:
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


_STARTS = {
    kind: {mood: _split(text) for mood, text in table.items()}
    for kind, table in (("clause", CLAUSES), ("verb", VERBS), ("word", WORDS))
}
for _kind, _neutral in (
    ("clause", ["it is okay.", "it was about average.", "there is not much to say about it."]),
    ("verb", ["is okay.", "was about average.", "is neither good nor bad.", "does the job."]),
    ("word", ["okay.", "about average.", "neither good nor bad.", "what you would expect."]),
):
    _STARTS[_kind]["neutral"] = _neutral
_SENTENCES = {
    "good": {d: _split(lexicon.GOOD_SENTENCES["any"]) + 2 * _split(lexicon.GOOD_SENTENCES[d]) for d in RULES},
    "bad": {d: _split(lexicon.BAD_SENTENCES["any"]) + 2 * _split(lexicon.BAD_SENTENCES[d]) for d in RULES},
    "neutral": {d: _split(lexicon.NEUTRAL_SENTENCES) for d in RULES},
}


def sample_opening(rng: random.Random, *, want_held_out: bool = False) -> tuple[str, str, str]:
    """Draws (domain, kind, opening), from the held-out tenth of all openings or from the rest."""
    while True:
        domain = rng.choice(list(RULES))
        kind, template = rng.choice(OPENINGS)
        opening = capitalise(expand(template, RULES[domain], rng))
        if held_out(opening) == want_held_out:
            return domain, kind, opening


def sample_sentence(mood: str, domain: str, rng: random.Random, *, of_domain_alone: bool = False) -> str:
    """One sentence of a mood: a statement about an aspect, or a verdict (perhaps one that fits this domain alone)."""
    if of_domain_alone:
        template = rng.choice(_split((lexicon.GOOD_SENTENCES if mood == "good" else lexicon.BAD_SENTENCES)[domain]))
    elif mood != "neutral" and rng.random() < 0.35:
        template = f"The {{aspect}} [is|was] {{so_{mood}}}."
    else:
        template = rng.choice(_SENTENCES[mood][domain])
    return capitalise(expand(template, RULES[domain], rng))


def _continue(domain: str, kind: str, moods: tuple[str, ...], rng: random.Random) -> str:
    """Writes the continuation of an opening: one start, up to two more sentences, a turn where the mood changes."""
    if kind == "sentence":
        parts = [sample_sentence(moods[0], domain, rng)]
    else:
        parts = [expand(rng.choice(_STARTS[kind][moods[0]]), RULES[domain], rng)]
    for mood in moods[1:]:
        follow = sample_sentence(mood, domain, rng)
        follow = follow if follow.startswith("I ") else follow[0].lower() + follow[1:]
        parts.append(f"{rng.choice(TURNS.split('|'))} {follow}")
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2)) if len(moods) == 1 else 0):
        sentence = sample_sentence(moods[-1], domain, rng)
        if sentence not in parts:
            parts.append(sentence)
    return " " + " ".join(parts)


def sample_review(rng: random.Random, *, want_held_out: bool = False) -> Review:
    """Draws a review with its label; the opening says nothing about the label."""
    domain, kind, opening = sample_opening(rng, want_held_out=want_held_out)
    _, moods, label = rng.choices(PLANS, weights=[plan[0] for plan in PLANS])[0]
    return Review(opening, _continue(domain, kind, moods, rng), label)
