"""Record episodes of a policy as a Minari data set: ``textgen record``.

What lives here: the command (``python -m textgen_env.agents.record``), `record`, which plays, and `Tape`, which listens
to what a rollout does not keep. What does not: the layout of the data set (``minari_data.py``), playing itself
(``rollout.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from torch import Tensor

from textgen_env.lm.sampling import PLAIN, SamplingParams
from textgen_env.prompts import load_prompts
from textgen_env.vector_env import NOOP

from .minari_data import RecordedEpisodes, check_new, write
from .policy import ActorCritic, Reference, frozen_reference
from .rollout import Rollout, collect
from .training.command_line import parse
from .training.command_line import run as run_program
from .training.display import Display
from .training.environments import named_policy, split_prompts, task_spec
from .training.extra import Console
from .training.run_settings import TaskSettings
from .training.seeds import derived_seed
from .training.setting_checks import COUNT, COUNT_OR_ZERO, MASS, TEXT, check, optional
from .training.trainer import join

ROWS = 16  # trajectories per teacher-forced pass


@dataclass
class RecordSettings(TaskSettings):
    """Play a task's training prompts and keep the episodes, with the log-probabilities of what was done, as a data set
    of Minari's."""

    output: str | None = None
    """The folder to write, which must be new; its name is the id of the data set, with a version: data/sentiment-v0."""
    policy: str | None = None
    """Who plays: a folder such as a run's last/, or anything that --model takes; None: --model itself, which is the
    reference."""
    episodes: int = 1024
    """How many are kept. Episodes that the infrastructure failed are left out, counted and played again."""
    responses: int = 1
    """Episodes per prompt, one after another; prompts come in random order, each once before any comes again."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample from the nucleus of this mass; 1 for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, dict.fromkeys(("output", "policy"), optional(TEXT)))
        check(self, {**dict.fromkeys(("episodes", "responses"), COUNT), "top_k": COUNT_OR_ZERO, "top_p": MASS})
        if self.output is None:
            raise ValueError("output=None: name the folder to write, such as data/sentiment-v0")


class Tape(VectorWrapper):
    """Seeds every episode by itself, and keeps what each of its steps was paid, by part.

    Episodes are numbered as they begin; one that failed gives its number to the next in its slot, as in `collect`.

    Args:
        env: the task, without autoreset.
        seed: of the seeds.

    Attributes:
        seeds: of the resets, by episode.
        parts: by episode, what its steps were paid.
    """

    def __init__(self, env: VectorEnv, seed: int) -> None:
        super().__init__(env)
        self.seeds: list[int] = []
        self.parts: list[list[dict[str, float]]] = []
        self._seed, self._begun = seed, 0
        self._episode, self._failed = np.full(env.num_envs, -1), np.zeros(env.num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in the slots of ``options["reset_mask"]``."""
        assert options is not None
        seeds: list[int | None] = [None] * self.num_envs
        for slot in np.flatnonzero(options["reset_mask"]).tolist():
            if not self._failed[slot]:
                self._episode[slot] = len(self.seeds)
                self.seeds.append(0)
                self.parts.append([])
            seeds[slot] = derived_seed(self._seed, self._begun)
            self.seeds[self._episode[slot]], self.parts[self._episode[slot]] = cast(int, seeds[slot]), []
            self._begun += 1
            self._failed[slot] = False
        return self.env.reset(seed=cast(Any, seeds), options=options)

    def step(self, actions: NDArray[np.int64]) -> Any:
        """One step of the slots that play."""
        results = self.env.step(actions)
        info = results[-1]
        paid = {name: part for name, part in info.get("reward_parts", {}).items() if not name.startswith("_")}
        for slot in np.flatnonzero(actions != NOOP).tolist():
            self.parts[self._episode[slot]].append({name: float(values[slot]) for name, values in paid.items()})
            told = "finish_reason" in info and info["_finish_reason"][slot]
            self._failed[slot] = told and info["finish_reason"][slot] == "failed"
        return results

    def grids(self, response_mask: Tensor) -> dict[str, Tensor]:
        """The parts as (B, T) float64, where the tokens of B episodes are."""
        found: dict[str, Tensor] = defaultdict(lambda: torch.zeros(response_mask.shape, dtype=torch.float64))
        for row, steps in enumerate(self.parts):
            columns = response_mask[row].nonzero().flatten()
            for name in steps[0]:
                found[name][row, columns] = torch.tensor([step[name] for step in steps], dtype=torch.float64)
        return dict(found)


def record(
    venv: VectorEnv,
    spec: EnvSpec,
    policy: ActorCritic,
    reference: Reference,
    prompts: Sequence[int],
    *,
    sampling: SamplingParams = PLAIN,
    seed: int = 1,
    **facts: Any,
) -> RecordedEpisodes:
    """Play one episode for each of some prompts.

    Args:
        venv: made from ``spec`` with ``autoreset_mode=DISABLED``, with at most as many slots as there are prompts.
        spec: makes the environment again; all of its arguments are names.
        policy: π_b, who plays.
        reference: log π_ref of response tokens.
        prompts: numbers of the environment's prompts, one for each episode.
        sampling: how the policy samples.
        seed: of resets and samples.
        facts: plain values to keep beside.

    Raises:
        What `collect` raises.
    """
    tape, generator = Tape(venv, seed), torch.Generator(policy.device).manual_seed(seed)
    model = policy.language_model
    rollout = collect(tape, model, len(prompts), generator=generator, sampling=sampling, prompts=list(prompts))
    facts |= {"seed": seed, "failed_episodes": rollout.failed_episodes, "vocab_size": model.vocab_size}
    ref_log_probs = score(rollout.to(policy.device), reference, sampling)
    return RecordedEpisodes(
        rollout, ref_log_probs.cpu(), tape.grids(rollout.response_mask), tape.seeds, sampling, spec, facts
    )


def score(rollout: Rollout, reference: Reference, sampling: SamplingParams) -> Tensor:
    """(B, T) log π_ref of every response token, 0 elsewhere."""
    micro_batches = torch.arange(len(rollout.texts), device=rollout.input_ids.device).split(ROWS)
    parts = [reference(rollout.rows(rows), sampling, mask=rollout.masks(rows)) for rows in micro_batches]
    return join(rollout.tokens, micro_batches, parts)


class Recorder:
    """The program of the command line.

    Raises:
        FileExistsError: there is something where the data set is to come.
        ValueError: no such task or policy; or an argument of the environment is no name, so that nobody could make it
            again.
    """

    begun = False

    def __init__(self, settings: RecordSettings, console: Console | None = None) -> None:
        self.settings, self.display = settings, Display(console)
        self.path = Path(cast(str, settings.output))
        check_new(self.path)
        self.spec = _portable(task_spec(settings))
        prompts = load_prompts(self.spec.kwargs["prompts"])
        numbers = {id(prompt): number for number, prompt in enumerate(prompts)}
        train, _ = split_prompts(prompts, settings.eval_prompts)
        self.prompts = [numbers[id(prompt)] for prompt in train]
        slots = min(settings.num_envs, settings.episodes)
        self.venv = gym.make_vec(self.spec, num_envs=slots, prompts=prompts, autoreset_mode=AutoresetMode.DISABLED)
        self.policy = named_policy(settings, self.venv, "policy")

    def execute(self) -> RecordedEpisodes:
        """Play, write, and say what was written."""
        settings, env = self.settings, cast(Any, self.venv.unwrapped)
        recorded = record(
            self.venv,
            self.spec,
            self.policy,
            frozen_reference(env.reference.model, env.reference.vocab_size),
            self._order(),
            sampling=SamplingParams(settings.temperature, settings.top_k, settings.top_p),
            seed=settings.seed,
            played_by=settings.policy or settings.model,
            eval_prompts=settings.eval_prompts,
        )
        space = cast(Any, self.venv).single_observation_space
        write(recorded, self.path, space, env.language_model.pad_token_id)
        rollout = recorded.rollout
        failed = f"; {rollout.failed_episodes} failed and were left out" if rollout.failed_episodes else ""
        steps, prompts = int(rollout.lengths.sum()), len(set(rollout.chosen_prompts or ()))
        mean = float(rollout.scores[rollout.scores.isfinite()].mean())
        self.display.say(f"{self.path}: {len(rollout.texts)} episodes of {steps} steps, {prompts} prompts{failed}")
        self.display.say(f"mean score {mean:.3f}; minari.MinariDataset({str(self.path / 'data')!r})")
        return recorded

    def _order(self) -> list[int]:
        """The prompt of each episode."""
        settings = self.settings
        generator, order = torch.Generator().manual_seed(settings.seed), list[int]()
        while len(order) * settings.responses < settings.episodes:
            order += [self.prompts[i] for i in torch.randperm(len(self.prompts), generator=generator).tolist()]
        return [prompt for prompt in order for _ in range(settings.responses)][: settings.episodes]


def _portable(spec: EnvSpec) -> EnvSpec:
    """The spec, if it can be written; prompts in a file by their whole path."""
    source = spec.kwargs["prompts"]
    if isinstance(source, str) and Path(source).is_file():
        spec.kwargs["prompts"] = str(Path(source).resolve())
    try:
        spec.to_json()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"env={spec.id!r} has arguments that are no names, so that its data set could not make it again: {error}"
        ) from error
    return spec


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.record --help``"""
    Recorder(parse(RecordSettings, "textgen_env.agents.record", arguments)).execute()


if __name__ == "__main__":
    run_program(lambda: Recorder(parse(RecordSettings, "textgen_env.agents.record")))
