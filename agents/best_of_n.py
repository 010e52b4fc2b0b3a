"""Several responses per prompt, and what they say of sampling, best-of-n and greedy decoding, with intervals.

What lives here: `Responses`, which weighs them as best-of-n chooses, the bootstrap over prompts, win rates. What does
not: sampling them (``training/evaluate.py``), the command and its tables (``evaluate.py``).

Best of n takes the response with the best score among n. From N ≥ n responses its expectation is known without
choosing: the k-th best of them is the best of a random n with a probability that depends on N, n and k alone. So every
decoding here is a row of weights per prompt, and every number a weighted mean.

References:
    Nakano et al., "WebGPT" (2021), and Chen et al., "Evaluating large language models trained on code" (2021): the
        unbiased estimator.
    Beirami et al., "Theoretical guarantees on the best-of-n alignment policy" (2024): the bound on its KL.
    Efron & Tibshirani, "An introduction to the bootstrap" (1993), chapter 13: percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from textgen_env.notices import shown

RESAMPLES = 2000  # of the bootstrap
TAILS = (0.025, 0.975)
Measure = Callable[[Mapping[str, Tensor]], Tensor]
"""From means over prompts, by name and all of one shape, to a tensor of that shape."""


class Estimate(NamedTuple):
    """A number and its 95 % interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Responses:
    """N responses of one policy to each of P prompts; every tensor is (P, N) float64.

    Attributes:
        scores: what best-of-n chooses by.
        judged: what a judge says of them; the same where there is no other judge.
        kl: log π(y|x)/π_ref(y|x), nats; of greedy decoding, which has one response, log 1/π_ref(y|x).
        ref_log_probs: log π_ref(y|x), nats.
        lengths: in tokens.
        eos: 1 where a response ended with EOS.

    Raises:
        ValueError: the shapes differ, or a number is not finite.
    """

    scores: Tensor
    judged: Tensor
    kl: Tensor
    ref_log_probs: Tensor
    lengths: Tensor
    eos: Tensor

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if values.dim() != 2 or values.shape != self.scores.shape or not values.numel():
                shape = tuple(self.scores.shape)
                raise ValueError(f"{name} of shape {tuple(values.shape)} must be (P, N) like scores of shape {shape}")
            object.__setattr__(self, name, values.double())
            if not values.isfinite().all():
                raise ValueError(f"{name} must be finite, got {float(values[~values.isfinite()][0])}")

    def metrics(self, n: int = 1, *, seed: int = 0) -> dict[str, Estimate]:
        """Expectations under best-of-n, with intervals over prompts.

        ``score``, ``judge``, ``kl_per_response``, ``reference_perplexity``, ``response_length`` and ``eos_rate``. The
        KL of best-of-n is an upper bound, reached when no two responses have the same score.

        Args:
            n: how many responses there are to choose from; 1 is sampling.
            seed: of the bootstrap.
        """
        weights = best_of_n_weights(self.scores, n)
        columns = {name: (weights * values).sum(dim=1) for name, values in vars(self).items()}
        more = best_of_n_kl(n)
        measures: dict[str, Measure] = {
            "score": itemgetter("scores"),
            "judge": itemgetter("judged"),
            "kl_per_response": lambda means: means["kl"] + more,
            "reference_perplexity": lambda means: (-means["ref_log_probs"] / means["lengths"]).exp(),
            "response_length": itemgetter("lengths"),
            "eos_rate": itemgetter("eos"),
        }
        return bootstrap(columns, measures, seed=seed)


def best_of_n_weights(scores: Tensor, n: int) -> Tensor:
    """The probability that each of N responses is the best of a random n of them: (P, N) → (P, N), rows adding up to 1.

    The response with k − 1 worse ones beside it is chosen with probability C(k − 1, n − 1)/C(N, n); equal scores share
    theirs evenly.

    Args:
        scores: (P, N).
        n: 1 to N.

    Raises:
        ValueError: n is out of range.
    """
    count = scores.shape[1]
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= count:
        raise ValueError(f"n={shown(n)} must be from 1 to the number of responses per prompt, {count}")
    below = torch.tensor([math.comb(k, n) / math.comb(count, n) for k in range(count + 1)], dtype=torch.float64)
    worse = (scores[:, None, :] < scores[:, :, None]).sum(dim=2)  # how many of the N are worse than each
    equal = (scores[:, None, :] == scores[:, :, None]).sum(dim=2)
    return (below[worse + equal] - below[worse]) / equal  # P(the best is among the equal ones), shared by them


def best_of_n_kl(n: int) -> float:
    """KL(best of n‖sampling) in nats where no two responses have the same score, an upper bound elsewhere."""
    return math.log(n) - (n - 1) / n


def bootstrap(
    columns: Mapping[str, Tensor],
    measures: Mapping[str, Measure],
    *,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Functions of means over prompts, with percentile intervals over prompts.

    Args:
        columns: (P,) float64 each, one number per prompt.
        measures: by name, of the columns' means.
        seed: of the resampling; the same seed and P draw the same prompts.
    """
    prompts = len(next(iter(columns.values())))
    drawn = np.random.default_rng(seed).multinomial(prompts, [1 / prompts] * prompts, size=RESAMPLES)
    shares = torch.from_numpy(np.concatenate([np.ones((1, prompts)), drawn])).double() / prompts  # first: as they are
    means = {name: shares @ values for name, values in columns.items()}
    found = {}
    for name, measure in measures.items():
        value, *resampled = measure(means).tolist()
        low, high = np.quantile(resampled, TAILS).tolist()
        found[name] = Estimate(value, low, high)
    return found


def compare(ours: Responses, theirs: Responses, n: int = 1, *, seed: int = 0) -> dict[str, Estimate]:
    """One policy beside another on the same prompts, both by best-of-n, paired by prompt.

    Returns:
        ``win_rate``: the probability that our response has the higher judged score, half of it where they are equal,
        from all N·N' pairs of responses to a prompt; ``score`` and ``judge``: differences, ours − theirs.

    Raises:
        ValueError: the numbers of prompts differ, or n is out of range.
    """
    if len(ours.scores) != len(theirs.scores):
        raise ValueError(f"{len(ours.scores)} prompts of ours and {len(theirs.scores)} of theirs must be the same")
    weights, other = (best_of_n_weights(responses.scores, n) for responses in (ours, theirs))
    difference = ours.judged[:, :, None] - theirs.judged[:, None, :]  # (P, N, N')
    wins = (difference > 0).double() + 0.5 * (difference == 0)
    columns = {
        "win_rate": torch.einsum("pi,pij,pj->p", weights, wins, other),
        "score": (weights * ours.scores).sum(dim=1) - (other * theirs.scores).sum(dim=1),
        "judge": (weights * ours.judged).sum(dim=1) - (other * theirs.judged).sum(dim=1),
    }
    return bootstrap(columns, {name: itemgetter(name) for name in columns}, seed=seed)
