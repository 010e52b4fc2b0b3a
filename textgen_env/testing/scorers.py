"""What any scorer must do, whatever it judges. How environments call it is tested by `environments.py`'s suites."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pytest

from textgen_env.lm.language_model import LanguageModel
from textgen_env.scorers import ScorerError, as_scorer, call_scorer, score_parts
from textgen_env.scorers.base import part_names
from textgen_env.scorers.columns import select_rows
from textgen_env.scorers.policy_view import PolicyView

SINGLE_REFERENCES = ("b", "good", "Bad soup!", "日本", "x y")


class ScorerContract:
    """Promises of a scorer, one number per text. Override `make_scorer`, and `columns` for what prompts must have.

    A scorer that sees the policy is handed the embedded model, which `make_policy` changes.
    """

    tolerance = 1e-6
    """How far scores may differ between batches of another make-up: padding moves the last digits of a model."""

    texts: Sequence[str] = ("The cat sat on the mat.", "", "good", "Terrible, terrible soup!", "ünï 日本 🙂 {}", " \n ")

    def make_scorer(self) -> Any:
        """A fresh scorer; each call the same."""
        raise NotImplementedError

    def make_policy(self) -> LanguageModel:
        """Whom a scorer sees that sees the policy."""
        return LanguageModel("tiny")

    @cached_property
    def policy(self) -> LanguageModel:
        """The same for all questions of a test."""
        return self.make_policy()

    def view(self, prompts: Sequence[str]) -> PolicyView:
        """The policy behind each prompt and text, which the last token has ended."""
        model = self.policy
        pairs = zip(prompts, self.texts, strict=True)
        ids = [[*model.encode(prompt), *model.encode_plain(text), model.end_token_id] for prompt, text in pairs]
        return PolicyView(model, ids, [True] * len(ids))

    def columns(self) -> dict[str, Any]:
        """What is known of each text besides the text itself."""
        prompts = ["Describe:", "Say:", "How was it?", "And the soup?", "p", "Go on:"]
        sees = as_scorer(self.make_scorer()).needs_policy
        return {
            **({"policy": self.view(prompts)} if sees else {}),
            "prompts": prompts,
            "references": [["A cat sat on a mat.", "The cat is there."], *([text] for text in SINGLE_REFERENCES)],
            "completion_ids": [[*text.encode(), 2] for text in self.texts],
            "finish_reasons": ["eos", "eos", "length", "stop", "length", "eos"],
        }

    def score(self, rows: Sequence[int] | None = None, scorer: Any = None) -> list[float]:
        """The scores of some of the texts, in one batch, checked to be finite and as many."""
        rows = range(len(self.texts)) if rows is None else rows
        columns = select_rows(self.columns(), rows, len(self.texts))
        scorer = self.prepared() if scorer is None else scorer
        scores = call_scorer(scorer, [self.texts[row] for row in rows], **columns)
        assert len(scores) == len(rows)
        assert all(type(score) is float and math.isfinite(score) for score in scores)
        return scores

    def prepared(self) -> Any:
        """A fresh scorer that has seen the references of its task, as an environment lets it."""
        scorer = self.make_scorer()
        as_scorer(scorer).fit_references(self.columns()["references"])
        return scorer

    def test_one_finite_number_a_text(self) -> None:
        self.score()

    def test_empty_text_alone(self) -> None:
        self.score([self.texts.index("")])

    def test_batch_is_one_by_one(self) -> None:
        scorer = self.prepared()
        alone = [self.score([row], scorer)[0] for row in range(len(self.texts))]
        assert self.score(scorer=scorer) == pytest.approx(alone, abs=self.tolerance)

    def test_order_of_the_batch_does_not_matter(self) -> None:
        order = [3, 5, 0, 4, 2, 1]
        scores = self.score()
        assert self.score(order) == pytest.approx([scores[row] for row in order], abs=self.tolerance)

    def test_asked_again_it_says_the_same(self) -> None:
        scorer = self.prepared()
        scores = self.score(scorer=scorer)
        assert self.score(scorer=scorer) == scores
        assert self.score() == pytest.approx(scores, abs=self.tolerance)  # a copy may round otherwise

    def test_leaves_its_input_alone(self) -> None:
        texts, columns = list(self.texts), self.columns()
        call_scorer(self.prepared(), texts, **columns)
        assert (texts, columns) == (list(self.texts), self.columns())

    def test_parts_are_those_announced_and_add_up(self) -> None:
        scorer = self.prepared()
        parts = score_parts(scorer, self.texts, **self.columns())
        assert tuple(parts) == part_names(scorer)
        assert [sum(values) for values in zip(*parts.values(), strict=True)] == self.score(scorer=scorer)

    def test_one_that_sees_the_policy_is_not_asked_without(self) -> None:
        columns = self.columns()
        if columns.pop("policy", None) is not None:
            with pytest.raises(ScorerError, match="policy"):
                call_scorer(self.prepared(), self.texts, **columns)

    def test_one_that_sees_the_policy_sees_its_present_weights(self) -> None:
        scorer, columns = self.prepared(), self.columns()
        if "policy" not in columns:
            return
        before = self.score(scorer=scorer)
        weight = next(weight for weight in self.policy.model.parameters() if weight.dim() > 1)
        weight.data *= 1.5
        assert self.score(scorer=scorer) != before
        weight.data /= 1.5
        assert self.score(scorer=scorer) == pytest.approx(before, abs=self.tolerance)

    def test_counters_are_numbers_that_json_takes(self) -> None:
        scorer = self.prepared()
        self.score(scorer=scorer)
        counters = as_scorer(scorer).info()
        assert json.loads(json.dumps(counters, allow_nan=False)) == counters
