"""What a critic knows: V at states of sampled responses beside the mean of many continuations from each of them.

    python -m benchmarks.critic --updates 40 --critic-warmup 10

What lives here: the states, the continuations, and the estimators. What does not: training (``agents/ppo.py``).

The policy answers prompts; in each third of a response a token is drawn, and from the state s_i before it k responses
are played to their end: returns G_i1 … G_ik (score − β·KL, of what comes after s_i), their mean m_i and variance s_i²
(divided by k − 1). With V_i = E[G_i1] for the truth, V̂_i for the critic, and Var for the variance over states (divided
by n − 1), two unbiased estimates take the noise of a finite k off:

    Var(V)       = Var(m) − mean(s²)/k                 what a perfect critic explains: the attainable
    Var(V − V̂)   = Var(m − V̂) − mean(s²)/k             what this one leaves of it

The explained variance of single returns, 1 − Var(G − V̂)/Var(G), is at most Var(V)/Var(G) with Var(G) = Var(V) +
mean(s²). As a *share of the attainable* it is 1 − Var(V − V̂)/Var(V): 1 for the truth, 0 for a constant, negative for a
critic that is worse than one. Likewise E[(V̂ − V)²] = mean((V̂ − m)²) − mean(s²)/k, of which ``bias`` = mean(V̂ − m).
A ratio of unbiased estimates is itself right to order 1/n; brackets are 95 % intervals of a bootstrap over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from benchmarks.report import keep, markdown
from textgen_env import LanguageModel
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOSettings
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.vine_ppo import play_on

PARTS = ("first third", "second third", "last third")
RESAMPLES = 1000  # of the bootstrap


@dataclass
class CriticSettings:
    """Compare a critic with Monte-Carlo values: before training, after the critic's warm-up, and at the end."""

    run: OmitArgPrefixes[PPOSettings] = field(default_factory=PPOSettings)
    """The run; it is trained here without its folder."""
    states: int = 64
    """Responses, each with a state in each third."""
    continuations: int = 32
    """From each state."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


class Explained(NamedTuple):
    """See the module's docstring; in the unit of the return, but the shares."""

    share: float
    attainable: float  # Var(V)/Var(G): the explained variance that the truth itself would have
    explained: float  # that of the critic, of single returns
    bias: float
    error: float  # √E[(V̂ − V)²]


def explained(values: Tensor, returns: Tensor) -> Explained:
    """The estimators of the module's docstring.

    Args:
        values: (n,) V̂ of n ≥ 2 states.
        returns: (n, k) of k ≥ 2 continuations from each.

    Raises:
        ValueError: fewer, or shapes that do not fit.
    """
    truth, left, noise = variances(values, returns)
    share = 1 - left / truth if truth > 0 else math.nan
    attainable = truth / (truth + noise) if truth + noise > 0 else math.nan
    errors = values.double() - returns.double().mean(dim=1)
    square = float(errors.square().mean()) - noise / returns.shape[1]
    return Explained(share, attainable, share * attainable, float(errors.mean()), math.sqrt(max(0.0, square)))


def variances(values: Tensor, returns: Tensor) -> tuple[float, float, float]:
    """Var(V), Var(V − V̂) and mean(s²), each unbiased; arguments and errors as those of `explained`."""
    if returns.dim() != 2 or values.shape != returns.shape[:1] or min(returns.shape) < 2:
        shapes = f"values {tuple(values.shape)} and returns {tuple(returns.shape)}"
        raise ValueError(f"{shapes} must be (n,) and (n, k) with n and k of at least 2")
    values, returns = values.double(), returns.double()
    means, noise = returns.mean(dim=1), float(returns.var(dim=1).mean())
    of_means = noise / returns.shape[1]
    return float(means.var()) - of_means, float((means - values).var()) - of_means, noise


def interval(values: Tensor, returns: Tensor, clusters: Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % of ``share``, when whole clusters (n,) of states (those of one prompt) are drawn again."""
    generator = torch.Generator().manual_seed(seed)
    names = clusters.unique()
    members = [(clusters == name).nonzero().flatten() for name in names]
    shares = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(names), (len(names),), generator=generator).tolist()
        rows = torch.cat([members[i] for i in drawn])
        shares.append(explained(values[rows], returns[rows]).share)
    found = torch.tensor([share for share in shares if math.isfinite(share)])
    low, high = found.quantile(torch.tensor([0.025, 0.975])).tolist() if len(found) else (math.nan, math.nan)
    return low, high


class States(NamedTuple):
    """n states on the way of some responses."""

    prompts: list[int]
    responses: list[list[int]]  # what is written already
    parts: list[str]
    values: Tensor  # (n,) V̂


@torch.no_grad()
def sample_states(ppo: PPO, count: int, generator: torch.Generator) -> States:
    """A state in each third of the response to each of ``count`` prompts: the one before a token drawn from it."""
    prompts = torch.randperm(len(ppo.env.prompts), generator=generator)[:count].tolist()
    rollout = ppo.collect(prompts + prompts[:1] * max(0, ppo.venv.num_envs - count))
    values = rollout.per_response(ppo.estimate(rollout)[0].values)
    tokens = rollout.per_response(rollout.input_ids)
    states = States([], [], [], torch.zeros(3 * count))
    for row in range(len(prompts)):
        for part, name in enumerate(PARTS):
            place = float(torch.rand((), generator=generator))
            at = int(len(tokens[row]) * (part + place) / len(PARTS))
            states.values[len(states.prompts)] = values[row][at]
            states.prompts.append(prompts[row])
            states.responses.append(tokens[row][:at].tolist())
            states.parts.append(name)
    return states


def judge(ppo: PPO, settings: CriticSettings, when: str) -> Iterator[dict[str, Any]]:
    """One record for all states, and one for each third."""
    generator = torch.Generator().manual_seed(settings.run.seed)
    states = sample_states(ppo, settings.states, generator)
    returns = play_on(ppo, states.prompts, states.responses, settings.continuations)
    prompts = torch.tensor(states.prompts)
    for part in ("all", *PARTS):
        rows = torch.tensor([i for i, name in enumerate(states.parts) if part in ("all", name)])
        found = explained(states.values[rows], returns[rows])
        low, high = interval(states.values[rows], returns[rows], prompts[rows])
        yield {"benchmark": "critic", "when": when, "part": part, **found._asdict(), "low": low, "high": high}


def measure(settings: CriticSettings) -> Iterator[dict[str, Any]]:
    """Train, and judge the critic at the three moments."""
    run = settings.run
    venv, _ = make_environments(run, AutoresetMode.DISABLED)
    venv.reset(seed=run.seed)
    model = LanguageModel(run.model, device=run.device, dtype=run.dtype)
    policy = ActorCritic(model, run.policy, generator=torch.Generator().manual_seed(run.seed))
    ppo = PPO(venv, policy, run.ppo, seed=run.seed, total_updates=run.updates)
    ppo.estimate(ppo.collect())  # V starts at the mean return of a rollout
    yield from judge(ppo, settings, "before")
    if run.ppo.critic_warmup:
        ppo.train(run.ppo.critic_warmup)
        yield from judge(ppo, settings, "after the critic's warm-up")
    ppo.train(run.updates - run.ppo.critic_warmup)
    yield from judge(ppo, settings, "after training")


def table(records: Sequence[dict[str, Any]]) -> str:
    """One line per record."""
    columns = ("critic", "states", "share of the attainable (95 %)", "attainable", "explained", "bias", "error")
    rows = [
        (
            r["when"],
            r["part"],
            f"{r['share']:.2f} ({r['low']:.2f} to {r['high']:.2f})",
            *(f"{r[name]:.2f}" for name in ("attainable", "explained")),
            *(f"{r[name]:.3f}" for name in ("bias", "error")),
        )
        for r in records
    ]
    return markdown(columns, rows)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(CriticSettings)
    print(table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main()
