"""A whole training run: environments, trainer, progress, metrics, evaluation, checkpoints, the report at its end.

What lives here: what every trainer shares. A trainer is anything with the four members of `Trainer`; its own file has
the algorithm and the settings. What does not: the algorithm, the folder (``run_folder.py``), what is shown
(``display.py``, ``report.py``), signals (``stopping.py``).
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console
from torch import Tensor
from tyro.conf import OmitArgPrefixes

from textgen_env.episode import Prompt
from textgen_env.language_model import LanguageModel
from textgen_env.prompts import load_prompts
from textgen_env.render import Frame, render_html

from .checkpoint import CheckpointError
from .display import Display
from .evaluate import Evaluation, Played, frames, play, summarize
from .files import replace_file, replace_folder
from .finite import check_metrics, check_weights
from .metrics import MetricsLog, read_metrics
from .policy import ActorCritic, PolicyConfig
from .report import answers_table, before_after_table, plot, samples_table, too_large
from .rollout import Rollout
from .run_folder import RunFolder
from .setting_checks import COUNT, FLAG, POSITIVE, SEED, TEXT, check, choice, optional
from .stopping import Stopped, Stopping


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
    """Go on from the last checkpoint in the output folder, if there is one; a run that was killed ends with the same
    numbers."""
    debug: bool = False
    """Show where in the code a mistake in the settings was found."""

    def __post_init__(self) -> None:
        check(self, TASK_RULES)


TASK_RULES = {
    **dict.fromkeys(("env", "model", "device"), TEXT),
    **dict.fromkeys(("prompts", "scorer", "output"), optional(TEXT)),
    **dict.fromkeys(("max_new_tokens", "max_prompt_tokens"), optional(COUNT)),
    **dict.fromkeys(("num_envs", "eval_prompts"), COUNT),
    **dict.fromkeys(("resume", "debug"), FLAG),
    "temperature": POSITIVE,
    "dtype": choice("float32", "bfloat16"),
    "seed": SEED,
}


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, dict.fromkeys(("updates", "eval_every", "save_every", "sample_every"), COUNT))


def make_environments(settings: TaskSettings) -> tuple[VectorEnv, VectorEnv]:
    """The training environment and one on the held-out prompts.

    Raises:
        ValueError: no token environment, or no prompts for it.
    """
    spec = token_env_spec(settings.env)
    arguments = {
        name: value
        for name in ("model", "scorer", "max_new_tokens", "max_prompt_tokens", "temperature", "device", "dtype")
        if (value := getattr(settings, name)) is not None
    }
    if settings.scorer is not None and settings.scorer.lstrip().startswith("{"):
        arguments["scorer"] = _from_json(settings.scorer)
    source = settings.prompts or spec.kwargs.get("prompts")
    if source is None:
        raise ValueError(f"prompts=None: {settings.env} has no prompts of its own; name a file or a set")
    if "scorer" not in arguments | spec.kwargs:
        raise ValueError(f"scorer=None: {settings.env} has no scorer of its own; name one, or give its JSON form")
    train, held_out = split_prompts(load_prompts(source), settings.eval_prompts)
    make = partial(gym.make_vec, spec, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    slots = min(settings.num_envs, len(held_out))
    return make(num_envs=settings.num_envs, prompts=train), make(num_envs=slots, prompts=held_out)


def token_env_spec(env: str) -> Any:
    """The registration of a token environment; "module:id" imports the module first.

    Raises:
        ValueError: the id is unknown, or belongs to an environment of another kind.
    """
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env={env!r} is not registered: {error}") from error
    creator = spec.vector_entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    if creator is None or (isinstance(creator, type) and not hasattr(creator, "delegate_kl")):
        known = ", ".join(name for name in gym.registry if name.startswith("textgen/"))
        raise ValueError(f"env={env!r} is no token environment; choose one of {known}, or one of your own")
    return spec


def _from_json(scorer: str) -> Any:
    try:
        return json.loads(scorer)
    except ValueError as error:
        raise ValueError(f"scorer={scorer!r} begins like JSON, but is none: {error}") from error


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
    ``after.json``, ``plot.png``, ``episodes.html``, and ``best/`` and ``last/`` in transformers format. It is locked
    until `execute` ends, or `close`.

    Args:
        settings: of the run, with those of the algorithm as further fields.
        make_trainer: builds the algorithm on the training environment and the policy.
        console: where to print.
        resume_command: how to go on with the run, from its folder; said when it is stopped.

    Raises:
        FileExistsError: the output folder holds a run and ``resume`` is off, or files that are no run.
        ValueError: it holds a run with other settings, or a setting does not fit the environment.
        CheckpointError: none of its checkpoints can be used.
        BlockingIOError: another process writes it.
    """

    def __init__(
        self,
        settings: RunSettings,
        make_trainer: Callable[[VectorEnv, ActorCritic], Trainer],
        console: Console | None = None,
        *,
        resume_command: Callable[[Path], str] | None = None,
    ) -> None:
        self.settings, self.display = settings, Display(console)
        self._resume_command = resume_command or (lambda folder: f"Run with resume=True and output={str(folder)!r}")
        self.run_folder = RunFolder(settings, display=self.display)
        self.folder = self.run_folder.path
        try:
            self._set_up(make_trainer)
            self.run_folder.claim()
        except BaseException:
            self.close()
            raise

    def _set_up(self, make_trainer: Callable[[VectorEnv, ActorCritic], Trainer]) -> None:
        settings = self.settings
        self.venv, self.eval_venv = make_environments(settings)
        language_model = LanguageModel(settings.model, device=settings.device, dtype=settings.dtype)
        generator = torch.Generator().manual_seed(settings.seed)
        self.policy = ActorCritic(language_model, settings.policy, generator=generator)
        self.trainer = make_trainer(self.venv, self.policy)
        self.reference = self.trainer.reference or self.policy.reference()  # before a checkpoint changes the weights
        self.best = float("-inf")
        self.before: Evaluation | None = None
        self._saved, self._warned = -1, False
        if (state := self.run_folder.restore()) is not None:
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.trainer.load_state_dict(state["trainer"])
            self.best, self.before = float(state["best"]), Evaluation(**state["before"])
            cast(Any, self.eval_venv.unwrapped).load_state_dict(state["eval_env"])
            self._saved = self.trainer.updates
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = f"{self.run_folder.saved()}, but does not fit this program: {type(error).__name__}: {error}"
            raise CheckpointError(message) from error

    def close(self) -> None:
        """Give the folder free for other processes."""
        self.run_folder.close()

    def execute(self) -> Path:
        """Train to the end, report, and return the folder.

        Raises:
            SystemExit: a signal stopped the run, with code 128 + its number; everything is saved.
            NonFiniteError: a metric or weight became NaN or infinite; this was not saved.
        """
        note = "stopping after this update; a second signal stops at once"
        try:
            with Stopping(note) as stopping:
                self._train(stopping)
                self._report()
        except Stopped as stopped:
            if self.before is not None and self._saved != self.trainer.updates:
                self._save()
            self.display.say(f"stopped by {stopped}: {self.run_folder.saved()}; to go on:")
            self.display.say(self._resume_command(self.folder))
            raise SystemExit(stopped.code) from None
        finally:
            self.display.stop()
            self.close()
        return self.folder

    def _train(self, stopping: Stopping) -> None:
        trainer, settings = self.trainer, self.settings
        before = self._before()
        replace_file(self.folder / "before.json", json.dumps(asdict(before), indent=1))
        with MetricsLog(self.folder, after=trainer.updates, say=self.display.say) as log:
            self.display.start(settings.updates, trainer.updates)
            while trainer.updates < settings.updates:
                with stopping.deferred():
                    metrics, rollout = trainer.iterate()
                    self._check(metrics)
                    log.write(trainer.updates, metrics)
                    if self._due(settings.eval_every):
                        self._keep_best(log)
                    if self._due(settings.save_every):
                        self._save()
                self._show(metrics, rollout)
        self.display.stop()

    def evaluate(self) -> Evaluation:
        """The present policy on the held-out prompts."""
        return summarize(self._play())

    def _play(self) -> Played:
        return play(self.eval_venv, self.policy, self.reference, **self.trainer.sampling)

    def _before(self) -> Evaluation:
        """The evaluation before training: made before the first checkpoint, and kept in each."""
        if self.before is None:
            self.display.say(f"run in {self.folder}: {self.settings.updates} updates; held-out prompts first")
            self.before = self.evaluate()
            self._save()
        return self.before

    def _due(self, every: int) -> bool:
        return self.trainer.updates % every == 0 or self.trainer.updates == self.settings.updates

    def _check(self, metrics: Mapping[str, float]) -> None:
        when = f"after update {self.trainer.updates}; {self.run_folder.saved()}"
        check_metrics(metrics, when)
        check_weights(self.policy.named_parameters(), when)

    def _save(self) -> None:
        assert self.before is not None
        eval_env = cast(Any, self.eval_venv.unwrapped).state_dict()  # a scorer may keep running statistics
        state = {"trainer": self.trainer.state_dict(), "best": self.best, "eval_env": eval_env}
        self.run_folder.save(self.trainer.updates, {**state, "before": asdict(self.before)})
        self._saved = self.trainer.updates

    def _keep_best(self, log: MetricsLog) -> None:
        evaluation = self.evaluate()
        metrics = evaluation.metrics
        errors = {f"{name}_stderr": evaluation.standard_error(name) for name in metrics}
        log.write(self.trainer.updates, metrics | {n: e for n, e in errors.items() if math.isfinite(e)}, prefix="eval")
        if metrics["score"] > self.best:
            self.best = metrics["score"]
            replace_folder(self.folder / "best", self.policy.save)

    # --- what people look at: after everything is saved, and whatever becomes of it ------------------------------------

    def _show(self, metrics: Mapping[str, float], rollout: Rollout) -> None:
        update, display = self.trainer.updates, self.display
        display.update(update, live(metrics))
        warning = too_large(metrics, self.run_folder.settings.get("lr"))
        if warning and not self._warned:
            display.say(f"update {update}: {warning}")
            self._warned = True
        if self._due(self.settings.sample_every):
            display.attempt("samples", lambda: samples_table(update, rollout))

    def _report(self) -> None:
        assert self.before is not None
        before, played = self.before, self._play()
        after = summarize(played)
        replace_file(self.folder / "after.json", json.dumps(asdict(after), indent=1))
        replace_folder(self.folder / "last", self.policy.save)
        tokenizer = self.policy.language_model.tokenizer
        write_report(self.folder, self.display, self.settings, before, after, lambda: frames(played, tokenizer))
        saved = "last/ and best/ (transformers format), plot.png, episodes.html, metrics.jsonl"
        self.display.say(f"saved in {self.folder}: {saved}")


def write_report(
    folder: Path,
    display: Display,
    settings: TaskSettings,
    before: Evaluation,
    after: Evaluation,
    episodes: Callable[[], list[Frame]],
) -> None:
    """Plot, page of episodes and tables; what fails is left out and named."""
    title = f"{settings.env}, {settings.model}, seed {settings.seed}"

    def draw(path: Path) -> None:
        plot(read_metrics(folder / "metrics.jsonl"), path, title, before)

    page = folder / "episodes.html"
    display.attempt("plot.png", lambda: replace_file(folder / "plot.png", draw))
    display.attempt(
        "episodes.html", lambda: replace_file(page, render_html(episodes(), title=f"{title}: after training"))
    )
    display.attempt("before and after", lambda: before_after_table(before, after))
    display.attempt("answers", lambda: answers_table(before, after))


def live(metrics: Mapping[str, float]) -> str:
    """The numbers of an update that are shown while the run goes on."""
    kl = f"KL {metrics['kl_per_token']:.3f}  " if "kl_per_token" in metrics else ""
    return f"score {metrics['score']:.3f}  {kl}{metrics['tokens_per_second']:,.0f} tokens/s"
