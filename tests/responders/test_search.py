"""Search beside BM25 as it is written, by loops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("bm25s", reason="the index is the extra 'tools'")

from textgen_env.responders.search import Search

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat",
    "the dog ran in the park by the river",
    "rivers run to the sea",
    "Žluťoučký kůň and a dog",
]


def by_hand(query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, which bm25s computes unless it is told otherwise."""
    words = [text.lower().split() for text in TEXTS]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        score = 0.0
        for word in query.lower().split():
            having = sum(word in text for text in words)
            idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            frequency = own.count(word)
            score += idf * frequency / (frequency + k1 * (1 - b + b * len(own) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cat", "dog park", "the river", "the", "kůň dog"])
def test_order_is_that_of_the_formula(query: str) -> None:
    scores = by_hand(query)
    expected = [i for i in sorted(range(len(TEXTS)), key=lambda i: -scores[i]) if scores[i] > 0]
    found = Search(TEXTS, k=5, template="{number}: {text}")(query).splitlines()
    assert found == [f"{i + 1}: {TEXTS[i]}" for i in expected]


def test_k_titles_and_numbers() -> None:
    documents = [{"title": "Pets", "text": "a cat"}, {"text": "a cat and a cat"}, "nothing of the kind"]
    search = Search(documents, k=1, template="[{number}|{title}] {text}")
    assert search("pets") == "[1|Pets] a cat"
    assert search("kind") == "[3|] nothing of the kind"
    assert search("unheard of words?!") == "[3|] nothing of the kind"  # "of"
    assert search("zebra") == search("") == search("?!") == "nothing found"


def test_the_packaged_entries_have_one_for_each_name() -> None:
    search = Search("entries", k=1, template="{text}")
    assert search("Anna Reed").startswith("Anna Reed, a ")
    assert search("reed, anna") == search("Anna Reed")
    assert search("museum").startswith("The museum opens at ")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (TEXTS[0], {"text": TEXTS[1], "title": "Two"})))
    assert Search(path, k=1)("dog") == "[2] a dog and a cat"
    path.write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(ValueError, match='line 2 must be a text, or have a "text"'):
        Search(path)


def test_what_is_wrong_is_named() -> None:
    for k in (0, True, 1.0):
        with pytest.raises(ValueError, match="search: k=.* must be a whole number"):
            Search(TEXTS, k=k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="search: template="):
        Search(TEXTS, template="text")
    with pytest.raises(ValueError, match="holds none"):
        Search([])
    with pytest.raises(ValueError, match="no words"):
        Search(["?", "!"])
    with pytest.raises(ValueError, match=r"search: documents\[1\] must be a text"):
        Search(["a", 5])
    with pytest.raises(TypeError, match="must be a list of texts or a file"):
        Search(5)  # type: ignore[arg-type]
