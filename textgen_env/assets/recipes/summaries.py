"""Short news-like documents with one-line summaries, from a seeded grammar.

Each event has a lead sentence and details. Good summaries tell the lead; they are the references that the task scores
against. Careless ones tell a detail instead. The model learns both, so that a policy has something to gain.
"""

from __future__ import annotations

import random

from .grammar import capitalise, expand, held_out, words

TOWNS = words(
    "Larkfield|Milton|Ashby|Kingsport|Northam|Riverton|Stonebridge|Oakdale|Westbury|Harrow Bay|Eastwick|Fairview|"
    "Brookside|"
    "Redhill|Clayton|Linden|Marlow|Port Ellen|Silverton|Whitby|Dunmore|Glenwood|Highgate|Old Mill|Pinewood|Sandford"
)
GIVEN_NAMES = words(
    "Anna|Tom|Maria|John|Lucy|Peter|Sara|David|Emma|Paul|Nina|Omar|Kate|Ben|Julia|Leo|Ruth|Sam|Ella|Ivan"
)
FAMILY_NAMES = words(
    "Reed|Baker|Lopez|Carter|Chen|Novak|Khan|Moore|Stone|Weber|Rossi|Haddad|Wilson|Turner|Park|Martin|Allen|Cooper|"
    "Brown|Petrov"
)
DAYS = words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")

# One event: its slots, the lead, three good summaries, and details "sentence => what a careless summary makes of it".
# {town}, {town2}, {day}, {name}, {name2} and the slots are drawn once per document.
EVENTS: tuple[tuple[dict[str, str], str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        {
            "place": "library|swimming pool|town hall|post office|museum|cinema|railway station",
            "why": "repairs cost too much|too few people use it|the roof is not safe",
        },
        "The council of {town} decided on {day} to close the old {place} because {why}.",
        (
            "{town} council closes old {place}.",
            "Old {place} in {town} will close.",
            "The council of {town} closes its old {place}.",
        ),
        (
            "People will have to travel to {town2} instead. => People must travel to {town2}.",
            'The mayor, {name}, said it was "a sad day". => Mayor {name} speaks of sad day.',
            "A group of neighbors wants to fight the plan. => Neighbors want to fight plan.",
        ),
    ),
    (
        {
            "place": "school|park|hospital|bridge|market hall|sports center|bus station",
            "sum": "two|three|five|nine|twelve",
        },
        "A new {place} opened in {town} on {day} after {sum} years of work.",
        ("New {place} opens in {town}.", "{town} opens a new {place}.", "{place} opens in {town} after {sum} years."),
        (
            "Hundreds of people came to see it. => Hundreds came to see {place}.",
            "It cost {sum} million more than planned. => {place} costs more than planned.",
            'The architect, {name}, called it "a gift to the town". => {name} calls {place} a gift.',
        ),
    ),
    (
        {
            "thing": "fire|flood|storm|power cut|gas leak",
            "place": "factory|farm|hotel|shopping center|warehouse|school",
        },
        "A {thing} damaged a {place} near {town} early on {day}.",
        (
            "{thing} damages {place} near {town}.",
            "{place} near {town} damaged by {thing}.",
            "{place} damaged by {thing} near {town}.",
        ),
        (
            "Nobody was hurt. => Nobody hurt in {town}.",
            "The cause is not yet known. => Cause of {thing} is not known.",
            "Helpers from {town2} came quickly. => Helpers come from {town2}.",
            "The owner, {name}, hopes to open again soon. => {name} hopes to open {place} again.",
        ),
    ),
    (
        {
            "prize": "chess cup|cooking prize|music prize|book prize|science prize|dance contest",
            "age": "nine|twelve|fifteen|eighteen|sixty|seventy",
        },
        "{name} from {town}, who is {age} years old, won the national {prize} on {day}.",
        (
            "{name} from {town} wins {prize}.",
            "{prize} goes to {name} from {town}.",
            "National {prize} won by {name} from {town}.",
        ),
        (
            "More than a hundred people took part. => Hundred people take part.",
            "The final was held in {town2}. => {prize} held in {town2}.",
            '"I could not believe it," the winner said. => Winner of {prize} could not believe it.',
            "Second place went to {name2}. => {name2} comes second.",
        ),
    ),
    (
        {
            "score": "two to one|three to one|two to nothing|four to two|one to nothing",
            "sport": "football|hockey|handball",
        },
        "The {sport} team of {town} beat {town2} {score} on {day}.",
        (
            "{town} beats {town2} {score}.",
            "{town} wins {score} against {town2}.",
            "{sport} team of {town} beats {town2} {score}.",
        ),
        (
            "{name} scored in the last minute. => {name} scores in last minute.",
            "It was the first win of the season. => First win of season for {town}.",
            "Heavy rain made the game difficult. => Rain makes {sport} game difficult.",
            "The next game is in two weeks. => Next {sport} game in two weeks.",
        ),
    ),
    (
        {
            "firm": "car maker|bakery|software company|toy maker|bicycle maker|paper mill",
            "number": "fifty|eighty|two hundred|three hundred|five hundred",
        },
        "A {firm} in {town} said on {day} that it will create {number} new jobs.",
        (
            "{firm} creates {number} jobs in {town}.",
            "{number} new jobs at {firm} in {town}.",
            "{firm} in {town} will create {number} jobs.",
        ),
        (
            "Most of them are for young people. => New jobs for young people.",
            "The company has grown for years. => {firm} has grown for years.",
            "Its head, {name}, also plans an office in {town2}. => {name} plans office in {town2}.",
            "The union welcomed the news. => Union welcomes the news.",
        ),
    ),
    (
        {
            "firm": "steel works|airline|clothing store|phone company|furniture maker|newspaper",
            "number": "forty|ninety|two hundred|four hundred|six hundred",
        },
        "The {firm} in {town} will cut {number} jobs, workers were told on {day}.",
        (
            "{firm} in {town} cuts {number} jobs.",
            "{number} jobs cut at {firm} in {town}.",
            "{firm} cuts {number} jobs in {town}.",
        ),
        (
            "Sales have fallen for two years. => Sales of {firm} have fallen.",
            'The workers\' speaker, {name}, was "shocked". => {name} is shocked.',
            "The office in {town2} will stay open. => Office in {town2} stays open.",
            "Talks will begin next week. => Talks begin next week.",
        ),
    ),
    (
        {"animal": "dog|cat|horse|parrot|goat|donkey|pony", "time": "two days|a week|three weeks|a month|a year"},
        "A {animal} that ran away from its home in {town} was found in {town2} on {day}, {time} later.",
        (
            "Lost {animal} from {town} found in {town2}.",
            "{animal} from {town} found in {town2} {time} later.",
            "Lost {animal} found in {town2} after {time}.",
        ),
        (
            "It was tired but well. => {animal} is tired but well.",
            "Its owner, {name}, was in tears. => {name} was in tears.",
            "A bus driver saw it near a bridge. => Bus driver sees {animal}.",
            "Many people had searched for it. => Many people searched for {animal}.",
        ),
    ),
    (
        {
            "item": "a rare coin|an old painting|a silver ring|an old map|a gold watch|a Roman vase",
            "place": "garden|attic|field|cellar|barn",
        },
        "{name} found {item} in a {place} in {town} on {day}.",
        (
            "{name} finds {item} in {place}.",
            "{item} found in {place} by {name}.",
            "{name} finds {item} in {place} in {town}.",
        ),
        (
            "It may be three hundred years old. => Find in {town} is very old.",
            "A museum in {town2} will show it. => Museum in {town2} shows {item}.",
            "Experts are very excited. => Experts are excited.",
            "It is worth more than a house. => Find in {place} is worth a house.",
        ),
    ),
    (
        {
            "what": "bus fares|water prices|parking fees|school fees|rents",
            "number": "five|eight|ten|twelve|twenty",
        },
        "In {town}, {what} will rise by {number} percent, the council said on {day}.",
        (
            "{what} in {town} rise by {number} percent.",
            "{town}: {what} rise by {number} percent.",
            "{number} percent rise of {what} in {town}.",
        ),
        (
            "It is the second rise in a year. => Second rise of {what} in a year.",
            "Families will feel it most. => Families feel rise most.",
            "{name} of the council blamed high costs. => {name} blames high costs.",
            "In {town2} nothing will change. => No change in {town2}.",
        ),
    ),
)


def _event(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """Draws a document, its good summaries and its careless ones."""
    slots, lead, good, details = rng.choice(EVENTS)
    town, town2 = rng.sample(TOWNS, 2)
    given, family = rng.sample(GIVEN_NAMES, 2), rng.sample(FAMILY_NAMES, 2)
    name, name2 = (f"{first} {last}" for first, last in zip(given, family, strict=True))
    bound = {"town": [town], "town2": [town2], "name": [name], "name2": [name2], "day": [rng.choice(DAYS)]}
    bound |= {slot: [rng.choice(choices.split("|"))] for slot, choices in slots.items()}
    chosen = [detail.split(" => ") for detail in rng.sample(details, rng.choice((1, 2, 2, 3)))]
    sentences = [lead, *(sentence for sentence, _ in chosen)]
    if rng.random() < 0.2:  # The lead is not always the first sentence.
        sentences[0], sentences[1] = sentences[1], sentences[0]
    document = " ".join(capitalise(expand(sentence, bound, rng)) for sentence in sentences)
    careless = [summary for _, summary in chosen]
    written = [[capitalise(expand(summary, bound, rng)) for summary in summaries] for summaries in (good, careless)]
    return document, written[0], written[1]


def prompt_text(document: str) -> str:
    """The format in which the language model has learned to summarise."""
    return f"Document: {document}\nSummary:"


def sample_summary(rng: random.Random, *, want_held_out: bool = False) -> tuple[str, list[str], list[str]]:
    """Draws (prompt, three good summaries, careless summaries), held-out or not."""
    while True:
        document, good, careless = _event(rng)
        if held_out(document) == want_held_out:
            return prompt_text(document), good, careless


def sample_text(rng: random.Random, *, careless: float) -> tuple[str, str]:
    """Draws (prompt, response) for training, the response careless in a share of the texts."""
    prompt, good, wrong = sample_summary(rng)
    if rng.random() < careless:
        return prompt, f" {rng.choice(wrong)}"
    return prompt, f" {good[0] if rng.random() < 0.7 else rng.choice(good[1:])}"
