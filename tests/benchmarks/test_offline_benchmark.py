"""The offline benchmark: nothing that is judged was played, and the control pays what says nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("minari")
pytest.importorskip("h5py")

from benchmarks.offline import HELD_OUT, TUNING, Settings, Task, estimates, learn, shuffled
from textgen_env.agents.iql import IQLConfig
from textgen_env.agents.sft import SFTConfig


@pytest.mark.heavy
def test_it_records_learns_and_estimates() -> None:
    for_choosing, reported = Task("textgen/Sentiment-v0", tune=True), Task("textgen/Sentiment-v0", tune=False)
    sizes = {"minibatch_size": 16, "micro_batch_size": 16}
    settings = Settings(
        episodes=64, updates=3, iql_updates=3, responses=4, sft=SFTConfig(**sizes), iql=IQLConfig(**sizes)
    )
    for task, judged in ((for_choosing, TUNING), (reported, HELD_OUT)):
        texts = {prompt.text for prompt in task.judged}
        recorded = task.record(64, 4, seed=3)
        assert len(task.judged) == judged
        assert not texts & set(recorded.rollout.prompts)
        assert len(set(recorded.rollout.chosen_prompts or ())) == 16
    assert not {id(p) for p in for_choosing.judged} & {id(p) for p in reported.judged}
    rollout, control = recorded.rollout, shuffled(recorded, seed=3).rollout
    assert sorted(control.scores.tolist()) == sorted(rollout.scores.tolist())
    assert not torch.equal(control.scores, rollout.scores)
    torch.testing.assert_close(control.rewards.sum(dim=1), control.scores)
    assert torch.equal(control.rewards.count_nonzero(dim=1), control.scores.count_nonzero().new_ones(64))
    for method in ("clone best 25%", "iql"):
        found = estimates(learn(method, recorded, settings, 3), reported, settings, 3)
        low, high = found["estimates"]["values"]["weighted"][1:]
        assert low < high
        assert 0 < found["played"] < 1
