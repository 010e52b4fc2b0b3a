"""Every registered scorer keeps the contract. What each one computes is tested in its own file."""

from __future__ import annotations

from typing import Any

import pytest

from textgen_env import assets
from textgen_env.scorers import get_scorer
from textgen_env.scorers.registry import scorer_names
from textgen_env.testing import ScorerContract

RULE = {"name": "length", "target": 4}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "classifier": {"label": "POSITIVE"},
    "length": {"target": 4},
    "regex": {"pattern": "[A-Z]"},
    "keywords": {"keywords": ["cat", "soup"]},
    "acrostic": {"word": "cat"},
    "lipogram": {"without": "e", "words": 5},
    "citations": {"passages": "passages"},
    "numeric_answer": {"column": "right"},
    "verdict": {"positive": [" good", " yes"], "negative": " bad"},
    "sum": {"scorers": {"length": RULE, "variety": [0.1, "distinct"]}},
    "affine": {"scorer": "rougeL", "gain": 2.0, "bias": -0.5},
    "clip": {"scorer": RULE, "low": 0.25, "high": 0.75},
    "eos_penalty": {"scorer": RULE},
    "last_turn": {"scorer": RULE},
    "overlong_penalty": {"scorer": RULE, "maximum": 20, "margin": 10},
    "dense": {"scorer": RULE},
    "token_rewards": {"function": lambda completions, *, completion_ids, **_: [[0.5] * len(i) for i in completion_ids]},
    "cached": {"scorer": "bleu"},
    "patient": {"scorer": RULE, "workers": 2, "batch_size": 2},
}
"""What a scorer cannot do without; the others are made by name alone."""

FETCHED = {"similarity": "minilm", "spacy": "imdb-sentiment", "imdb-sentiment": "imdb-sentiment"}
OPTIONAL = {"spacy": "spacy", "imdb-sentiment": "spacy", "vader": "vaderSentiment", "reasoning-gym": "reasoning_gym"}
STATEFUL = {"normalize"}  # keeps statistics of what it has scored, so that asked again it says something else
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in FETCHED else name
    for name in scorer_names()
    if name not in STATEFUL
]


@pytest.mark.filterwarnings("ignore:.*W095", "ignore:.*parser.split_arg_string")  # spaCy's, see test_sources.py
class TestScorer(ScorerContract):
    @pytest.fixture(autouse=True, params=NAMES)
    def _choose_scorer(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        if self.name in OPTIONAL:
            pytest.importorskip(OPTIONAL[self.name])
        if self.name in FETCHED and not assets.MODELS[FETCHED[self.name]].path.exists():
            pytest.skip(f"needs: python -m textgen_env.assets fetch {FETCHED[self.name]}")

    def columns(self) -> dict[str, Any]:
        questions = [{"dataset": "leg_counting", "size": 6, "seed": 0, "index": index} for index in range(6)]
        passages = [["A cat sat on a mat."], ["b", "c"], {7: "good"}, [], ["日本"], {"1": "x y"}]
        asked = {"choices": [[f"{i}", "good", "soup"] for i in range(6)], "answer": [0, "good", 2, "soup", 1, 0]}
        own = asked | {"right": [1, 2.5, "3/4", "12", ["1", 2], "-7"], "reasoning_gym": questions, "passages": passages}
        return super().columns() | own

    def make_scorer(self) -> Any:
        return get_scorer(self.name, **ARGUMENTS.get(self.name, {}))
