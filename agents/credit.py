"""Which token of a response earned what: values and advantages by Monte Carlo, to be looked at.

What lives here: `credit`, which plays responses on from every prefix of one. What does not: the tree
(``branching.py``), drawing (`textgen_env.render`), the same for training (``vine_ppo.py``).

An environment of text can begin anywhere, so V(s_t) is a mean of what responses that go on from s_t are paid: unbiased,
and with an interval. A(s_t, a_t) = r_t + V(s_{t+1}) − V(s_t) says by how much a token changed what is to be expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from textgen_env.frames import frame_of
from textgen_env.render import Frame

from .branching import Branching, Node


@dataclass(frozen=True, eq=False)
class Credit:
    """Of a response of T tokens; tensors are float64, without any KL.

    Attributes:
        values: (T + 1,) V̂(s_t), of what is paid after s_t; 0 behind a complete response.
        value_errors: (T + 1,) their standard errors; 1.96 of them are a 95 % interval.
        rewards: (T,) what each token was paid.
        advantages: (T,) rewards[t] + values[t + 1] − values[t]. They and values[0] add up to the return, where the
            response is complete.
        advantage_errors: (T,) their standard errors.
        frame: the response to be drawn, values and advantages included.
    """

    values: Tensor
    value_errors: Tensor
    rewards: Tensor
    advantages: Tensor
    advantage_errors: Tensor
    frame: Frame


def credit(branching: Branching, prompt: Any, response: Sequence[int], continuations: int = 16) -> Credit:
    """What each token of a response changed, by the mean of ``continuations`` responses from each prefix.

    Args:
        branching: the tree of the policy whose values they are.
        prompt: anything that ``reset(options={"prompt": …})`` takes.
        response: T ≥ 1 tokens; they may end anywhere.
        continuations: at least 2, from each of the prefixes; the error falls with its root.

    Raises:
        ValueError: no tokens, tokens behind the end of the episode, one that may not be written, or too few
            continuations.
    """
    if isinstance(continuations, bool) or not isinstance(continuations, int) or continuations < 2:
        raise ValueError(f"continuations={continuations!r} must be an integer of at least 2: one has no error")
    nodes = _walk(branching, prompt, response)
    frame = frame_of(cast(Any, branching.venv.unwrapped).engine, 0)
    paid = torch.tensor([node.rewards for node in nodes], dtype=torch.float64)
    rows = [node for node in nodes for _ in range(continuations)]
    ended = torch.tensor([node.rewards for node in branching.play_out(rows)], dtype=torch.float64)
    later = ended.view(-1, continuations) - paid[:, None]  # (T + 1, continuations)
    values, errors = later.mean(dim=1), later.std(dim=1) / continuations**0.5
    rewards = paid.diff()
    advantages = rewards + values.diff()
    frame = replace(frame, values=values[:-1].tolist(), advantages=advantages.tolist())
    return Credit(values, errors, rewards, advantages, errors[1:].hypot(errors[:-1]), frame)


def _walk(branching: Branching, prompt: Any, response: Sequence[int]) -> list[Node]:
    """The T + 1 states of a response; the last is in slot 0."""
    if not response:
        raise ValueError("response=[] must have at least one token")
    nodes = [branching.root(prompt)]
    for at, token in enumerate(response):
        if nodes[-1].ended:
            raise ValueError(f"response has {len(response)} tokens, and its episode ended with {at} of them")
        if not (0 <= token < len(nodes[-1].mask) and nodes[-1].mask[token]):
            raise ValueError(f"response[{at}]={token} is no token that may be written there")
        log_prob = float(branching.read(nodes[-1:]).log_probs[0, token])
        nodes += branching.step(nodes[-1:], [token], [log_prob])
    return nodes
