"""Recorded episodes as a Minari data set, and back: what was played is read as the rollout that it was.

What lives here: `RecordedEpisodes`, how they lie in Minari's layout, and reading them. What does not: playing them
(``record.py``), learning from them (``sft.py``, ``iql.py``), judging policies by them (``ope.py``).

An episode of T actions is what Minari calls one: T + 1 observations, each the whole prefix as the environment shows it;
T actions, rewards, terminations and truncations; its reset's seed and options; and infos with T + 1 entries, of which
the first is the reset's. Infos: ``log_prob``, log π_b of the action under the very distribution it was drawn from;
``ref_logprob``, log π_ref of it; ``prompt``; ``text``, ``finish_reason`` and ``score``, known at the end; the
``reward_parts``; and, where actions were restricted, ``action_mask``, what was allowed, eight tokens to a byte. What is
not known yet is NaN or "". Rewards are the environment's own, without a KL: with ``ref_logprob`` any can be added.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from torch import Tensor

from textgen_env.lm.sampling import SamplingParams
from textgen_env.lm.token_batch import TokenBatch

from .action_masks import MaskTable
from .rollout import Rollout
from .training.files import recover_folder, replace_folder

try:
    import h5py  # noqa: F401  (Minari's default storage, which asks for it too late)
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage
except ImportError as error:
    message = f"recorded episodes need minari and h5py ({error}): pip install 'textgen_env[offline]'"
    raise ImportError(message, name=error.name) from error

OURS = "textgen"  # the entry of Minari's metadata that holds what Minari has no word for
CHUNK = 256  # episodes that are in memory step by step at once


@dataclass
class RecordedEpisodes:
    """B whole episodes, with what off-policy methods need to know of them.

    Attributes:
        rollout: what was played; ``chosen_prompts`` are numbers in the prompts of ``spec``.
        ref_log_probs: (B, T) log π_ref of the response tokens, at the temperature of ``sampling``.
        parts: what each token was paid, by part, (B, T) float64 each.
        seeds: B seeds of the resets.
        sampling: how the behaviour policy drew its tokens.
        spec: makes the environment again.
        facts: further plain values: who played, with which seed, how many prompts were held out.
    """

    rollout: Rollout
    ref_log_probs: Tensor
    parts: dict[str, Tensor]
    seeds: list[int]
    sampling: SamplingParams
    spec: EnvSpec
    facts: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of everything that is learned from."""
        tensors = (*self.rollout.tokens, self.rollout.rewards, self.rollout.sampled_log_probs)
        return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in tensors)).hexdigest()[:16]

    def check_fits(self, venv: Any, held_out: Any) -> None:
        """Refuse to learn for a task from episodes of another, or from what is held out.

        Args:
            venv: the task.
            held_out: its environment on held-out prompts.

        Raises:
            ValueError: the tokens are of another task, or a held-out prompt was played.
        """
        if self.spec.id != venv.spec.id:
            raise ValueError(f"dataset was recorded in {self.spec.id!r}, and env={venv.spec.id!r}: name the same")
        if (most := int(self.rollout.input_ids.max())) >= (size := int(venv.single_action_space.n)):
            raise ValueError(f"dataset has a token {most}, and the model only {size} of them: it is another model's")
        texts = {prompt.text for prompt in held_out.unwrapped.prompts}
        if played := sorted(texts & set(self.rollout.prompts)):
            recorded = self.facts.get("eval_prompts")
            raise ValueError(
                f"dataset holds responses to {len(played)} held-out prompts, such as {played[0]!r}; it was recorded "
                f"with eval_prompts={recorded}: hold out as many, or record it anew"
            )


# --- writing ----------------------------------------------------------------------------------------------------------


def write(recorded: RecordedEpisodes, path: Path, observation_space: spaces.Dict, pad_token_id: int) -> None:
    """Write a data set, as a whole or not at all.

    Args:
        recorded: the episodes.
        path: a new folder, whose name is the data set's id: ``minari.load_dataset`` finds it there if the environment
            variable ``MINARI_DATASETS_PATH`` names the folder above.
        observation_space: of one environment.
        pad_token_id: what its observations are filled with.
    """
    check_new(path)
    path = path.resolve()  # Minari joins a relative path to itself
    try:
        replace_folder(path, lambda fresh: _fill(recorded, fresh, path.name, observation_space, pad_token_id))
    except BaseException:
        recover_folder(path)
        raise


def check_new(path: Path) -> None:
    """Check that a data set can come here.

    Raises:
        ValueError: the name is none that Minari takes.
        FileExistsError: there is something.
    """
    try:
        minari.dataset.minari_dataset.parse_dataset_id(path.name)
    except (ValueError, TypeError):
        raise ValueError(
            f'output={str(path)!r} must end in the id of a data set, letters and a version, such as "sentiment-v0"'
        ) from None
    if path.exists():
        raise FileExistsError(f"output={str(path)!r} exists already; name a new folder, or another version")


def _fill(recorded: RecordedEpisodes, folder: Path, name: str, observation_space: spaces.Dict, pad: int) -> None:
    actions = spaces.Discrete(int(recorded.facts["vocab_size"]))
    storage = MinariStorage.new(folder / "data", observation_space, actions, recorded.spec)
    ours = {"sampling": vars(recorded.sampling), "facts": recorded.facts}
    facts = {"algorithm_name": str(recorded.facts.get("played_by")), "requirements": ["textgen_env"]}
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__, **facts, OURS: ours})
    episodes = _episodes(recorded, observation_space, pad)
    while chunk := list(islice(episodes, CHUNK)):
        storage.update_episodes(chunk)


def _episodes(recorded: RecordedEpisodes, observation_space: spaces.Dict, pad: int) -> Iterator[EpisodeBuffer]:
    rollout, prompts = recorded.rollout, recorded.rollout.chosen_prompts
    assert prompts is not None
    for row, seed in enumerate(recorded.seeds):
        columns = rollout.response_mask[row].nonzero().flatten().numpy()
        ended = np.arange(len(columns)) == len(columns) - 1
        yield EpisodeBuffer(
            seed=seed,
            options={"prompt": prompts[row]},
            observations=_observations(rollout, row, columns, observation_space, pad),
            actions=rollout.input_ids[row, columns].numpy(),
            rewards=rollout.rewards[row, columns].double().numpy(),  # type: ignore[arg-type]
            terminations=ended & bool(rollout.terminated[row]),
            truncations=ended & bool(rollout.truncated[row]),
            infos=_infos(recorded, row, columns),
        )


def _observations(
    rollout: Rollout, row: int, columns: NDArray[np.int64], space: spaces.Dict, pad: int
) -> dict[str, NDArray[Any]]:
    """(T + 1, L) each: all that stood before each response token, and at last everything."""
    width = space["input_ids"].shape[0]  # type: ignore[index]
    length = int(rollout.tokens.lengths[row])
    there = np.arange(width) < np.append(columns, length)[:, None]
    whole = {"input_ids": np.full(width, pad), **{n: np.zeros(width) for n in ("attention_mask", "response_mask")}}
    for name, values in whole.items():
        values[:length] = getattr(rollout, name)[row, :length].numpy()
    empty = {"input_ids": pad, "attention_mask": 0, "response_mask": 0}
    return {n: np.where(there, values, empty[n]).astype(space[n].dtype) for n, values in whole.items()}


def _infos(recorded: RecordedEpisodes, row: int, columns: NDArray[np.int64]) -> dict[str, Any]:
    rollout, steps = recorded.rollout, len(columns)

    def after(first: float, values: Tensor) -> NDArray[Any]:
        return np.concatenate([[first], values[row, columns].numpy()])

    infos: dict[str, Any] = {
        "log_prob": after(math.nan, rollout.sampled_log_probs).astype(np.float32),
        "ref_logprob": after(math.nan, recorded.ref_log_probs).astype(np.float32),
        "prompt": [rollout.prompts[row]] * (steps + 1),
        "text": [""] * steps + [rollout.texts[row]],
        "finish_reason": [""] * steps + [rollout.finish_reasons[row]],
        "score": np.array([math.nan] * steps + [float(rollout.scores[row])], dtype=np.float32),
        "reward_parts": {name: after(0.0, values) for name, values in recorded.parts.items()},
    }
    if rollout.action_masks is not None:
        masks = np.packbits(rollout.action_masks.of(rollout.action_masks.number[row, columns]).numpy(), axis=1)
        infos["action_mask"] = np.concatenate([np.zeros_like(masks[:1]), masks])
    return infos


# --- reading ----------------------------------------------------------------------------------------------------------


def read(source: str | Path | minari.MinariDataset) -> RecordedEpisodes:
    """The episodes of a data set that `write` has written, or of a part of one.

    Args:
        source: its folder, or a data set of Minari's, which may be filtered or split. (What Minari combines loses how
            it was sampled.)

    Raises:
        ValueError: there is none, or it was written by others and lacks what is told here.
    """
    dataset = source if isinstance(source, minari.MinariDataset) else _open(Path(source))
    ours = dataset.storage.metadata.get(OURS)
    if dataset.env_spec is None or ours is None or not len(dataset):
        raise ValueError(f"dataset={dataset.id!r} holds no episodes as `textgen record` writes them")
    told = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    rows = [_Row.of(episode) for episode in dataset.iterate_episodes()]
    rollout, grids = _rollout(rows, ours["facts"])
    return RecordedEpisodes(
        replace(rollout, chosen_prompts=[int(each["options"]["prompt"]) for each in told]),
        grids.pop("ref_logprob").float(),
        grids,
        [int(each["seed"]) for each in told],
        SamplingParams(**ours["sampling"]),
        dataset.env_spec,
        ours["facts"],
    )


def _open(path: Path) -> minari.MinariDataset:
    folder = path.resolve() if path.name == "data" else path.resolve() / "data"
    try:
        return minari.MinariDataset(folder)
    except (ValueError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"dataset={str(path)!r} is no data set of Minari's: {error}") from error


@dataclass
class _Row:
    """What is kept of an episode: its last observation, and what was told of each action."""

    observation: dict[str, Tensor]  # (L,) each
    told: dict[str, NDArray[Any]]  # (T,) each, what goes into (B, T)
    masks: NDArray[np.uint8] | None  # (T, ⌈V/8⌉)
    last: dict[str, Any]  # of the last step

    @classmethod
    def of(cls, episode: Any) -> _Row:
        infos = episode.infos
        observation = {n: torch.from_numpy(values[-1].astype(np.int64)) for n, values in episode.observations.items()}
        told = {"reward": episode.rewards, **{n: infos[n][1:] for n in ("log_prob", "ref_logprob")}}
        told |= {f"part {name}": values[1:] for name, values in infos.get("reward_parts", {}).items()}
        last = {name: _text(infos[name][-1]) for name in ("prompt", "text", "finish_reason")}
        flags = {"terminated": bool(episode.terminations[-1]), "truncated": bool(episode.truncations[-1])}
        masks = infos["action_mask"][1:] if "action_mask" in infos else None
        return cls(observation, told, masks, {**last, **flags, "score": float(infos["score"][-1])})


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _rollout(rows: list[_Row], facts: Mapping[str, Any]) -> tuple[Rollout, dict[str, Tensor]]:
    """The rollout without its prompts' numbers; ``ref_logprob`` and the parts of the reward, (B, T) each."""
    width = max(int(row.observation["attention_mask"].sum()) for row in rows)
    names = ("input_ids", "attention_mask", "response_mask")
    tokens = TokenBatch(*(torch.stack([row.observation[name][:width] for row in rows]) for name in names))
    at = tokens.response_mask.bool()
    grids = {}
    for name in dict.fromkeys(name for row in rows for name in row.told):
        grids[name] = torch.zeros(at.shape, dtype=torch.float64)
        values = [row.told.get(name, np.zeros(len(row.told["reward"]))) for row in rows]
        grids[name][at] = torch.from_numpy(np.concatenate(values).astype(np.float64))
    parts = {name.removeprefix("part "): grids.pop(name) for name in list(grids) if name.startswith("part ")}
    last = {name: [row.last[name] for row in rows] for name in rows[0].last}
    table, numbers = MaskTable(int(facts["vocab_size"])), torch.zeros(at.shape, dtype=torch.int64)
    if len(masks := [row.masks for row in rows if row.masks is not None]) == len(rows):
        unpacked = (np.unpackbits(each, axis=1, count=table.vocab_size).astype(bool) for each in masks)
        numbers[at] = torch.tensor([number for allowed in unpacked for number in table.number(allowed)])
    rollout = Rollout(
        tokens,
        rewards=grids.pop("reward").float(),
        sampled_log_probs=grids.pop("log_prob").float(),
        terminated=torch.tensor(last["terminated"]),
        truncated=torch.tensor(last["truncated"]),
        scores=torch.tensor(last["score"]),
        prompts=last["prompt"],
        texts=last["text"],
        finish_reasons=last["finish_reason"],
        action_masks=table.action_masks(numbers),
        scored=torch.tensor([reason != "cut" for reason in last["finish_reason"]]),
        failed_episodes=int(facts.get("failed_episodes", 0)),
        reward_parts={name: values.sum(dim=1).float() for name, values in parts.items()},
    )
    return rollout, {**grids, **parts}
