"""How much of the best possible J* can be learned from N scored responses.

    python -m benchmarks.learnable --responses 1024 5120

What lives here: the experiment and its estimate. What does not: J* itself (``agents/optimum.py``).

π* ∝ π_ref·exp(score/β) presumes that scores are known, before a word is written, to a fraction of β. A trainer knows
them from the responses that it has paid for. Here the model that is to be trained learns by regression what N responses
of the reference score, and then judges the reference's responses y_1 … y_k to each of the held-out prompts. To draw one
of them by w_i ∝ exp(ŝ(y_i)/τ) instead of at random is worth

    J_τ = Σ w_i·s(y_i) − β·Σ w_i·log(k·w_i)

with ŝ = 0 the mean score, and with ŝ = s and τ = β the highest of all (J* of these k). Between the two lies what N
responses teach: the judge sees whole responses and may be asked for each, which no policy that writes token by token
can do. τ is chosen on half of the held-out prompts and J told of the other half; brackets are 95 % intervals of a
bootstrap over prompts. The judge learns from the reference's responses, a trainer from its own: this is a measure and
not a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from benchmarks.report import keep, markdown
from textgen_env import LanguageModel
from textgen_env.agents.advantages import masked_mean
from textgen_env.agents.policy import ActorCritic, final_states
from textgen_env.agents.ppo import PPO, PPOSettings
from textgen_env.agents.rollout import Rollout
from textgen_env.agents.training.environments import make_environments
from textgen_env.agents.training.optim import MasterAdamW, clip_grad_norm, lr_factor
from textgen_env.lm.token_batch import TokenBatch

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)  # τ/β
RESAMPLES = 1000  # of the bootstrap


@dataclass
class LearnableSettings:
    """What the scores of N responses teach a judge."""

    run: OmitArgPrefixes[PPOSettings] = field(default_factory=PPOSettings)
    """Task, model, β and seed; nothing is trained but the judge."""
    responses: tuple[int, ...] = (1280, 5120)
    """N, to training prompts."""
    judged: int = 64
    """k responses to each of ``eval_prompts`` held-out prompts."""
    passes: int = 4
    """Over the N responses."""
    batch: int = 48
    """Responses per step of the judge."""
    out: Path | None = None
    """Also append the JSON lines to this file."""


def worth(scores: Tensor, judged: Tensor, temperature: float, beta: float) -> Tensor:
    """(n,) J_τ of each prompt; see the module's docstring.

    Args:
        scores, judged: (n, k) s and ŝ of k responses to each of n prompts.
        temperature: τ.
        beta: β, reward per nat.
    """
    log_weights = (judged / temperature).log_softmax(dim=1)
    kl_parts = log_weights + torch.tensor(float(scores.shape[1])).log()
    return (log_weights.exp() * (scores - beta * kl_parts)).sum(dim=1)


def best_worth(scores: Tensor, judged: Tensor, beta: float) -> Tensor:
    """(n/2,) J_τ of the second half of the prompts, τ having been chosen on the first."""
    half = len(scores) // 2
    chosen = max(TEMPERATURES, key=lambda t: float(worth(scores[:half], judged[:half], t * beta, beta).mean()))
    return worth(scores[half:], judged[half:], chosen * beta, beta)


def interval(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean of (n,) values."""
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def with_end(batch: TokenBatch) -> TokenBatch:
    """The same, with the state after the last token among those that values are read from."""
    ids, attention, end = final_states(batch.input_ids, batch.attention_mask)
    return TokenBatch(ids, attention, torch.nn.functional.pad(batch.response_mask, (0, 1)) + end)


def learn(policy: ActorCritic, rollout: Rollout, settings: LearnableSettings) -> None:
    """Regress the final score from every state of the responses, the last one included."""
    optimizer = MasterAdamW(policy.parameter_groups(settings.run.ppo.lr, settings.run.ppo.value_lr), weight_decay=0.01)
    generator = torch.Generator().manual_seed(settings.run.seed)
    scores, count = rollout.rewards.sum(dim=1), len(rollout.texts)
    steps = settings.passes * count // settings.batch
    for step in range(steps):
        rows = torch.randint(count, (settings.batch,), generator=generator)
        batch = with_end(rollout.rows(rows))
        values = policy(batch).values
        loss = masked_mean((values - scores[rows, None]).square(), batch.response_mask.bool())
        loss.backward()
        clip_grad_norm(optimizer, settings.run.ppo.max_grad_norm)
        optimizer.step(lr_factor(step, steps, warmup=min(30, steps // 4), decay="linear"))


@torch.no_grad()
def judge(policy: ActorCritic, rollout: Rollout) -> Tensor:
    """(B,) ŝ of whole responses."""
    rows = torch.arange(len(rollout.texts)).split(64)
    return torch.cat([policy.final_values(*rollout.rows(some)[:2]) for some in rows])


def measure(settings: LearnableSettings) -> Iterator[dict[str, Any]]:
    """One record per N, the first without any."""
    run, beta = settings.run, settings.run.ppo.kl_coef
    venv, held_out = make_environments(run, AutoresetMode.DISABLED)

    def make(env: Any) -> PPO:
        model = LanguageModel(run.model, device=run.device, dtype=run.dtype)
        policy = ActorCritic(model, run.policy, generator=torch.Generator().manual_seed(run.seed))
        return PPO(env, policy, run.ppo, seed=run.seed)

    prompts = [i for i in range(len(held_out.unwrapped.prompts)) for _ in range(settings.judged)]
    test = make(held_out).collect(prompts)
    scores = test.rewards.sum(dim=1).view(-1, settings.judged)
    start, best = worth(scores, 0 * scores, 1.0, beta), worth(scores, scores, beta, beta)
    half = len(scores) // 2

    def record(count: int, values: Tensor, explained: float) -> dict[str, Any]:
        low, high = interval(values)
        share = float((values - start[half:]).mean() / (best - start)[half:].mean())
        found = {"responses": count, "explained": explained, "J": float(values.mean()), "low": low, "high": high}
        return {"benchmark": "learnable", "env": run.env, "seed": run.seed, **found, "share": share}

    yield record(0, start[half:], 0.0)
    for count in settings.responses:
        ppo = make(venv)
        rollout = ppo.collect(ppo.draw_prompts(count))
        assert ppo.policy.value_head is not None
        ppo.policy.value_head.start_at(float(rollout.rewards.sum(dim=1).mean()))
        learn(ppo.policy, rollout, settings)
        judged = judge(ppo.policy, test).view(-1, settings.judged)
        explained = 1 - float((scores - judged).square().mean() / scores.var())
        yield record(count, best_worth(scores, judged, beta), explained)
    yield record(-1, best[half:], 1.0)


def table(records: Sequence[dict[str, Any]]) -> str:
    """One line per N."""
    columns = ("responses learned from", "explained variance of scores", "J (95 %)", "share of J*")
    names = {0: "none", -1: "all scores known"}
    rows = [
        (
            names.get(r["responses"], f"{r['responses']:,}"),
            f"{r['explained']:.2f}",
            f"{r['J']:.3f} ({r['low']:.3f} to {r['high']:.3f})",
            f"{r['share']:.0%}",
        )
        for r in records
    ]
    return markdown(columns, rows)


def main() -> None:
    """See the module's docstring."""
    settings = tyro.cli(LearnableSettings)
    print(table(keep(measure(settings), settings.out)))


if __name__ == "__main__":
    main()
