"""What the benchmark of importance weights says is so: of one rollout with equal weights."""

from __future__ import annotations

import pytest

from benchmarks.off_policy import make_trainer, record


def test_a_nucleus_is_no_difference_of_policies() -> None:
    """Ours are 1. Over all tokens the weight of each is the mass of its nucleus, at least top-p and at most 1."""
    trainer = make_trainer(16, top_p=0.8)
    told = record("equal", trainer, trainer.collect())
    assert told["mean"] == pytest.approx(1, abs=1e-4)
    assert told["ess_response"] == pytest.approx(1, abs=1e-4)
    assert told["gap"] < 1e-5
    assert 0.8 <= told["theirs"] < 0.98
