"""Records of places to eat or sleep and their descriptions in several phrasings, from a seeded grammar.

Each record has a name and three or four fields; every phrasing names all of them, so any of them is a reference. For
training now and then a field is forgotten, so that a policy can improve on the model.
"""

from __future__ import annotations

import random

from .grammar import expand, held_out, words

FIRST = words("Blue|Golden|Green|Red|Silver|Old|Little|Happy|Quiet|White|Black|Royal|Sunny|Lucky|Wild|Hidden")
SECOND = words("Door|Lion|Garden|Spoon|Anchor|Rose|Fox|Bridge|Lantern|Mill|Harbor|Oak|Moon|Swan|Table|Bell|Star|Kettle")
FIELDS = {
    "type": words("café|restaurant|pub|bakery|bistro|diner|tea room|wine bar"),
    "food": words("Italian|Indian|French|Chinese|Mexican|Greek|Japanese|English|Turkish|Thai|vegetarian|Spanish"),
    "area": words("by the river|in the city center|near the station|at the harbor|in the old town|near the park"),
    "price": words("cheap|moderate|expensive"),
    "rating": words("low|average|high"),
    "family": words("yes|no"),
}
PRICE = {"cheap": "low prices", "moderate": "moderate prices", "expensive": "high prices"}
RATING = {"low": "a low rating", "average": "an average rating", "high": "a high rating"}
FAMILY = {"yes": "good for families", "no": "not for families"}

# One phrasing: how the head is said, and how the tail says price, rating and family if they are there.
HEADS = (
    "{name} is a {type} {area} that serves {food} food",
    "{name} serves {food} food {area} and is a {type}",
    "{Area} there is a {type} called {name} that offers {food} food",
    "The {type} {name} {area} offers {food} food",
)
TAILS = {
    "price": (
        "It has {price_words}.",
        "The prices are {price_adjective}.",
        "Expect {price_words}.",
        "Its price range is {price}.",
    ),
    "rating": (
        "It has {rating_words}.",
        "Its rating is {rating}.",
        "Guests gave it {rating_words}.",
        "Customers rate it as {rating}.",
    ),
    "family": (
        "It is {family_words}.",
        "The place is {family_words}.",
        "This place is {family_words}.",
        "They say it is {family_words}.",
    ),
}
PRICE_ADJECTIVE = {"cheap": "low", "moderate": "moderate", "expensive": "high"}


def _record(rng: random.Random) -> dict[str, str]:
    """Draws a record: name, type, food, area and one or two of price, rating, family."""
    record = {"name": f"{rng.choice(FIRST)} {rng.choice(SECOND)}"}
    extra = rng.sample(list(TAILS), rng.choice((1, 2)))
    for field, values in FIELDS.items():
        if field not in TAILS or field in extra:
            record[field] = rng.choice(values)
    return record


def prompt_text(record: dict[str, str]) -> str:
    """The format in which the language model has learned to describe."""
    fields = " | ".join(f"{field}: {value}" for field, value in record.items())
    return f"Record: {fields}\nDescription:"


def phrasings(record: dict[str, str], rng: random.Random) -> list[str]:
    """Says the record in each of the four ways."""
    bound = {field: [value] for field, value in record.items()}
    bound["Area"] = [record["area"][0].upper() + record["area"][1:]]
    if "price" in record:
        bound["price_words"], bound["price_adjective"] = [PRICE[record["price"]]], [PRICE_ADJECTIVE[record["price"]]]
    if "rating" in record:
        bound["rating_words"] = [RATING[record["rating"]]]
    if "family" in record:
        bound["family_words"] = [FAMILY[record["family"]]]
    tails = [field for field in TAILS if field in record]
    texts = []
    for way, head in enumerate(HEADS):
        sentences = [head + ".", *(TAILS[field][way] for field in tails)]
        texts.append(expand(" ".join(sentences), bound, rng))
    return texts


def sample_description(rng: random.Random, *, want_held_out: bool = False) -> tuple[str, list[str]]:
    """Draws (prompt, four descriptions), held-out or not."""
    while True:
        record = _record(rng)
        if held_out(prompt_text(record)) == want_held_out:
            return prompt_text(record), phrasings(record, rng)


def sample_text(rng: random.Random, *, careless: float) -> tuple[str, str]:
    """Draws (prompt, response) for training; careless ones, a share of the texts, stop after their first sentence."""
    prompt, texts = sample_description(rng)
    text = rng.choice(texts)
    return prompt, f" {text[: text.index('.') + 1] if rng.random() < careless else text}"
