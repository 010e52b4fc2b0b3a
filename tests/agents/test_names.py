"""Names of an earlier release still lead to the things of today."""

from __future__ import annotations

from textgen_env.agents import batch, evaluate, policy


def test_former_names_are_those_of_today():
    assert policy.Evaluation is policy.TokenEvaluation
    assert evaluate.Evaluation is evaluate.EvalReport
    assert batch.similar_lengths is batch.bucket_by_length
    assert batch.Batch(None, [], *[None] * 6).packs == []  # type: ignore[arg-type]
