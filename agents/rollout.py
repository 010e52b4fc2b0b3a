"""Collecting whole trajectories from a vector environment into rectangular tensors.

What lives here: `collect`, which plays exactly B episodes on n slots with a prefix-reusing cache, and `Rollout`, what
it returns. What does not: how masks are stored (``action_masks.py``), which log-probs are trained on
(``training/on_policy.py``), KL, advantages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams, sample, takes_sampling, warp_logits
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.vector_env import NOOP
from textgen_env.wrappers.attributes import env_attribute

from .action_masks import ActionMasks, MaskTable
from .lagging_mask import LaggingMask, StepMasks


@dataclass
class Rollout:
    """B whole trajectories, right-padded to the longest of them: T columns of prompt and response."""

    tokens: TokenBatch  # (B, T) each; everything per token is told where response_mask is 1
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
    states: Tensor | None = None  # (N, d) last hidden states the N tokens were sampled from, row by row; if asked for
    chosen_prompts: list[Any] | None = None  # the B prompts that `collect` was given; None: the environment drew them
    failed_episodes: int = 0  # that were played again, since the environment's infrastructure failed
    reward_parts: dict[str, Tensor] = field(default_factory=dict)  # (B,) each: what a trajectory was paid, by part
    begun: Tensor | None = None  # (B,) tokens that each response was given to begin with; None: none was

    @property
    def input_ids(self) -> Tensor:
        """(B, T) int64."""
        return self.tokens.input_ids

    @property
    def attention_mask(self) -> Tensor:
        """(B, T) int64, 1 on prompt and response."""
        return self.tokens.attention_mask

    @property
    def response_mask(self) -> Tensor:
        """(B, T) int64, 1 on the tokens that the agent wrote: not on those that a response was given to begin with."""
        return self.tokens.response_mask

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of each trajectory that the agent wrote."""
        return self.tokens.response_lengths

    @property
    def bootstrapped(self) -> Tensor:
        """(B,) bool: cut from outside, without a score, so that V of the last state stands for what was to come."""
        cut = self.truncated & ~self.terminated
        return cut if self.scored is None else cut & ~self.scored

    def rows(self, rows: Tensor) -> TokenBatch:
        """The tokens of some trajectories, cut to the longest of them: (b, t) each."""
        return self.tokens.rows(rows)

    def cut(self, rows: Tensor, *grids: Tensor) -> list[Tensor]:
        """Some trajectories of (B, T) tensors, cut likewise."""
        return self.tokens.cut(rows, *grids)

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
        movable = Tensor | ActionMasks | TokenBatch
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, movable)}
        return replace(self, **moved)


@torch.no_grad()
@takes_sampling
def collect(
    venv: gym.vector.VectorEnv,
    language_model: LanguageModel,
    episodes: int,
    *,
    generator: torch.Generator,
    sampling: SamplingParams = PLAIN,
    greedy: bool = False,
    prompts: Sequence[str | Mapping[str, Any] | int] | None = None,
    responses: Sequence[str | Sequence[int] | None] | None = None,
    with_states: bool = False,
    lagging_mask: LaggingMask | None = None,
) -> Rollout:
    """Play exactly ``episodes`` whole trajectories: a slot that has ended takes the next one, while there are any.

    The environment leaves the KL to the caller for as long as this lasts. An episode that ends with the
    ``finish_reason`` "failed" (the environment's infrastructure did, so that there is no score) is not the policy's
    doing: it is left out, counted, and its prompt played again.

    Args:
        venv: made with ``autoreset_mode=AutoresetMode.DISABLED``; with any wrappers that leave tokens as observations
            and actions. One may mask further tokens (``action_masks(slots)``) or cut episodes.
        language_model: the policy; its cache sees one new token per slot and step.
        episodes: B, at least the number of slots.
        generator: source of the samples.
        sampling: how the next token is drawn; the environment's action masks apply as well.
        greedy: take the likeliest token instead.
        prompts: B prompts to play (anything ``reset(options={"prompt": …})`` takes); None lets the environment draw.
        responses: what each of the ``prompts``' responses begins with, as text or token ids; None: with nothing. The
            agent did not choose it: like a prompt it is outside of the ``response_mask``, and nothing is told of it.
        with_states: also keep the hidden states, (N, d).
        lagging_mask: narrows what the environment allows further; costs a second decoding pass per step.

    Returns:
        The trajectories in the order in which they were started.

    Raises:
        ValueError: fewer episodes than slots; the environment resets by itself, or does not speak of tokens.
        RuntimeError: more episodes failed than were to be played.
    """
    _check(venv, language_model, episodes, prompts, responses)
    cache, masks = language_model.prefix_cache(venv.num_envs), StepMasks(venv, lagging_mask)
    slots, recorder = _Slots(venv, episodes, prompts, responses), _Recorder(venv, episodes, language_model.vocab_size)
    draw = _greedy if greedy else partial(sample, generator=generator)
    with env_attribute(venv, "played_by")(language_model):
        observation = slots.reset()
        while (active := slots.active).size:
            lengths = observation["attention_mask"].sum(axis=1, dtype=np.int64)[active]
            ids = observation["input_ids"][active, : lengths.max()]
            allowed = masks(ids, lengths, active)
            logits, states = cache.next_logits_and_hidden(ids, lengths, rows=active)
            mask = None if allowed is None else torch.from_numpy(allowed)
            tokens, log_probs = draw(warp_logits(logits, sampling, mask=mask))
            actions = np.full(venv.num_envs, NOOP, dtype=np.int64)
            actions[active] = tokens.cpu().numpy()
            observation, rewards, terminated, truncated, info = venv.step(actions)
            playing = slots.episode[active]
            recorder.add(playing, lengths, rewards[active], log_probs, allowed, states if with_states else None)
            recorder.add_parts(playing, active, info.get("reward_parts", {}))
            ended = active[(terminated | truncated)[active]]
            failed = [slot for slot in ended if recorder.end(slots.episode[slot], slot, observation, info)]
            recorder.flags(slots.episode[ended], terminated[ended], truncated[ended])
            if ended.size and slots.end(ended, failed):
                observation = slots.reset()
    return recorder.rollout(prompts)


class _Slots:
    """Which episode each slot plays, and which slots are to begin another."""

    def __init__(
        self,
        venv: gym.vector.VectorEnv,
        episodes: int,
        prompts: Sequence[Any] | None,
        responses: Sequence[Any] | None,
    ) -> None:
        self.venv, self.episodes, self.prompts, self.responses = venv, episodes, prompts, responses
        self.episode = np.arange(venv.num_envs)  # ≥ episodes: none any more
        self._started = venv.num_envs
        self._begin = np.ones(venv.num_envs, dtype=bool)
        self._again: dict[int, Any] = {}  # prompts of failed episodes, by slot

    @property
    def active(self) -> NDArray[np.int64]:
        """Those that play."""
        return np.flatnonzero(self.episode < self.episodes)

    def reset(self) -> dict[str, NDArray[Any]]:
        """Begin what is to begin; the observation."""
        options: dict[str, Any] = {"reset_mask": self._begin}
        if self.prompts is not None:
            options["prompt"] = self._of_slots(self.prompts)
            if self.responses is not None:
                options["response"] = self._of_slots(self.responses)
        elif self._again:
            options["prompt"] = [self._again.get(slot) for slot in range(self.venv.num_envs)]
        self._again = {}
        observation: dict[str, NDArray[Any]] = self.venv.reset(options=options)[0]
        return observation

    def _of_slots(self, entries: Sequence[Any]) -> list[Any]:
        """What belongs to the episode of each slot; None where it rests, or goes on."""
        begin = zip(self.episode.tolist(), self._begin.tolist(), strict=True)
        return [entries[episode] if begins and episode < self.episodes else None for episode, begins in begin]

    def end(self, ended: NDArray[np.int64], failed: Sequence[int]) -> bool:
        """Give slots their next episode, failed ones the same once more; whether there is anything to begin."""
        env_attribute(self.venv, "abandon")(ended)  # those that were cut from outside
        self._again = {slot: env_attribute(self.venv, "current_prompt")(slot) for slot in failed}
        finished = ended[~np.isin(ended, failed)]
        self.episode[finished] = self._started + np.arange(len(finished))
        self._started += len(finished)
        self._begin = np.isin(np.arange(self.venv.num_envs), ended) & (self.episode < self.episodes)
        return bool(self._begin.any())


class _Recorder:
    """What happens in each of B episodes, written to its place in (B, L) as it happens."""

    cut = {"score": float("nan"), "prompt": "", "text": "", "finish_reason": "cut"}

    def __init__(self, venv: gym.vector.VectorEnv, episodes: int, vocab_size: int) -> None:
        width = venv.single_observation_space["input_ids"].shape[0]  # type: ignore[index]
        self.rewards, self.log_probs = np.zeros((episodes, width)), torch.zeros(episodes, width)
        self.masks = np.zeros((episodes, width), dtype=np.int64)  # numbers in the table
        self.chosen = np.zeros((episodes, width), dtype=np.int64)  # 1 where the agent chose the token
        self.table = MaskTable(vocab_size)
        self.states: list[list[Tensor]] = [[] for _ in range(episodes)]
        self.final: list[dict[str, Any]] = [{} for _ in range(episodes)]
        self.ends = np.zeros((2, episodes), dtype=bool)  # terminated, truncated
        self.parts: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(episodes))
        self.failed_episodes = 0

    def add(
        self,
        episodes: NDArray[np.int64],
        columns: NDArray[np.int64],
        rewards: NDArray[np.float64],
        log_probs: Tensor,
        allowed: NDArray[np.bool_] | None,
        states: Tensor | None,
    ) -> None:
        """One token of each of some episodes, in the column where it stands."""
        self.rewards[episodes, columns], self.chosen[episodes, columns] = rewards, 1
        self.log_probs[episodes, columns] = log_probs.cpu()
        self.masks[episodes, columns] = 0 if allowed is None else self.table.number(allowed)
        for at, episode in enumerate(episodes if states is not None else ()):
            self.states[episode].append(states[at])  # type: ignore[index]

    def add_parts(self, episodes: NDArray[np.int64], slots: NDArray[np.int64], parts: Mapping[str, Any]) -> None:
        """What these episodes were paid in a step, by part."""
        for name, values in parts.items():
            if not name.startswith("_"):
                self.parts[name][episodes] += values[slots]

    def end(self, episode: int, slot: int, observation: Any, info: Any) -> bool:
        """An episode is over, in a slot of these batched results of `step`; whether it failed, and is forgotten."""
        if _told(info, "finish_reason", slot) == "failed":
            self._forget(episode)
            return True
        scored = _told(info, "score", slot) is not None  # a cut from outside brings no ending
        self.final[episode] = {
            **{key: observation[key][slot].copy() for key in observation},
            **({key: info[key][slot] for key in self.cut} if scored else self.cut),
            "scored": scored,
        }
        return False

    def flags(self, episodes: NDArray[np.int64], *flags: NDArray[np.bool_]) -> None:
        """How some of them have ended."""
        self.ends[:, episodes] = flags

    def _forget(self, episode: int) -> None:
        self.rewards[episode], self.log_probs[episode], self.masks[episode], self.chosen[episode] = 0.0, 0.0, 0, 0
        self.states[episode] = []
        for sums in self.parts.values():
            sums[episode] = 0.0
        self.failed_episodes += 1
        if self.failed_episodes > len(self.final):
            raise RuntimeError(
                f"{self.failed_episodes} episodes failed (finish_reason='failed') while {len(self.final)} were to be "
                "played: the environment's infrastructure is down; nothing was learned from them"
            )

    def rollout(self, chosen_prompts: Sequence[Any] | None) -> Rollout:
        """Cut everything to the longest trajectory."""
        final = self.final
        width = max(int(f["attention_mask"].sum()) for f in final)
        names = ("input_ids", "attention_mask", "response_mask")
        ids, there, written = (np.stack([f[name][:width] for f in final]).astype(np.int64) for name in names)
        chosen = self.chosen[:, :width]
        begun = torch.from_numpy((written - chosen).sum(axis=1))
        states = [state for episode in self.states for state in episode]
        return Rollout(
            tokens=TokenBatch(*map(torch.from_numpy, (ids, there, chosen))),
            rewards=torch.from_numpy(self.rewards[:, :width]).float(),
            sampled_log_probs=self.log_probs[:, :width].clone(),
            terminated=torch.from_numpy(self.ends[0]),
            truncated=torch.from_numpy(self.ends[1]),
            scores=torch.tensor([float(f["score"]) for f in final]),
            prompts=[str(f["prompt"]) for f in final],
            texts=[str(f["text"]) for f in final],
            finish_reasons=[str(getattr(f["finish_reason"], "value", f["finish_reason"])) for f in final],
            action_masks=self.table.action_masks(torch.from_numpy(self.masks[:, :width])),
            scored=torch.tensor([f["scored"] for f in final]),
            states=torch.stack(states) if states else None,
            chosen_prompts=None if chosen_prompts is None else list(chosen_prompts),
            failed_episodes=self.failed_episodes,
            reward_parts={name: torch.from_numpy(sums).float() for name, sums in self.parts.items()},
            begun=begun if begun.any() else None,
        )


def _told(info: Mapping[str, Any], name: str, slot: int) -> Any:
    """What the batched info of a step says of a slot, or None."""
    return info[name][slot] if name in info and info[f"_{name}"][slot] else None


def _check(venv: Any, language_model: LanguageModel, episodes: int, prompts: Any, responses: Any) -> None:
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
    for name, given in {"prompts": prompts, "responses": responses}.items():
        if given is not None and len(given) != episodes:
            raise ValueError(f"{name} has {len(given)} entries; it needs one for each of the {episodes} episodes")
    if responses is not None and prompts is None:
        raise ValueError("responses needs prompts beside it")


def _greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    best = logits.log_softmax(dim=-1).max(dim=-1)
    return best.indices, best.values
