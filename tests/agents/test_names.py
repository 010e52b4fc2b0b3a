"""Names of an earlier release still lead to the things of today."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest

from textgen_env.agents import policy
from textgen_env.agents.training import evaluate, on_policy, trainer


def test_former_names_are_those_of_today():
    sys.modules.pop("textgen_env.agents.batch", None)  # another test may have asked for it
    with pytest.warns(DeprecationWarning, match="textgen_env.agents.batch is now"):
        batch: Any = import_module("textgen_env.agents.batch")
    assert policy.Evaluation is policy.TokenEvaluation
    assert evaluate.Evaluation is evaluate.EvalReport
    assert batch.similar_lengths is trainer.bucket_by_length
    assert batch.Batch is on_policy.Batch
    assert batch.Batch(None, [], *[None] * 6).packs == []
