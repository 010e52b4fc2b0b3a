"""Best of n by all subsets, its KL by its definition, win rates by loops, intervals by coverage and another library."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env.agents.best_of_n import Responses, best_of_n_kl, best_of_n_weights, bootstrap, compare


def responses(scores: torch.Tensor, judged: torch.Tensor | None = None) -> Responses:
    """With other columns that differ everywhere."""
    count = torch.arange(1.0, scores.numel() + 1).view(scores.shape)
    judged = scores if judged is None else judged
    return Responses(scores, judged, kl=count / 10, ref_log_probs=-count, lengths=count % 5 + 1, eos=count % 2)


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.integers(0, 4), min_size=1, max_size=7), data=st.data())
def test_weights_are_those_of_all_subsets(scores: list[int], data: st.DataObject) -> None:
    """The best of every subset of n, ties shared evenly."""
    n = data.draw(st.integers(1, len(scores)))
    expected = [0.0] * len(scores)
    subsets = list(itertools.combinations(range(len(scores)), n))
    for subset in subsets:
        best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        for i in best:
            expected[i] += 1 / len(best) / len(subsets)
    weights = best_of_n_weights(torch.tensor([scores], dtype=torch.float64), n)[0].tolist()
    assert math.fsum(weights) == pytest.approx(1.0)
    for level in set(scores):  # which of equal ones a subset holds is luck that weights do not follow
        of_level = [i for i, score in enumerate(scores) if score == level]
        assert sum(weights[i] for i in of_level) == pytest.approx(sum(expected[i] for i in of_level))
        assert len({round(weights[i], 12) for i in of_level}) == 1


def test_best_of_two_of_three_by_hand() -> None:
    """1, 2, 4: the pairs have the best 2, 4, 4."""
    found = responses(torch.tensor([[1.0, 4.0, 2.0]])).metrics(2)
    assert found["score"].value == pytest.approx(10 / 3)
    assert found["kl_per_response"].value == pytest.approx(
        (0.3 + 2 * 0.2) / 3 + math.log(2) - 0.5
    )  # its columns: .1 .2 .3
    lengths, log_probs = (4 + 2 * 3) / 3, (3 + 2 * 2) / 3
    assert found["response_length"].value == pytest.approx(lengths)
    assert found["reference_perplexity"].value == pytest.approx(math.exp(log_probs / lengths))
    assert found["eos_rate"].value == pytest.approx(1 / 3)


def test_one_is_sampling_and_all_is_the_best() -> None:
    scores = torch.rand(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    judged = -scores
    assert responses(scores).metrics()["score"].value == pytest.approx(float(scores.mean()))
    found = responses(scores, judged).metrics(9)
    assert found["score"].value == pytest.approx(float(scores.max(dim=1).values.mean()))
    assert found["judge"].value == pytest.approx(float(judged.min(dim=1).values.mean()))


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_kl_of_best_of_n(n: int) -> None:
    """Of m equally likely responses with different scores the k-th is best with (k/m)^n − ((k−1)/m)^n."""

    def exact(levels: int) -> float:
        best = [(k / levels) ** n - ((k - 1) / levels) ** n for k in range(1, levels + 1)]
        return math.fsum(p * math.log(p * levels) for p in best)

    assert best_of_n_kl(n) == pytest.approx(exact(20_000), abs=1e-3)
    for levels in (2, 5, 50):  # fewer scores, more ties: below it
        assert exact(levels) <= best_of_n_kl(n) + 1e-12


def test_win_rate_by_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randint(4, (6, count), generator=generator).double() for count in (5, 3))
    found = compare(responses(ours), responses(theirs))
    wins = [
        sum((a > b) + 0.5 * (a == b) for a in mine for b in other) / 15
        for mine, other in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    assert found["win_rate"].value == pytest.approx(sum(wins) / 6)
    assert found["score"].value == pytest.approx(float(ours.mean() - theirs.mean()))
    swapped = compare(responses(theirs), responses(ours))
    assert swapped["win_rate"].value == pytest.approx(1 - found["win_rate"].value)
    best = compare(responses(ours), responses(theirs), 3)
    maxima = [  # the best three of five by all subsets, against the best of all three
        statistics.fmean((max(some) > max(o)) + 0.5 * (max(some) == max(o)) for some in itertools.combinations(m, 3))
        for m, o in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    assert best["win_rate"].value == pytest.approx(sum(maxima) / 6)


def test_the_judge_decides_who_wins_and_the_scorer_what_is_chosen() -> None:
    ours = responses(torch.tensor([[0.0, 1.0]]), judged=torch.tensor([[5.0, 1.0]]))
    theirs = responses(torch.tensor([[0.0, 1.0]]), judged=torch.tensor([[2.0, 2.0]]))
    assert compare(ours, theirs)["win_rate"].value == 0.5
    assert compare(ours, theirs, 2)["win_rate"].value == 0.0
    assert compare(ours, theirs, 2)["score"].value == 0.0


def test_intervals_beside_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).gamma(2.0, size=60)
    there = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=0)
    here = bootstrap({"x": torch.from_numpy(values)}, {"x": lambda means: means["x"]})["x"]
    assert here.value == pytest.approx(values.mean())
    width = there.confidence_interval.high - there.confidence_interval.low
    assert here.low == pytest.approx(there.confidence_interval.low, abs=width / 20)
    assert here.high == pytest.approx(there.confidence_interval.high, abs=width / 20)


def test_intervals_cover() -> None:
    """A ratio of means, whose truth is known, in 200 samples of 80 prompts."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        lengths = rng.integers(1, 9, size=80)
        sums = lengths * 2.0 + rng.normal(size=80)
        columns = {"sum": torch.from_numpy(sums), "length": torch.from_numpy(lengths).double()}
        found = bootstrap(columns, {"ratio": lambda m: m["sum"] / m["length"]}, seed=trial)["ratio"]
        covered += found.low <= 2.0 <= found.high
    assert 180 <= covered <= 199


def test_the_same_prompts_are_drawn_for_both() -> None:
    """A difference that is the same at every prompt has no width."""
    scores = torch.rand(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = compare(responses(scores + 0.25), responses(scores))["score"]
    assert found == pytest.approx((0.25, 0.25, 0.25))


def test_what_is_wrong_is_named() -> None:
    scores = torch.zeros(2, 3)
    for n in (0, 4, True, 1.0):
        with pytest.raises(ValueError, match=r"n=.* must be from 1 to the number of responses per prompt, 3"):
            best_of_n_weights(scores, n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 prompts of ours and 1 of theirs"):
        compare(responses(scores), responses(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="judged must be finite, got nan"):
        responses(scores, torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match=r"judged of shape \(3,\) must be \(P, N\) like scores of shape \(2, 3\)"):
        responses(scores, torch.zeros(3))
