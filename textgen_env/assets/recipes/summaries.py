"""Short news-like documents with one-line summaries, from a seeded grammar.

Each event has a lead sentence and details. The best summary tells the lead and is the reference that the task scores
against; a careless one tells a detail instead. The model learns both, so that a policy has something to gain.
"""

from __future__ import annotations

import random

from .grammar import capitalise, expand, held_out, words

TOWNS = words(
    "Larkfield|Milton|Ashby|Kingsport|Northam|Riverton|Stonebridge|Oakdale|Westbury|Harrow Bay|Eastwick|Fairview|"
    "Brookside|"
    "Redhill|Clayton|Linden|Marlow|Port Ellen|Silverton|Whitby|Dunmore|Glenwood|Highgate|Old Mill|Pinewood|Sandford"
)
NAMES = words(
    "Anna Reed|Tom Baker|Maria Lopez|John Carter|Lucy Chen|Peter Novak|Sara Khan|David Moore|Emma Stone|Paul Weber|"
    "Nina Rossi|Omar Haddad|Kate Wilson|Ben Turner|Julia Park|Leo Martin|Ruth Allen|Sam Cooper|Ella Brown|Ivan Petrov"
)
DAYS = words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")

# One event: its slots, the lead, the best summary, and details "sentence => what a careless summary makes of it".
# {town}, {town2}, {day}, {name}, {name2} and the slots are drawn once per document.
EVENTS: tuple[tuple[dict[str, str], str, str, tuple[str, ...]], ...] = (
    (
        {
            "place": "library|swimming pool|town hall|post office|museum|cinema|railway station",
            "why": "repairs cost too much|too few people use it|the roof is not safe",
        },
        "The council of {town} decided on {day} to close the old {place} because {why}.",
        "{town} council closes old {place}.",
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
        "New {place} opens in {town}.",
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
        "{thing} damages {place} near {town}.",
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
        "{name} from {town} wins {prize}.",
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
        "{town} beats {town2} {score}.",
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
        "{firm} creates {number} jobs in {town}.",
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
        "{firm} in {town} cuts {number} jobs.",
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
        "Lost {animal} from {town} found in {town2}.",
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
        "{name} finds {item} in {place}.",
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
        "{what} in {town} rise by {number} percent.",
        (
            "It is the second rise in a year. => Second rise of {what} in a year.",
            "Families will feel it most. => Families feel rise most.",
            "{name} of the council blamed high costs. => {name} blames high costs.",
            "In {town2} nothing will change. => No change in {town2}.",
        ),
    ),
)


def _event(rng: random.Random) -> tuple[str, list[str]]:
    """Draws a document and its summaries, the best first."""
    slots, lead, best, details = rng.choice(EVENTS)
    town, town2 = rng.sample(TOWNS, 2)
    name, name2 = rng.sample(NAMES, 2)
    bound = {"town": [town], "town2": [town2], "name": [name], "name2": [name2], "day": [rng.choice(DAYS)]}
    bound |= {slot: [rng.choice(choices.split("|"))] for slot, choices in slots.items()}
    chosen = [detail.split(" => ") for detail in rng.sample(details, rng.choice((1, 2, 2, 3)))]
    sentences = [lead, *(sentence for sentence, _ in chosen)]
    if rng.random() < 0.2:  # The lead is not always the first sentence.
        sentences[0], sentences[1] = sentences[1], sentences[0]
    document = " ".join(capitalise(expand(sentence, bound, rng)) for sentence in sentences)
    summaries = [best, *(careless for _, careless in chosen)]
    return document, [capitalise(expand(summary, bound, rng)) for summary in summaries]


def prompt_text(document: str) -> str:
    """The format in which the language model has learned to summarise."""
    return f"Document: {document}\nSummary:"


def sample_summary(rng: random.Random, *, want_held_out: bool = False) -> tuple[str, list[str]]:
    """Draws (prompt, summaries), held-out or not; the first summary is the reference."""
    while True:
        document, summaries = _event(rng)
        if held_out(document) == want_held_out:
            return prompt_text(document), summaries


def sample_text(rng: random.Random) -> tuple[str, str]:
    """Draws (prompt, response) for training: mostly the reference, now and then a careless summary."""
    prompt, summaries = sample_summary(rng)
    return prompt, " " + (summaries[0] if rng.random() < 0.6 else rng.choice(summaries[1:]))
