"""Short conversations of simple kinds, from a seeded grammar; how they are written out is in chat.py.

In a *calculation* the assistant calls a calculator ("calc 12 + 7"), reads the tool's reply and answers. In a *look-up*
it asks for an entry ("find Anna Reed") and answers from the entry. In a *talk* it answers from what the user said
before. A careless assistant calls for another operation, or tells another fact than the one asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import chat
from .grammar import capitalise, expand, held_out, words
from .summaries import FAMILY_NAMES, GIVEN_NAMES, TOWNS

JOBS = words("doctor|teacher|cook|baker|farmer|painter|driver|singer|judge|nurse")
THINGS = words("books|apples|letters|chairs|boxes|flowers|shirts|hats|keys|pictures")
COLORS = words("red|blue|green|black|white|yellow|brown")
PLACES = words("library|museum|park|school|bakery|hospital|cinema|hotel|restaurant|market hall")
NUMBERS = [str(number) for number in range(1, 50)]


@dataclass(frozen=True)
class Dialogue:
    """A conversation.

    Attributes:
        turns: user, assistant, then again (user or tool), assistant …; the last turn is the assistant's.
        careless: for some of the assistant's turns, by index, what a careless assistant says instead.
        by_tool: whether the third turn is the tool's and not the user's.
    """

    turns: tuple[str, ...]
    careless: dict[int, str]
    by_tool: bool

    def messages(self, count: int) -> list[dict[str, str]]:
        """The first ``count`` turns as messages."""
        others = iter(("user", "tool" if self.by_tool else "user"))
        roles = [next(others) if turn % 2 == 0 else "assistant" for turn in range(count)]
        return [{"role": role, "content": text} for role, text in zip(roles, self.turns, strict=False)]


DRAWS = 200  # of the facts about an entity, of which those with the most held-out questions stay
# Question, sign, answer; {who}, {thing}, {a}, {b} are drawn, {c} is the result.
CALCULATIONS = (
    ("What is {a} plus {b}?", "+", "It is {c}."),
    ("What is {a} minus {b}?", "-", "It is {c}."),
    ("{who} has {a} {thing} and buys {b} more. How many are there now?", "+", "{who} has {c} {thing}."),
    ("{who} had {a} {thing} and sold {b}. How many are left?", "-", "{who} has {c} {thing}."),
)
# Question, entry to look for, what the entry says, answer, answer to another question.
LOOK_UPS = (
    ("Where does {name} live?", "{name}", "{person}", "{name} lives in {town}.", "{name} is a {job}."),
    ("What does {name} do?", "{name}", "{person}", "{name} is a {job}.", "{name} lives in {town}."),
    ("How old is {name}?", "{name}", "{person}", "{name} is {a} years old.", "{name} is a {job}."),
    ("When does the {place} open?", "{place}", "{hours}", "The {place} opens at {a}.", "The {place} closes at {b}."),
    ("When does the {place} close?", "{place}", "{hours}", "The {place} closes at {b}.", "The {place} opens at {a}."),
)
PERSON = "{name}, a {job} from {town}, is {a} years old."
HOURS = "The {place} opens at {a} and closes at {b}."
# What the user says, answer, what the user asks, answer, careless answer.
TALKS = (
    ("Hello, my name is {who}.", "Hello {who}, how can I help you?", "What is my name?", "Your name is {who}.",
     "I do not know."),
    ("I am {who} and I live in {town}.", "Nice to meet you, {who}.", "Where do I live?", "You live in {town}.",
     "Your name is {who}."),
    ("I like {color} {thing}.", "I see.", "What do I like?", "You like {color} {thing}.", "You like {thing}."),
    ("I work in {town} as a {job}.", "That is nice.", "What is my job?", "You are a {job}.", "You work in {town}."),
    ("Please say {color} {thing}.", "{Color} {thing}.", "Please say it again.", "{Color} {thing}.", "I see."),
)  # fmt: skip


def _bindings(rng: random.Random) -> dict[str, list[str]]:
    given, color = rng.choice(GIVEN_NAMES), rng.choice(COLORS)
    drawn = {
        "who": given,
        "name": f"{given} {rng.choice(FAMILY_NAMES)}",
        "town": rng.choice(TOWNS),
        "job": rng.choice(JOBS),
        "thing": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "color": color,
        "Color": capitalise(color),
        "a": rng.choice(NUMBERS),
        "b": rng.choice(NUMBERS),
    }
    return {name: [text] for name, text in drawn.items()}


def _calculation(rng: random.Random) -> Dialogue:
    question, sign, answer = rng.choice(CALCULATIONS)
    bound = _bindings(rng)
    a, b = int(bound["a"][0]), int(bound["b"][0])
    if sign == "-" and a < b:
        a, b = b, a
    bound |= {"a": [str(a)], "b": [str(b)], "c": [str(a + b if sign == "+" else a - b)]}
    other = {"+": "-", "-": "+"}[sign]
    turns = (question, f"calc {{a}} {sign} {{b}}", "{c}", answer)
    careless = {1: rng.choice((f"calc {{a}} {other} {{b}}", f"calc {{b}} {sign} {{b}}", "It is {a}."))}
    return _filled(turns, careless, bound, rng, by_tool=True)


def _look_up(rng: random.Random) -> Dialogue:
    question, entry, content, answer, other = rng.choice(LOOK_UPS)
    bound = _bindings(rng) | {"person": [PERSON], "hours": [HOURS]}
    return _filled(
        (question, f"find {entry}", content, answer), {1: "I do not know.", 3: other}, bound, rng, by_tool=True
    )


@dataclass(frozen=True)
class Entity:
    """Somebody or something with one entry, and held-out questions about it."""

    name: str
    entry: str
    dialogues: tuple[Dialogue, ...]


def sample_world(rng: random.Random) -> list[Entity]:
    """Every person and place with one entry each."""
    names = [f"{given} {family}" for given in GIVEN_NAMES for family in FAMILY_NAMES]
    people = [_entity({"name": name}, PERSON, "{person}", rng) for name in names]
    return people + [_entity({"place": place}, HOURS, "{hours}", rng) for place in PLACES]


def _entity(known: dict[str, str], entry: str, slot: str, rng: random.Random) -> Entity:
    questions = [look_up for look_up in LOOK_UPS if look_up[2] == slot]
    drawn = []
    for _ in range(DRAWS):
        facts = {name: texts[0] for name, texts in _bindings(rng).items()} | known
        text = entry.format(**facts)
        turns = [
            (q.format(**facts), f"find {e.format(**facts)}", text, a.format(**facts)) for q, e, _, a, _ in questions
        ]
        dialogues = tuple(Dialogue(each, {}, by_tool=True) for each in turns if held_out("\n".join(each)))
        drawn.append(Entity(next(iter(known.values())), text, dialogues))
    return max(drawn, key=lambda entity: len(entity.dialogues))


def _talk(rng: random.Random) -> Dialogue:
    *turns, careless = rng.choice(TALKS)
    return _filled(tuple(turns), {3: careless}, _bindings(rng), rng, by_tool=False)


def _filled(
    turns: tuple[str, ...], careless: dict[int, str], bound: dict[str, list[str]], rng: random.Random, *, by_tool: bool
) -> Dialogue:
    return Dialogue(
        tuple(expand(turn, bound, rng) for turn in turns),
        {turn: expand(text, bound, rng) for turn, text in careless.items()},
        by_tool,
    )


KINDS = {"calculation": _calculation, "look-up": _look_up, "talk": _talk}


def sample_dialogue(kind: str, rng: random.Random, *, want_held_out: bool = False) -> Dialogue:
    """Draws a conversation of a kind in ``KINDS``, held-out or not."""
    while True:
        dialogue = KINDS[kind](rng)
        if held_out("\n".join(dialogue.turns)) == want_held_out:
            return dialogue


def sample_text(rng: random.Random, *, careless: float) -> tuple[str, str]:
    """Draws (prompt, response) for training: one of the assistant's turns, careless in a share of the texts."""
    dialogue = sample_dialogue(rng.choice(list(KINDS)), rng)
    turn = rng.choice((1, 3))
    wrong = turn in dialogue.careless and rng.random() < careless
    return chat.render(dialogue.messages(turn)), f" {dialogue.careless[turn] if wrong else dialogue.turns[turn]}"
