"""How much of J* can be learned: by hand, against J*'s own estimate, and the states that are read."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.learnable import LearnableSettings, best_worth, measure, table, with_end, worth
from textgen_env.agents.ppo import PPOSettings
from textgen_env.lm.token_batch import TokenBatch

BETA = 0.05


def scores() -> Tensor:
    return torch.rand(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_true_scores_are_worth_the_log_mean_exp():
    expected = BETA * ((scores() / BETA).logsumexp(dim=1) - math.log(8))
    assert torch.allclose(worth(scores(), scores(), BETA, BETA), expected)


def test_a_judge_that_knows_nothing_is_worth_the_mean():
    assert torch.allclose(worth(scores(), torch.full_like(scores(), 0.3), BETA, BETA), scores().mean(dim=1))


def test_by_hand():
    """Weights 3/4 and 1/4 on scores 1 and 0: ¾ − β·(¾·log 1.5 + ¼·log 0.5)."""
    judged = torch.tensor([[math.log(3.0), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(worth(torch.tensor([[1.0, 0.0]]), judged, 1.0, 0.1)) == pytest.approx(0.75 - 0.1 * kl)


def test_no_judge_is_worth_more_than_the_truth():
    best = worth(scores(), scores(), BETA, BETA)
    for seed in range(20):
        judged = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert (worth(scores(), judged, BETA, BETA) <= best + 1e-12).all()


def test_the_temperature_is_chosen_on_the_other_half():
    """A judge of ten times the scores is read at τ = 10 β, and is then the truth."""
    found = best_worth(scores(), 10 * scores(), BETA)
    assert torch.allclose(found, worth(scores(), scores(), BETA, BETA)[3:])


def test_the_last_state_is_read_too():
    batch = TokenBatch.from_tokens([[5, 6], [7]], [[8], [9, 10]])
    longer = with_end(batch)
    assert longer.response_mask.sum(dim=1).tolist() == [2, 3]
    assert (longer.attention_mask.sum(dim=1) == batch.attention_mask.sum(dim=1) + 1).all()
    width = batch.input_ids.shape[1]
    assert torch.equal(
        longer.input_ids[:, :width][batch.attention_mask.bool()], batch.input_ids[batch.attention_mask.bool()]
    )


def test_a_judge_learns_what_is_plain():
    """Paid by the length of the response, it explains held-out responses after a few hundred."""
    scorer = '{"name": "length", "minimum": 1, "maximum": 2, "unit": "words"}'
    run = PPOSettings(scorer=scorer, eval_prompts=16, num_envs=16, max_new_tokens=12)
    records = list(measure(LearnableSettings(run, responses=(512,), judged=8, passes=8, batch=32)))
    assert [record["responses"] for record in records] == [0, 512, -1]
    assert records[1]["explained"] > 0.2
    assert records[0]["J"] < records[1]["J"] <= records[2]["J"]
    assert "512" in table(records)
