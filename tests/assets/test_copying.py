"""How much is copied: shares counted by hand on texts written by hand, and by a loop on random ones."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textgen_env.assets.recipes.copying import NAMES, NOUNS, NUMBERS, copied_share, invented_share, word_set

PROMPTS = Path(__file__).parents[2] / "textgen_env" / "assets" / "prompts"
CAT = ["Lost cat from Riverton found in Ashby.", "A cat missing from Riverton turned up in Ashby after two days."]
WORDS = st.lists(st.sampled_from(["Ashby", "Anna", "12", "two", "cat", "the"]), max_size=6).map(" ".join)


def test_words_are_runs_of_letters_and_digits_as_they_are_written():
    assert word_set("Anna-Maria's 12 cats, the Cats!") == {"Anna", "Maria", "s", "12", "cats", "the", "Cats"}
    assert word_set("El niño. ¿Él?") == {"El", "niño", "Él"}
    assert word_set("...") == set()


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("Cat of Riverton seen in Ashby.", 1),
        ("Riverton, Riverton, Riverton.", Fraction(1, 2)),  # once is enough, and no more than once
        ("Lost cat found in Dunmore.", 0),
        ("lost cat from riverton found in ashby.", 0),  # a name is written as a name
        ("Rivertons and Ash by", 0),
        ("", 0),
    ],
)
def test_of_the_names_that_all_references_have_the_share_that_the_answer_has(answer: str, share: Fraction):
    assert copied_share(answer, CAT, NAMES) == share


def test_words_that_only_one_reference_has_are_not_asked_for():
    assert copied_share("nothing", CAT, NUMBERS) is None  # "two" stands in the second alone
    assert copied_share("two", CAT[1:], NUMBERS) == 1
    assert copied_share("cat", CAT, NOUNS) == 1
    assert copied_share("anything", ["It is good."], NAMES) is None


def test_of_the_names_and_numbers_in_an_answer_the_share_that_the_prompt_has_not():
    prompt = "Spanish: Carmen ve 12 gatos en Ashby.\nEnglish:"
    assert invented_share("Carmen sees 12 cats.", prompt) == 0
    assert invented_share("Pedro sees 12 cats in Ashby, Whitby and Ashby.", prompt) == Fraction(2, 4)
    assert invented_share("Pedro sees forty cats.", prompt) == 1
    assert invented_share("She sees cats.", prompt) is None


@given(answer=WORDS, references=st.lists(WORDS, min_size=1, max_size=3), prompt=WORDS)
def test_shares_are_those_of_a_plain_count(answer: str, references: list[str], prompt: str):
    wanted = ["Ashby", "Anna", "12", "two"]
    needed = [word for word in wanted if all(word in reference.split() for reference in references)]
    hits = sum(word in answer.split() for word in needed)
    assert copied_share(answer, references, wanted) == (hits / len(needed) if needed else None)
    said = [word for word in wanted if word in answer.split()]
    strange = sum(word not in prompt.split() for word in said)
    assert invented_share(answer, prompt, wanted) == (strange / len(said) if said else None)


def test_kinds_of_words():
    assert {"Anna", "Riverton", "Ashby", "Carmen", "Thai", "Golden", "Oak"} <= NAMES
    assert {"seven", "7", "99"} & NUMBERS == {"7", "99"}  # "seven" is in no template
    assert {"twelve", "ninety", "12"} <= NUMBERS
    assert {"cat", "museum", "horse", "pub", "blue"} <= NOUNS
    assert sum(map(len, (NAMES, NUMBERS, NOUNS))) == len(NAMES | NUMBERS | NOUNS)  # no word is of two kinds
    assert not NOUNS & {"a", "an", "the", "of", "in", "at", "by", "to", "is", "was", "and", "from", "who"}


@pytest.mark.parametrize("name", ["summaries", "translations", "descriptions"])
def test_the_references_of_the_prompt_files_copy_and_invent_nothing(name: str):
    """A reference has all that all have; and names and numbers in it stand in its prompt."""
    for line in (PROMPTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:300]:
        row = json.loads(line)
        for reference in row["references"]:
            assert copied_share(reference, row["references"], NAMES | NUMBERS | NOUNS) in (1, None)
            inside = reference[:1].lower() + reference[1:]  # "Old town hall …" begins with no name
            assert not (invented_share(reference, row["prompt"]) and invented_share(inside, row["prompt"]))


def test_the_name_of_a_record_is_among_what_a_description_must_copy():
    for line in (PROMPTS / "descriptions.jsonl").read_text(encoding="utf-8").splitlines()[:300]:
        row = json.loads(line)
        first, second = re.search(r"name: (\w+) (\w+) \|", row["prompt"]).groups()
        bare = row["references"][0].replace(first, "").replace(second, "")
        share = copied_share(bare, row["references"], {first, second})
        assert share == 0
        assert copied_share(row["references"][0], row["references"], NAMES) == 1
