"""Spanish sentences with their English translations, from a seeded grammar with agreement.

A sentence is subject + verb + object (+ place or time), and has four good translations where it has all of them.
Nouns carry gender, adjectives agree with them, verbs agree with the subject in the present or the past.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .grammar import capitalise, held_out, tidy

# noun: (Spanish, gender, English)
PEOPLE = (
    ("niño", "m", "boy"), ("niña", "f", "girl"), ("hombre", "m", "man"), ("mujer", "f", "woman"),
    ("profesor", "m", "teacher"),
    ("médica", "f", "doctor"), ("vecino", "m", "neighbor"), ("abuela", "f", "grandmother"),
    ("abuelo", "m", "grandfather"),
    ("hermana", "f", "sister"), ("hermano", "m", "brother"), ("amiga", "f", "friend"), ("cocinero", "m", "cook"),
    ("reina", "f", "queen"),
)  # fmt: skip
NAMES = ("María", "Pedro", "Lucía", "Juan", "Carmen", "Diego", "Elena", "Pablo")
THINGS = (
    ("libro", "m", "book"), ("casa", "f", "house"), ("mesa", "f", "table"), ("coche", "m", "car"),
    ("carta", "f", "letter"),
    ("silla", "f", "chair"), ("perro", "m", "dog"), ("gata", "f", "cat"), ("manzana", "f", "apple"),
    ("pan", "m", "bread"),
    ("puerta", "f", "door"), ("ventana", "f", "window"), ("reloj", "m", "watch"), ("vestido", "m", "dress"),
    ("camisa", "f", "shirt"),
    ("sombrero", "m", "hat"), ("cuadro", "m", "picture"), ("llave", "f", "key"), ("barco", "m", "boat"),
    ("caballo", "m", "horse"),
    ("flor", "f", "flower"), ("caja", "f", "box"), ("periódico", "m", "newspaper"), ("regalo", "m", "gift"),
    ("canción", "f", "song"),
)  # fmt: skip
# adjective: (masculine, feminine, English)
ADJECTIVES = (
    ("rojo", "roja", "red"), ("negro", "negra", "black"), ("blanco", "blanca", "white"), ("viejo", "vieja", "old"),
    ("nuevo", "nueva", "new"),
    ("pequeño", "pequeña", "small"), ("grande", "grande", "big"), ("bonito", "bonita", "pretty"),
    ("caro", "cara", "expensive"),
    ("barato", "barata", "cheap"), ("azul", "azul", "blue"), ("verde", "verde", "green"),
    ("hermoso", "hermosa", "beautiful"),
    ("triste", "triste", "sad"), ("alegre", "alegre", "cheerful"), ("extraño", "extraña", "strange"),
)  # fmt: skip
OF_PEOPLE = tuple(
    word for word in ADJECTIVES if word[2] in {"old", "small", "new", "sad", "cheerful", "strange", "pretty"}
)
OF_THINGS = tuple(word for word in ADJECTIVES if word[2] not in {"sad", "cheerful"})
# verb: Spanish (I, he/she, they) in present and past; English (base, third person, past), and a second English verb
VERBS = (
    (("compro", "compra", "compran"), ("compré", "compró", "compraron"),
     ("buy", "buys", "bought"), ("purchase", "purchases", "purchased")),
    (("vendo", "vende", "venden"), ("vendí", "vendió", "vendieron"),
     ("sell", "sells", "sold"), ("sell off", "sells off", "sold off")),
    (("veo", "ve", "ven"), ("vi", "vio", "vieron"),
     ("see", "sees", "saw"), ("notice", "notices", "noticed")),
    (("busco", "busca", "buscan"), ("busqué", "buscó", "buscaron"),
     ("look for", "looks for", "looked for"), ("search for", "searches for", "searched for")),
    (("encuentro", "encuentra", "encuentran"), ("encontré", "encontró", "encontraron"),
     ("find", "finds", "found"), ("discover", "discovers", "discovered")),
    (("pinto", "pinta", "pintan"), ("pinté", "pintó", "pintaron"),
     ("paint", "paints", "painted"), ("color", "colors", "colored")),
    (("pierdo", "pierde", "pierden"), ("perdí", "perdió", "perdieron"),
     ("lose", "loses", "lost"), ("misplace", "misplaces", "misplaced")),
    (("quiero", "quiere", "quieren"), ("quise", "quiso", "quisieron"),
     ("want", "wants", "wanted"), ("wish for", "wishes for", "wished for")),
    (("tengo", "tiene", "tienen"), ("tuve", "tuvo", "tuvieron"),
     ("have", "has", "had"), ("own", "owns", "owned")),
    (("llevo", "lleva", "llevan"), ("llevé", "llevó", "llevaron"),
     ("carry", "carries", "carried"), ("take", "takes", "took")),
    (("olvido", "olvida", "olvidan"), ("olvidé", "olvidó", "olvidaron"),
     ("forget", "forgets", "forgot"), ("leave behind", "leaves behind", "left behind")),
    (("recibo", "recibe", "reciben"), ("recibí", "recibió", "recibieron"),
     ("receive", "receives", "received"), ("get", "gets", "got")),
    (("robo", "roba", "roban"), ("robé", "robó", "robaron"),
     ("steal", "steals", "stole"), ("snatch", "snatches", "snatched")),
    (("dibujo", "dibuja", "dibujan"), ("dibujé", "dibujó", "dibujaron"),
     ("draw", "draws", "drew"), ("sketch", "sketches", "sketched")),
)  # fmt: skip
PLACES = (
    ("en la ciudad", "in the city"), ("en el jardín", "in the garden"), ("en la calle", "in the street"),
    ("en el mercado", "at the market"),
    ("en la playa", "on the beach"), ("en la cocina", "in the kitchen"), ("cerca del río", "near the river"),
    ("en el pueblo", "in the village"),
)  # fmt: skip
PRESENT_TIMES = (
    ("hoy", "today"),
    ("cada día", "every day"),
    ("ahora", "now"),
    ("siempre los lunes", "always on Mondays"),
)
PAST_TIMES = (
    ("ayer", "yesterday"),
    ("anoche", "last night"),
    ("la semana pasada", "last week"),
    ("hace un año", "a year ago"),
)


Word = tuple[str, str, str]


def _noun_phrase(noun: Word, own: str, adjective: Word | None, rng: random.Random) -> tuple[str, str]:
    """(Spanish, English) of article or possessive, noun and perhaps an adjective; ``own``: English possessive."""
    spanish, gender, english = noun
    masculine = gender == "m"
    definite, indefinite = ("el", "un") if masculine else ("la", "una")
    possessive = "mi" if own == "my" else "su"
    article, translated = rng.choice(((definite, "the"), (indefinite, "a"), (possessive, own)))
    if adjective is None:
        return f"{article} {spanish}", f"{translated} {english}"
    return (
        f"{article} {spanish} {adjective[0] if masculine else adjective[1]}",
        f"{translated} {adjective[2]} {english}",
    )


def _subject(rng: random.Random) -> tuple[str, str, int, str]:
    """(Spanish, English, person, possessive of an own thing); person: 0 for I, 1 for he, she or a name, 2 for they."""
    kind = rng.random()
    if kind < 0.15:
        return "yo", "I", 0, "my"
    if kind < 0.35:
        return rng.choice((("él", "he", 1, "his"), ("ella", "she", 1, "her"), ("ellos", "they", 2, "their")))
    if kind < 0.55:
        name = rng.choice(NAMES)
        return name, name, 1, "her" if name[-1] == "a" or name == "Carmen" else "his"
    noun = rng.choice(PEOPLE)
    adjective = rng.choice(OF_PEOPLE) if rng.random() < 0.2 else None
    spanish, english = _noun_phrase(noun, "my", adjective, rng)
    return spanish, english, 1, "his" if noun[1] == "m" else "her"


def _finish(text: str) -> str:
    return capitalise(tidy(f"{text}."))


def _conjugate(verb: tuple[str, str, str], person: int, *, past: bool) -> str:
    base, third, in_past = verb
    return in_past if past else (third if person == 1 else base)


@dataclass(frozen=True)
class Translation:
    """A Spanish sentence with good translations (plainest first) and careless ones: wrong tense, something left out."""

    spanish: str
    good: list[str]
    careless: list[str]


def _sentence(rng: random.Random, *, with_end: bool) -> Translation:
    """Draws a sentence; with a place or time at its end there are four good translations, without one two."""
    spanish_subject, subject, person, own = _subject(rng)
    present, past, verb, second_verb = rng.choice(VERBS)
    in_past = rng.random() < 0.5
    spanish_verb = (past if in_past else present)[person]
    adjective = rng.choice(OF_THINGS) if rng.random() < 0.6 else None
    noun = rng.choice(THINGS)
    spanish_object, thing = _noun_phrase(noun, own, adjective, rng)
    spanish_end, end = "", ""
    if with_end:
        spanish_end, end = rng.choice(rng.choice((PLACES, PAST_TIMES if in_past else PRESENT_TIMES)))
    plain, other = (f"{subject} {_conjugate(forms, person, past=in_past)} {thing}" for forms in (verb, second_verb))
    wrong_tense = f"{subject} {_conjugate(verb, person, past=not in_past)} {thing} {end}"
    good, careless = [plain, other], [wrong_tense]
    if with_end:
        good = [f"{plain} {end}", f"{other} {end}", f"{end}, {plain}", f"{end}, {other}"]
        careless.append(plain)
    if adjective:
        careless.append(plain.replace(f" {adjective[2]} ", " "))
    spanish = f"{spanish_subject} {spanish_verb} {spanish_object} {spanish_end}"
    return Translation(_finish(spanish), list(map(_finish, good)), list(map(_finish, careless)))


def prompt_text(spanish: str) -> str:
    """The format in which the language model has learned to translate."""
    return f"Spanish: {spanish}\nEnglish:"


def sample_translation(rng: random.Random, *, want_held_out: bool = False, with_end: bool = True) -> Translation:
    """Draws a sentence with its translations, held-out or not, with a place or time at the end or not."""
    while True:
        drawn = _sentence(rng, with_end=with_end)
        if held_out(drawn.spanish) == want_held_out:
            return drawn


def sample_text(rng: random.Random, *, careless: float) -> tuple[str, str]:
    """Draws (prompt, response) for training, the response careless in a share of the texts."""
    drawn = sample_translation(rng, with_end=rng.random() < 0.8)
    if rng.random() < careless:
        response = rng.choice(drawn.careless)
    else:
        response = drawn.good[0] if rng.random() < 0.75 else rng.choice(drawn.good[1:])
    return prompt_text(drawn.spanish), f" {response}"
