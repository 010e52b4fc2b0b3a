"""Collecting whole trajectories from a vector environment into rectangular tensors.

What lives here: `collect`, which plays exactly B episodes on n slots with a prefix-reusing cache, and `Rollout`, what
it returns. What does not: how masks are stored (``action_masks.py``), which log-probs are trained on
(``old_policy.py``), KL, advantages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import unpack
from textgen_env.lm.sampling import sample, warp_logits
from textgen_env.vector_env import NOOP
from textgen_env.wrappers.attributes import env_attribute, may_mask

from .action_masks import ActionMasks, MaskTable


@dataclass
class Rollout:
    """B whole trajectories, right-padded to the longest of them: T columns of prompt and response."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 1 on prompt and response
    response_mask: Tensor  # (B, T) int64, 1 on the tokens the agent wrote: everything per token is told there
    rewards: Tensor  # (B, T) float32, as the environment paid them; no KL part
    sampled_log_probs: Tensor  # (B, T) float32, at sampling time
    terminated: Tensor  # (B,) bool
    truncated: Tensor  # (B,) bool
    scores: Tensor  # (B,) float32, the scorer's value of the whole response
    prompts: list[str]
    texts: list[str]
    finish_reasons: list[str]
    action_masks: ActionMasks | None  # of each token, (B, T); None when all was allowed
    scored: Tensor | None = None  # (B,) bool, whether the score was paid; None: wherever the trajectory was not cut
    states: Tensor | None = None  # (N, d) last hidden states the tokens were sampled from, row-major; if asked for

    @property
    def lengths(self) -> Tensor:
        """(B,) response tokens of each trajectory."""
        return self.response_mask.sum(dim=1)

    @property
    def bootstrapped(self) -> Tensor:
        """(B,) bool: cut from outside, without a score, so that V of the last state stands for what was to come."""
        cut = self.truncated & ~self.terminated
        return cut if self.scored is None else cut & ~self.scored

    def scatter(self, per_token: Tensor) -> Tensor:
        """(N,) values made of `states` → (B, T), 0 off the response tokens."""
        return unpack(per_token, self.response_mask)

    def cut(self, rows: Tensor, *grids: Tensor) -> list[Tensor]:
        """Some trajectories of (B, T) tensors, cut to the longest of them: (b, t) each."""
        width = int(self.attention_mask[rows].sum(dim=1).max())
        return [grid[rows, :width] for grid in grids]

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, attention_mask, response_mask of some trajectories, cut to the longest of them: (b, t) each."""
        input_ids, attention, response = self.cut(rows, self.input_ids, self.attention_mask, self.response_mask)
        return input_ids, attention, response

    def per_response(self, grid: Tensor) -> list[Tensor]:
        """(B, T) → the values of the tokens of each response, on the CPU."""
        pairs = zip(grid.cpu(), self.response_mask.bool().cpu(), strict=True)
        return [values[mask] for values, mask in pairs]

    def masks(self, rows: Tensor) -> Tensor | None:
        """(n, V) bool action masks of the n response tokens of some trajectories, or None when all was allowed."""
        if self.action_masks is None:
            return None
        return self.action_masks.of(self.action_masks.number[rows][self.response_mask[rows].bool()])

    def to(self, device: torch.device) -> Rollout:
        """The same rollout with its tensors on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor | ActionMasks)}
        return replace(self, **moved)


class _Recorder:
    """What happened in each of B episodes, gathered step by step.

    Each step adds one entry per playing slot to every list; sorted by episode at the end, they lie trajectory after
    trajectory, each in the order of its steps: row-major, as everything per token.
    """

    def __init__(self, episodes: int, vocab_size: int) -> None:
        self.episodes: list[NDArray[np.int64]] = []
        self.rewards: list[NDArray[np.float64]] = []
        self.log_probs: list[Tensor] = []
        self.masks: list[list[int]] = []  # numbers in the table
        self.states: list[Tensor] = []
        self.table = MaskTable(vocab_size)
        self.final: list[dict[str, Any]] = [{} for _ in range(episodes)]

    cut = {"score": float("nan"), "prompt": "", "text": "", "finish_reason": "cut"}

    def end(self, episode: int, slot: int, observation: Any, terminated: Any, truncated: Any, info: Any) -> None:
        """An episode is over, in a slot of these batched results of `step`."""
        scored = bool(info["_score"][slot]) if "_score" in info else False  # a cut from outside brings no ending
        self.final[episode] = {
            **{key: observation[key][slot].copy() for key in observation},
            **({key: info[key][slot] for key in ("score", "prompt", "text", "finish_reason")} if scored else self.cut),
            "scored": scored,
            "terminated": terminated[slot],
            "truncated": truncated[slot],
        }

    def rollout(self) -> Rollout:
        """Pad everything to the longest trajectory."""
        final = self.final
        width = max(int(f["attention_mask"].sum()) for f in final)
        ids, attention, response = (
            torch.from_numpy(np.stack([f[key][:width] for f in final]).astype(np.int64))
            for key in ("input_ids", "attention_mask", "response_mask")
        )
        order = torch.from_numpy(np.concatenate(self.episodes).argsort(kind="stable"))
        return Rollout(
            input_ids=ids,
            attention_mask=attention,
            response_mask=response,
            rewards=unpack(torch.from_numpy(np.concatenate(self.rewards)).float()[order], response),
            sampled_log_probs=unpack(torch.cat(self.log_probs).cpu()[order], response),
            terminated=torch.tensor([bool(f["terminated"]) for f in final]),
            truncated=torch.tensor([bool(f["truncated"]) for f in final]),
            scores=torch.tensor([float(f["score"]) for f in final]),
            prompts=[str(f["prompt"]) for f in final],
            texts=[str(f["text"]) for f in final],
            finish_reasons=[str(getattr(f["finish_reason"], "value", f["finish_reason"])) for f in final],
            action_masks=self.table.action_masks(unpack(torch.from_numpy(np.concatenate(self.masks))[order], response)),
            scored=torch.tensor([f["scored"] for f in final]),
            states=torch.cat(self.states)[order.to(self.states[0].device)] if self.states else None,
        )


@torch.no_grad()
def collect(
    venv: gym.vector.VectorEnv,
    language_model: LanguageModel,
    episodes: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    prompts: Sequence[str | Mapping[str, Any] | int] | None = None,
    with_states: bool = False,
) -> Rollout:
    """Play exactly ``episodes`` whole trajectories: a slot that has ended takes the next one, while there are any.

    Args:
        venv: made with ``autoreset_mode=AutoresetMode.DISABLED``; with any wrappers that leave tokens as observations
            and actions. One may mask further tokens (``action_masks(slots)``) or cut episodes.
        language_model: the policy; its cache sees one new token per slot and step.
        episodes: B, at least the number of slots.
        generator: source of the samples.
        temperature, top_k, top_p: how the next token is drawn; the environment's action masks apply as well.
        greedy: take the likeliest token instead.
        prompts: B prompts to play (anything ``reset(options={"prompt": …})`` takes); None lets the environment draw.
        with_states: also keep the hidden states, (N, d).

    Returns:
        The trajectories in the order in which they were started.

    Raises:
        ValueError: fewer episodes than slots; the environment resets by itself, or does not speak of tokens.
    """
    slots = venv.num_envs
    _check(venv, language_model, episodes, prompts)
    cache = language_model.prefix_cache(slots)
    recorder = _Recorder(episodes, language_model.vocab_size)
    episode = np.arange(slots)  # which trajectory each slot plays; ≥ episodes: none any more
    started = slots
    observation, _ = venv.reset(options=_options(np.ones(slots, dtype=bool), episode, prompts))
    while (active := np.flatnonzero(episode < episodes)).size:
        allowed = _action_masks(venv, active)
        lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)[active]
        ids = observation["input_ids"][active, : lengths.max()]
        logits, states = cache.next_logits_and_hidden(ids, lengths, rows=active)
        mask = None if allowed is None else torch.from_numpy(allowed)
        logits = warp_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, mask=mask)
        tokens, log_probs = _greedy(logits) if greedy else sample(logits, generator)
        actions = np.full(slots, NOOP, dtype=np.int64)
        actions[active] = tokens.cpu().numpy()
        observation, rewards, terminated, truncated, info = venv.step(actions)
        recorder.episodes.append(episode[active])
        recorder.rewards.append(rewards[active])
        recorder.log_probs.append(log_probs)
        recorder.masks.append([0] * len(active) if allowed is None else recorder.table.number(allowed))
        if with_states:
            recorder.states.append(states)
        ended = active[(terminated | truncated)[active]]
        for slot in ended:
            recorder.end(episode[slot], slot, observation, terminated, truncated, info)
        env_attribute(venv, "abandon")(ended)  # those that were cut from outside
        episode[ended] = started + np.arange(len(ended))
        started += len(ended)
        refill = np.isin(np.arange(slots), ended) & (episode < episodes)
        if refill.any():
            observation, _ = venv.reset(options=_options(refill, episode, prompts))
    return recorder.rollout()


def _check(venv: Any, language_model: LanguageModel, episodes: int, prompts: Sequence[Any] | None) -> None:
    if "input_ids" not in getattr(venv.single_observation_space, "spaces", ()):
        raise ValueError(f"venv={venv} observes {venv.single_observation_space}; a language model reads tokens")
    tokens = language_model.vocab_size
    if getattr(venv.single_action_space, "n", None) != tokens:
        raise ValueError(
            f"venv={venv} has actions {venv.single_action_space}; a language model chooses one of its {tokens} tokens. "
            "Its choice is narrowed by masks (reference_top_k, forbidden_tokens), not by other actions (TopKActions)"
        )
    mode = venv.metadata.get("autoreset_mode")
    if mode is not gym.vector.AutoresetMode.DISABLED:
        raise ValueError(f"venv has autoreset_mode={mode}; make it with autoreset_mode=AutoresetMode.DISABLED")
    if episodes < venv.num_envs:
        raise ValueError(f"episodes={episodes} must be at least the {venv.num_envs} slots of the environment")
    if prompts is not None and len(prompts) != episodes:
        raise ValueError(f"prompts has {len(prompts)} entries; it needs one for each of the {episodes} episodes")


def _options(refill: NDArray[np.bool_], episode: NDArray[np.int64], prompts: Sequence[Any] | None) -> dict[str, Any]:
    options: dict[str, Any] = {"reset_mask": refill}
    if prompts is not None:
        options["prompt"] = [prompts[min(e, len(prompts) - 1)] for e in episode]
    return options


def _action_masks(venv: gym.vector.VectorEnv, active: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """(n_active, V) allowed tokens, or None where everything is."""
    if not may_mask(venv):
        return None
    masks: NDArray[np.bool_] = env_attribute(venv, "action_masks")(active)
    return None if masks.all() else masks


def _greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    best = logits.log_softmax(dim=-1).max(dim=-1)
    return best.indices, best.values
