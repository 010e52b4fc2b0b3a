"""A whole training run: environments, trainer, progress, metrics, evaluation, checkpoints, the report at its end.

What lives here: what every trainer shares. A trainer is anything with the four members of `Trainer`; its own file has
the algorithm and the settings. What does not: the algorithm, file formats (``checkpoint.py``), tables (``report.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from textgen_env.episode import Prompt
from textgen_env.language_model import LanguageModel
from textgen_env.prompts import load_prompts

from .checkpoint import latest_checkpoint, read_state, recover_folder, replace_file, replace_folder, save_checkpoint
from .evaluate import Evaluation, evaluate
from .metrics import MetricsLog, read_metrics
from .policy import ActorCritic, PolicyConfig
from .report import answers_table, before_after_table, plot, samples_table
from .rollout import Rollout


class Trainer(Protocol):
    """What a run needs of an algorithm.

    Attributes:
        updates: how many it has done.
        reference: log π_ref of response tokens (see `ActorCritic.reference`), or None if it runs none.
        sampling: the ``top_k`` and ``top_p`` that its policy samples with.
    """

    updates: int
    reference: Callable[..., Tensor] | None
    sampling: dict[str, Any]

    def iterate(self) -> tuple[dict[str, float], Rollout]:
        """One update: its metrics ("score" and "tokens_per_second" among them) and the trajectories it learned from."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass
class TaskSettings:
    """What is trained on what and where it is kept: the settings that every trainer shares."""

    env: str = "textgen/Sentiment-v0"
    """Gymnasium id of a token environment."""
    model: str = "tiny"
    """The actor and, frozen, the reference: an embedded or fetched name, a folder, a GGUF file or a hub id."""
    prompts: str | None = None
    """A JSONL file or the name of a prompt set, instead of the task's own."""
    scorer: str | None = None
    """Name of a scorer, or its JSON form, instead of the task's own."""
    max_new_tokens: int | None = None
    """Length limit of a response, instead of the task's own."""
    max_prompt_tokens: int | None = None
    """Length limit of a prompt, instead of the task's own."""
    temperature: float = 1.0
    """Divides the logits of policy and reference."""
    num_envs: int = 64
    """Slots that are decoded side by side."""
    eval_prompts: int = 128
    """Prompts held out for evaluation; never trained on unless there are too few."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "float32"
    """Type of the weights: float32 or bfloat16 (optimised through fp32 masters)."""
    output: str | None = None
    """The run's folder; default: runs/<task>-seed<seed>, with a number behind it if that exists."""
    seed: int = 1
    """Seeds sampling, shuffling, prompts and new weights; global generators are left alone."""
    resume: bool = False
    """Go on from the last checkpoint in the output folder; a run that was killed ends with the same numbers."""


@dataclass
class RunSettings(TaskSettings):
    """Settings of a run that do not belong to the algorithm."""

    updates: int = 40
    """Iterations of collect → advantages → update."""
    eval_every: int = 10
    """Updates between evaluations."""
    save_every: int = 10
    """Updates between checkpoints."""
    sample_every: int = 10
    """Updates between tables of samples."""
    policy: OmitArgPrefixes[PolicyConfig] = field(default_factory=PolicyConfig)
    """Which weights there are and which learn."""


def make_environments(settings: TaskSettings) -> tuple[VectorEnv, VectorEnv]:
    """The training environment and one on the held-out prompts."""
    arguments = {
        name: value
        for name in ("model", "scorer", "max_new_tokens", "max_prompt_tokens", "temperature", "device", "dtype")
        if (value := getattr(settings, name)) is not None
    }
    if settings.scorer is not None and settings.scorer.lstrip().startswith("{"):
        arguments["scorer"] = json.loads(settings.scorer)
    source = settings.prompts or (gym.spec(settings.env).kwargs or {}).get("prompts")
    if source is None:
        raise ValueError(f"prompts=None: {settings.env} has no prompts of its own; name a file or a set")
    train, held_out = split_prompts(load_prompts(source), settings.eval_prompts)
    make = partial(gym.make_vec, settings.env, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    slots = min(settings.num_envs, len(held_out))
    return make(num_envs=settings.num_envs, prompts=train), make(num_envs=slots, prompts=held_out)


def split_prompts(prompts: list[Prompt], held_out: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts: the same split whatever the run's seed. Too few to split: all serve for both."""
    if held_out < 1:
        raise ValueError(f"eval_prompts={held_out} must be at least 1")
    if len(prompts) < 2 * held_out:
        return prompts, prompts[:held_out]
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    return [prompts[i] for i in order[held_out:]], [prompts[i] for i in order[:held_out]]


class Run:
    """One training run and its folder.

    The folder: ``settings.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``before.json``,
    ``after.json``, ``plot.png``, and ``best/`` and ``last/`` in transformers format.

    Args:
        settings: of the run, with those of the algorithm as further fields.
        make_trainer: builds the algorithm on the training environment and the policy.
        console: where to print.

    Raises:
        FileExistsError: the output folder holds a run and ``resume`` is off.
        ValueError: it holds a run with other settings.
    """

    def __init__(
        self,
        settings: RunSettings,
        make_trainer: Callable[[VectorEnv, ActorCritic], Trainer],
        console: Console | None = None,
    ) -> None:
        self.settings, self.console = settings, console or Console()
        self.folder = open_folder(settings)
        self.venv, self.eval_venv = make_environments(settings)
        language_model = LanguageModel(settings.model, device=settings.device, dtype=settings.dtype)
        generator = torch.Generator().manual_seed(settings.seed)
        self.policy = ActorCritic(language_model, settings.policy, generator=generator)
        self.trainer = make_trainer(self.venv, self.policy)
        self.reference = self.trainer.reference or self.policy.reference()  # before a checkpoint changes the weights
        self.best = float("-inf")
        if (checkpoint := latest_checkpoint(self.folder / "checkpoints")) is not None:
            state = read_state(checkpoint)
            self.trainer.load_state_dict(state["trainer"])
            self.best = state["best"]
            cast(Any, self.eval_venv.unwrapped).load_state_dict(state["eval_env"])
            self.console.print(f"resumed after update {self.trainer.updates} from {checkpoint}")

    def execute(self) -> Path:
        """Train to the end, report, and return the folder."""
        before, trainer = self._before(), self.trainer
        with MetricsLog(self.folder, after=trainer.updates) as log, progress_bar(self.console) as progress:
            task = progress.add_task("", total=self.settings.updates, completed=trainer.updates, live="")
            while trainer.updates < self.settings.updates:
                metrics, rollout = trainer.iterate()
                log.write(trainer.updates, metrics)
                progress.update(task, completed=trainer.updates, live=_live(metrics))
                if self._due(self.settings.sample_every):
                    self.console.print(samples_table(trainer.updates, rollout))
                if self._due(self.settings.eval_every):
                    self._keep_best(log)
                if self._due(self.settings.save_every):
                    self._save()
        self._report(before)
        return self.folder

    def evaluate(self) -> Evaluation:
        """The present policy on the held-out prompts."""
        return evaluate(self.eval_venv, self.policy, self.reference, **self.trainer.sampling)

    def _due(self, every: int) -> bool:
        return self.trainer.updates % every == 0 or self.trainer.updates == self.settings.updates

    def _save(self) -> None:
        eval_env = cast(Any, self.eval_venv.unwrapped).state_dict()  # a scorer may keep running statistics
        state = {"trainer": self.trainer.state_dict(), "best": self.best, "eval_env": eval_env}
        save_checkpoint(self.folder / "checkpoints", self.trainer.updates, state)

    def _keep_best(self, log: MetricsLog) -> None:
        metrics = self.evaluate().metrics
        log.write(self.trainer.updates, metrics, prefix="eval")
        if metrics["score"] > self.best:
            self.best = metrics["score"]
            replace_folder(self.folder / "best", self.policy.save)

    def _before(self) -> Evaluation:
        """The evaluation before training: made before the first checkpoint, read back by a resumed run."""
        path = self.folder / "before.json"
        if latest_checkpoint(self.folder / "checkpoints") is None:
            replace_file(path, json.dumps(asdict(self.evaluate()), indent=1))
            self._save()
        return Evaluation(**json.loads(path.read_text(encoding="utf-8")))

    def _report(self, before: Evaluation) -> None:
        after = self.evaluate()
        replace_file(self.folder / "after.json", json.dumps(asdict(after), indent=1))
        replace_folder(self.folder / "last", self.policy.save)
        plot(read_metrics(self.folder / "metrics.jsonl"), self.folder / "plot.png")
        self.console.print(before_after_table(before, after), answers_table(before, after))
        self.console.print(f"saved in {self.folder}: last/ and best/ (transformers format), plot.png, metrics.jsonl")


def open_folder(settings: TaskSettings, prefix: str = "") -> Path:
    """The run's folder, new or, to resume, the old one; ``settings.json`` in it tells them apart.

    Args:
        settings: of the run.
        prefix: of its name, if ``settings`` leave that open.

    Raises:
        FileExistsError, ValueError: see `Run`.
    """
    name = f"runs/{prefix}{settings.env.split('/')[-1]}-seed{settings.seed}"
    folder, number = Path(settings.output or name), 1
    while settings.output is None and not settings.resume and folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    record, present = folder / "settings.json", json.loads(json.dumps(asdict(settings)))
    if not record.is_file():
        replace_file(record, json.dumps(present, indent=1))
    elif not settings.resume:
        raise FileExistsError(f"output={str(folder)!r} already holds a run; add --resume, or choose another folder")
    old = json.loads(record.read_text(encoding="utf-8"))
    if changed := sorted(key for key in present if key not in _FREE and old.get(key) != present[key]):
        raise ValueError(f"resume: {', '.join(changed)} differ from those in {record}; a run goes on with its own")
    recover_folder(folder / "best")
    recover_folder(folder / "last")
    return folder


_FREE = {"resume", "output", "save_every", "sample_every"}  # settings that may differ in a resumed run


def progress_bar(console: Console) -> Progress:
    """A bar whose tasks have a field "live" for what is going on."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[live]}"), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _live(metrics: Mapping[str, float]) -> str:
    kl = f"KL {metrics['kl_per_token']:.3f}  " if "kl_per_token" in metrics else ""
    return f"score {metrics['score']:.3f}  {kl}{metrics['tokens_per_second']:,.0f} tokens/s"
