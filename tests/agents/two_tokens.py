"""A task of at most two tokens out of three, so that everything that can be written can be counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from words import WORDS

from textgen_env.agents.action_masks import MaskTable
from textgen_env.agents.rollout import Rollout
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.token_batch import TokenBatch

EOS, A, B = 0, 3, 4
LEFT_OUT = [word for i, word in enumerate(WORDS) if i not in (EOS, A, B)]
PROMPT = [6, 7]
RESPONSES = [[EOS], *([first, second] for first, second in product((A, B), (EOS, A, B)))]
"""All that can be written in two tokens."""


def score(completions: list[str], **_: Any) -> list[float]:
    """An odd table, so that no two responses are alike."""
    return [0.3 + text.split().count("a") - 0.4 * (text.split()[:1] == ["b"]) for text in completions]


TWO_TOKENS: dict[str, Any] = {
    "num_envs": 2,
    "prompts": ["d e"],
    "scorer": score,
    "max_new_tokens": 2,
    "forbidden_tokens": LEFT_OUT,
}
"""Of the environment; ``num_envs`` is the least that groups of two need."""


def masked_log_probs(model: Any, response: list[int]) -> torch.Tensor:
    """log π of a response among the three tokens, by the library's forward of each prefix."""
    total = torch.zeros(())
    for t, token in enumerate(response):
        logits = model(torch.tensor([PROMPT + response[:t]])).logits[0, -1][[EOS, A, B]]
        total = total + logits.log_softmax(-1)[[EOS, A, B].index(token)]
    return total


def rollout_of(responses: list[list[int]], model: LanguageModel) -> Rollout:
    """What `collect` would return if these were drawn for the first prompt."""
    tokens = TokenBatch.from_tokens([PROMPT] * len(responses), responses)
    texts = [model.decode(response) for response in responses]
    scores = torch.tensor(score(texts))
    rewards = torch.zeros(tokens.input_ids.shape)
    rewards[torch.arange(len(responses)), tokens.lengths - 1] = scores
    table, nothing = MaskTable(len(WORDS)), torch.zeros(len(responses), dtype=torch.bool)
    (number,) = table.number(torch.tensor([[i in (EOS, A, B) for i in range(len(WORDS))]]).numpy())
    return Rollout(
        tokens=tokens,
        rewards=rewards,
        sampled_log_probs=torch.zeros(rewards.shape),
        terminated=~nothing,
        truncated=nothing,
        scores=scores,
        prompts=["d e"] * len(responses),
        texts=texts,
        finish_reasons=["eos"] * len(responses),
        action_masks=table.action_masks(number * tokens.response_mask),
        chosen_prompts=[0] * len(responses),
    )


def groups(model: LanguageModel, size: int) -> Iterator[tuple[float, Rollout]]:
    """Everything that one group of so many responses can be, with its probability."""
    with torch.no_grad():
        probability = [masked_log_probs(model.model, response).exp().item() for response in RESPONSES]
    assert sum(probability) == pytest.approx(1)
    for group in product(range(len(RESPONSES)), repeat=size):
        weight = 1.0
        for i in group:
            weight *= probability[i]
        yield weight, rollout_of([RESPONSES[i] for i in group], model)


def objective(trainer: Any, source: Path) -> torch.Tensor:
    """Σ_y π(y)·(score(y) − β·log(π(y)/π_ref(y))) over all responses, with gradient."""
    reference, model = LanguageModel(source).model, trainer.policy.actor
    total = torch.zeros(())
    for response in RESPONSES:
        log_prob, ref = masked_log_probs(model, response), masked_log_probs(reference, response).detach()
        paid = score([trainer.policy.language_model.decode(response)])[0]
        total = total + log_prob.exp() * (paid - trainer.kl.value * (log_prob - ref))
    return total


def true_values(trainer: Any) -> list[float]:
    """V of the three states (nothing written, "a", "b") where the policy is the reference: the scores, weighted."""
    values, model = [], trainer.policy.language_model
    for prefix in ([], [A], [B]):
        below = [r for r in RESPONSES if r[: len(prefix)] == prefix]
        with torch.no_grad():
            weights = torch.stack([masked_log_probs(model.model, r) for r in below]).softmax(0)
        values.append(float(weights @ torch.tensor(score([model.decode(r) for r in below]))))
    return values


@torch.no_grad()
def write_values(trainer: Any, values: list[float]) -> None:
    """Let the value head say exactly this of the three states: its last layer solves three equations."""
    model, head = trainer.policy.language_model.model, trainer.policy.value_head
    hidden = [model.model(torch.tensor([[*PROMPT, *prefix]])).last_hidden_state[0, -1] for prefix in ([], [A], [B])]
    features = head.hidden(torch.nn.functional.layer_norm(torch.stack(hidden), hidden[0].shape)).relu()
    head.out.bias.zero_()
    head.out.weight.copy_((torch.linalg.pinv(features) @ torch.tensor(values)).unsqueeze(0))
    torch.testing.assert_close(head(torch.stack(hidden)), torch.tensor(values), atol=1e-4, rtol=1e-4)
