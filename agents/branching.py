"""The tree of all responses to a prompt, grown where somebody wants it: states that are left and come back to.

What lives here: `Node` and `Branching`, which reads the model at nodes, steps the environment from them and plays them
out, in batches of as many as there are slots. What does not: which nodes are worth it (``search.py``), states of the
environment themselves (`TextGenVectorEnv.clone_state`).

A step costs one decode: the cache keeps what it has read in each slot and copies keys and values from one slot to
another where they share a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams, sample, warp_logits
from textgen_env.vector_env import NOOP
from textgen_env.wrappers.attributes import env_attribute

Values = Callable[[Tensor], Tensor]
"""(n, hidden) last hidden states → (n,) values; a `ValueHead` is one."""


@dataclass(eq=False)
class Node:
    """A response as far as it is written.

    Attributes:
        prefix: tokens of prompt and response.
        tokens: the agent's own.
        log_prob: log π of them, nats.
        rewards: what the environment has paid, without any KL.
        ended: whether the response is complete.
        score: of a complete one, else NaN.
        text: likewise, else "".
        state: for `restore_state`.
        mask: bool (V,), what may come next.
    """

    prefix: list[int]
    tokens: tuple[int, ...]
    log_prob: float
    rewards: float
    ended: bool
    score: float
    text: str
    state: Any = field(repr=False)
    mask: NDArray[np.bool_] = field(repr=False)


class Reading(NamedTuple):
    """What the model says at n nodes."""

    log_probs: Tensor  # (n, V), −inf where nothing may be written
    values: Tensor | None  # (n,), if there is a critic


class Path(NamedTuple):
    """From a node to the end of a response."""

    nodes: list[Node]  # the last of them complete
    log_probs: list[Tensor]  # (V,) each, one fewer: log π at the nodes before the last


class Branching:
    """The tree below a prompt, in a vector environment whose episodes it takes over.

    Args:
        venv: made with ``autoreset_mode=AutoresetMode.DISABLED``; its slots are the batch.
        language_model: the policy.
        sampling: what its log-probs are of.
        generator: source of what `play_out` draws.
        critic: V of last hidden states, if `read` is to tell values.

    Attributes:
        forwards: states at which the model was read so far.
    """

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        language_model: LanguageModel,
        *,
        sampling: SamplingParams = PLAIN,
        generator: torch.Generator | None = None,
        critic: Values | None = None,
    ) -> None:
        self.venv, self.sampling, self.critic = venv, sampling, critic
        self.language_model = language_model
        self.generator = generator or torch.Generator(language_model.model.device).manual_seed(0)
        self.cache = language_model.prefix_cache(venv.num_envs)
        self.forwards = 0

    def root(self, prompt: Any) -> Node:
        """The beginning of the response to a prompt: anything that ``reset(options={"prompt": …})`` takes."""
        with env_attribute(self.venv, "played_by")(self.language_model):
            observation, _ = self.venv.reset(options={"prompt": [prompt] * self.venv.num_envs})
        return self._node(0, observation, (), 0.0, 0.0)

    @torch.no_grad()
    def read(self, nodes: Sequence[Node]) -> Reading:
        """log π of every next token, and V, at nodes that have not ended."""
        parts = [self._read(nodes[i : i + self.venv.num_envs]) for i in range(0, len(nodes), self.venv.num_envs)]
        log_probs, values = zip(*parts, strict=True)
        return Reading(torch.cat(log_probs), None if values[0] is None else torch.cat(values))

    def step(self, nodes: Sequence[Node], actions: Sequence[int], log_probs: Sequence[float]) -> list[Node]:
        """The nodes behind these actions.

        Args:
            nodes: n that have not ended; the same may be there more than once.
            actions: one each.
            log_probs: log π of each action, as `read` told it.
        """
        found = []
        for rows in self._chunks(len(nodes)):
            for slot, row in enumerate(rows):
                self._restore(slot, nodes[row])
            observation, rewards, info = self._step([actions[row] for row in rows])
            for slot, row in enumerate(rows):
                node = nodes[row]
                tokens, log_prob = (*node.tokens, actions[row]), node.log_prob + log_probs[row]
                found.append(self._node(slot, observation, tokens, log_prob, node.rewards + rewards[slot], info))
        return found

    @torch.no_grad()
    def play_out(self, nodes: Sequence[Node]) -> list[Node]:
        """A complete response behind each node, sampled; without states on the way."""
        return [path.nodes[-1] for path in self._paths(nodes, keep=False)]

    def paths(self, nodes: Sequence[Node]) -> list[Path]:
        """The same with all states on the way, and what the model said there."""
        return self._paths(nodes, keep=True)

    # --- inside -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _paths(self, nodes: Sequence[Node], *, keep: bool) -> list[Path]:
        return [path for rows in self._chunks(len(nodes)) for path in self._play([nodes[row] for row in rows], keep)]

    def _play(self, nodes: Sequence[Node], keep: bool) -> list[Path]:
        """One chunk; without ``keep`` a path is its last node alone."""
        paths = [Path([node], []) for node in nodes]
        for slot, node in enumerate(nodes):
            if not node.ended:
                self._restore(slot, node)
        while slots := [slot for slot, path in enumerate(paths) if not path.nodes[-1].ended]:
            log_probs, _ = self._read([paths[slot].nodes[-1] for slot in slots], slots)
            actions, of_actions = sample(log_probs, generator=self.generator)
            chosen = dict(zip(slots, actions.tolist(), strict=True))
            observation, rewards, info = self._step([chosen.get(slot, NOOP) for slot in range(max(slots) + 1)])
            for row, (slot, told) in enumerate(zip(slots, of_actions.tolist(), strict=True)):
                path, node = paths[slot], paths[slot].nodes[-1]
                tokens, paid = (*node.tokens, chosen[slot]), node.rewards + rewards[slot]
                after = self._node(slot, observation, tokens, node.log_prob + told, paid, info, keep=keep)
                if keep:
                    path.log_probs.append(log_probs[row])
                else:
                    path.nodes.clear()
                path.nodes.append(after)
        return paths

    def _read(self, nodes: Sequence[Node], slots: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        lengths = np.array([len(node.prefix) for node in nodes])
        ids = np.zeros((len(nodes), lengths.max()), dtype=np.int64)
        for row, node in enumerate(nodes):
            ids[row, : lengths[row]] = node.prefix
        rows = np.arange(len(nodes)) if slots is None else np.array(slots)
        logits, states = self.cache.next_logits_and_hidden(ids, lengths, rows=rows)
        self.forwards += len(nodes)
        mask = torch.from_numpy(np.stack([node.mask for node in nodes]))
        log_probs = warp_logits(logits, self.sampling, mask=mask).log_softmax(dim=-1)
        return log_probs, None if self.critic is None else self.critic(states).clone()

    def _step(self, actions: Sequence[int]) -> tuple[Any, NDArray[np.float64], dict[str, Any]]:
        """One step in the first slots; the others rest."""
        everywhere = np.full(self.venv.num_envs, NOOP, dtype=np.int64)
        everywhere[: len(actions)] = actions
        with env_attribute(self.venv, "played_by")(self.language_model):
            observation, rewards, terminated, truncated, info = self.venv.step(everywhere)
        return observation, rewards, {**info, "ended": terminated | truncated}

    def _node(
        self,
        slot: int,
        observation: Any,
        tokens: tuple[int, ...],
        log_prob: float,
        rewards: float,
        info: dict[str, Any] | None = None,
        *,
        keep: bool = True,
    ) -> Node:
        ended = info is not None and bool(info["ended"][slot])
        score, text = (info["score"][slot], info["text"][slot]) if info is not None and ended else (math.nan, "")
        length = int(observation["attention_mask"][slot].sum())
        prefix = observation["input_ids"][slot, :length].tolist()
        state = env_attribute(self.venv, "clone_state")(slot) if keep and not ended else None
        mask = env_attribute(self.venv, "action_masks")([slot])[0] if not ended else np.zeros(0, dtype=bool)
        return Node(prefix, tokens, float(log_prob), float(rewards), ended, float(score), str(text), state, mask)

    def _restore(self, slot: int, node: Node) -> None:
        env_attribute(self.venv, "restore_state")(slot, node.state)

    def _chunks(self, count: int) -> Iterator[range]:
        size = self.venv.num_envs
        return (range(begin, min(begin + size, count)) for begin in range(0, count, size))
