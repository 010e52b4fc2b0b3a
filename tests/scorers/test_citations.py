"""Citations against values computed by hand, alone and behind a search in an environment."""

from __future__ import annotations

from typing import Any

import pytest

from textgen_env import TextGenEnv
from textgen_env.scorers import ScorerError, call_scorer, get_scorer

SAID = ["[3] Anna Reed is a cook from Northam.\n[8] Northam lies by the sea.\nIt is old.", "[12] Bees [3] are insects."]
TURNS = [{"role": "assistant", "content": "[99] Northam"}, *({"role": "environment", "content": text} for text in SAID)]


def scores(text: str, answer: Any = "Northam", turns: Any = TURNS, **settings: Any) -> list[float]:
    """Precision, recall and F1."""
    return [
        call_scorer(
            get_scorer("citations", measure=measure, answers="answer", **settings),
            [text],
            prompts=[""],
            turns=[turns],
            answer=[answer],
        )[0]
        for measure in ("precision", "recall", "f1")
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In Northam [3].", [1, 1 / 2, 2 / 3]),
        ("In Northam [3][8].", [1, 1, 1]),
        ("[ 8 ; 3 ] [3]", [1, 1, 1]),
        ("In Northam [3, 12].", [1 / 2, 1 / 2, 1 / 2]),
        ("[3] [8] [12] [99]", [2 / 4, 1, 2 / 3]),
        ("In Northam.", [0, 0, 0]),
        ("", [0, 0, 0]),
        ("[12]", [0, 0, 0]),
        ("[99]", [0, 0, 0]),  # which the agent has made up
        ("[03]", [1, 1 / 2, 2 / 3]),
        ("[3a] [x] (3) [3", [0, 0, 0]),
        ("[" + "3" * 50 + "]", [0, 0, 0]),
    ],
)
def test_by_hand(text: str, expected: list[float]) -> None:
    assert scores(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "supporting"),
    [
        ("northam", {3, 8}),
        (["a cook", "a baker"], {3}),
        ("cook from", {3}),
        ("sea.\nIt is old", {8}),  # a passage goes on in the next line
        ("Nor", set()),  # no whole word
        ("insects", {12}),
        ("nowhere", set()),
        (["", "bees"], {12}),
    ],
)
def test_what_supports_an_answer(answer: Any, supporting: set[int]) -> None:
    for number in (3, 8, 12):
        right = float(number in supporting)
        assert scores(f"[{number}]", answer) == pytest.approx(
            [right, right / max(len(supporting), 1), 2 * right / (1 + len(supporting))]
        )


def test_passages_of_a_column() -> None:
    columns: dict[str, Any] = {"prompts": ["", "", ""], "references": [["a"], ["b"], ["c"]]}
    columns["given"] = [["x", "a b"], {"5": "b", 6: "c"}, []]
    scorer = get_scorer({"name": "citations", "passages": "given"})
    assert call_scorer(scorer, ["[2]", "[5]", "[1]"], **columns) == [1, 1, 0]


def test_behind_a_search() -> None:
    """The answer's citations count, and what the agent writes into its call is no passage."""
    pytest.importorskip("bm25s", reason="the index is the extra 'tools'")
    documents = ["Anna Reed lives in Northam.", "The museum opens at 2.", "Northam has a museum."]
    tools = {"search": {"name": "search", "documents": documents, "k": 2}}
    env = TextGenEnv(
        model="tiny",
        prompts=[{"prompt": "Where does Anna Reed live?", "references": ["Northam"]}],
        scorer={"name": "last_turn", "scorer": {"name": "citations", "measure": "precision"}},
        responder={"name": "tools", "tools": tools, "calls": {"search": "find (?P<query>.+)"}},
        max_new_tokens=60,
        max_reply_tokens=60,
    )
    model = env.language_model
    for answer, score in ((" Northam [1]", 1.0), (" Northam [1, 2]", 0.5), (" Northam", 0.0)):
        env.reset(seed=0)
        info = env.step_tokens([*model.encode_plain(" find Anna Reed [2]"), model.end_token_id])[-1]
        assert info["reply"].startswith("[1] Anna Reed lives in Northam.")
        assert env.step_tokens([*model.encode_plain(answer), model.end_token_id])[-1]["score"] == score


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="measure must be one of f1, precision, recall, got 'f2'"):
        get_scorer("citations", measure="f2")
    rows: list[tuple[dict[str, Any], str]] = [
        ({"answer": ["a"]}, "needs the column 'turns'"),
        ({"turns": [TURNS]}, "needs the column 'answer'"),
        ({"answer": [5], "turns": [TURNS]}, r"answer\[0\]=5 must be a text or a list"),
        ({"answer": [[]], "turns": [TURNS]}, r"answer\[0\]=\[\] must hold a text"),
    ]
    for columns, told in rows:
        with pytest.raises(ScorerError, match=told):
            call_scorer(get_scorer("citations", answers="answer"), ["[1]"], prompts=[""], **columns)
    for passages in (5, [5], {"a": "b"}, {1: 2}):
        with pytest.raises(ScorerError, match=r"given\[0\]"):
            call_scorer(
                get_scorer("citations", passages="given"), ["x"], prompts=[""], references=[["a"]], given=[passages]
            )
