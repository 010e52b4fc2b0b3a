"""Spanish sentences with their English translations, from a seeded grammar with agreement.

A sentence is subject + verb + object (+ place or time). Nouns carry gender, adjectives agree with them, verbs agree
with the subject in the present or the past.
"""

from __future__ import annotations

import random

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
# verb: Spanish (I, he/she, they) in present and past; English (base, third person, past)
VERBS = (
    (("compro", "compra", "compran"), ("compré", "compró", "compraron"), ("buy", "buys", "bought")),
    (("vendo", "vende", "venden"), ("vendí", "vendió", "vendieron"), ("sell", "sells", "sold")),
    (("veo", "ve", "ven"), ("vi", "vio", "vieron"), ("see", "sees", "saw")),
    (("busco", "busca", "buscan"), ("busqué", "buscó", "buscaron"), ("look for", "looks for", "looked for")),
    (("encuentro", "encuentra", "encuentran"), ("encontré", "encontró", "encontraron"), ("find", "finds", "found")),
    (("pinto", "pinta", "pintan"), ("pinté", "pintó", "pintaron"), ("paint", "paints", "painted")),
    (("pierdo", "pierde", "pierden"), ("perdí", "perdió", "perdieron"), ("lose", "loses", "lost")),
    (("quiero", "quiere", "quieren"), ("quise", "quiso", "quisieron"), ("want", "wants", "wanted")),
    (("tengo", "tiene", "tienen"), ("tuve", "tuvo", "tuvieron"), ("have", "has", "had")),
    (("llevo", "lleva", "llevan"), ("llevé", "llevó", "llevaron"), ("carry", "carries", "carried")),
    (("olvido", "olvida", "olvidan"), ("olvidé", "olvidó", "olvidaron"), ("forget", "forgets", "forgot")),
    (("recibo", "recibe", "reciben"), ("recibí", "recibió", "recibieron"), ("receive", "receives", "received")),
    (("robo", "roba", "roban"), ("robé", "robó", "robaron"), ("steal", "steals", "stole")),
    (("dibujo", "dibuja", "dibujan"), ("dibujé", "dibujó", "dibujaron"), ("draw", "draws", "drew")),
)
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


def _sentence(rng: random.Random) -> tuple[str, str, str]:
    """(Spanish, English, looser English): the looser one moves or drops the last phrase."""
    spanish_subject, english_subject, person, own = _subject(rng)
    present, past, (base, third, english_past) = rng.choice(VERBS)
    in_past = rng.random() < 0.5
    spanish_verb = (past if in_past else present)[person]
    english_verb = english_past if in_past else (third if person == 1 else base)
    adjective = rng.choice(OF_THINGS) if rng.random() < 0.6 else None
    spanish_object, english_object = _noun_phrase(rng.choice(THINGS), own, adjective, rng)
    place = rng.choice((PLACES, PAST_TIMES if in_past else PRESENT_TIMES, (("", ""),)))
    spanish_end, english_end = rng.choice(place)
    core = f"{english_subject} {english_verb} {english_object}"
    spanish = tidy(f"{spanish_subject} {spanish_verb} {spanish_object} {spanish_end}.")
    loose = f"{english_end}, {core}." if rng.random() < 0.5 else f"{core}."
    english = tidy(f"{core} {english_end}.")
    return capitalise(spanish), capitalise(english), capitalise(tidy(loose.lstrip(", ")))


def prompt_text(spanish: str) -> str:
    """The format in which the language model has learned to translate."""
    return f"Spanish: {spanish}\nEnglish:"


def sample_translation(rng: random.Random, *, want_held_out: bool = False) -> tuple[str, list[str]]:
    """Draws (prompt, translations), held-out or not; the first translation is the reference."""
    while True:
        spanish, english, loose = _sentence(rng)
        if held_out(spanish) == want_held_out:
            return prompt_text(spanish), [english, loose]


def sample_text(rng: random.Random) -> tuple[str, str]:
    """Draws (prompt, response) for training; one in four is loose."""
    prompt, (english, loose) = sample_translation(rng)
    return prompt, " " + (loose if rng.random() < 0.25 else english)
