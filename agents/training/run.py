"""A whole training run: environments, trainer, progress, metrics, evaluation, checkpoints, the report at its end.

What lives here: what every trainer shares. A trainer is anything with the members of `Trainer`; its own file has the
algorithm and the settings. What does not: the environments (``environments.py``), the folder (``run_folder.py``), what
is shown (``display.py``, ``report.py``), signals (``stopping.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.prompts import prompt_as_dict

from ..optimum import sample_reference
from ..policy import ActorConfig, ActorCritic, Reference, reference_of
from .checkpoint import CheckpointError
from .command_line import parse, resume_command
from .display import Display
from .environments import make_environments, seed_generators, split_prompts
from .evaluate import EvalReport, Played, frames, play, summarize
from .extra import Console
from .files import replace_file, replace_folder
from .finite import check_metrics, check_weights
from .memory import keep_freed_memory
from .metrics_log import MetricsLog
from .report import Attainable, Samples, samples_table, too_large, write_report
from .run_folder import RunFolder
from .run_settings import RunSettings, TaskSettings
from .stopping import Stopped, Stopping

__all__ = ["Run", "RunSettings", "TaskSettings", "Trainer", "make_environments", "split_prompts"]

LEFT = {
    "last": "last/ (transformers format)",
    "best": "best/ (the same)",
    "model.zip": "model.zip (PPO.load)",
    "plot.png": "plot.png",
    "episodes.html": "episodes.html",
    "metrics.jsonl": "metrics.jsonl",
    "optimum.json": "optimum.json",
}
"""What a run leaves, as its last line says it."""


class Trainer(Protocol):
    """What a run needs of an algorithm.

    Attributes:
        updates: how many it has done.
        sampling: how its policy samples.
    """

    updates: int
    sampling: SamplingParams

    @property
    def kl_coef(self) -> float:
        """β of the objective score − β·KL; 0 if it has none."""

    def iterate(self) -> tuple[dict[str, float], Samples]:
        """One update: its metrics ("tokens_per_second" among them) and the responses that it learned from."""

    def held_out(self) -> dict[str, float]:
        """What it measures itself on held-out data, beside the evaluation of responses; most trainers nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


class Run:
    """One training run and its folder, of any trainer. What other libraries' trainers need otherwise, subclasses say.

    The environments are seeded, the policy made and the reference taken from it, in this order, before the trainer is.

    The folder: ``settings.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``before.json``,
    ``after.json``, ``optimum.json``, ``plot.png``, ``episodes.html``, and ``best/`` and ``last/`` in transformers
    format. It is locked until `execute` ends, or `close`.

    Args:
        settings: of the run, with those of the algorithm as further fields, and as ``policy`` those of the weights.
        make_trainer: builds the algorithm on what the run has: `venv`, `policy`, `reference`, `options`.
        console: where to print.
        resume_command: how to go on with the run, from its folder; said when it is stopped.

    Raises:
        FileExistsError: the output folder holds a run and ``resume`` is off, or files that are no run.
        ValueError: it holds a run with other settings, or a setting does not fit the environment.
        CheckpointError: none of its checkpoints can be used.
        BlockingIOError: another process writes it.
    """

    autoreset_mode: ClassVar[AutoresetMode] = AutoresetMode.DISABLED
    prefix: ClassVar[str] = ""
    """Of the default folder's name."""
    best_by: ClassVar[str] = "score"
    """The held-out metric by which ``best/`` is chosen: the larger, the better."""

    def __init__(
        self,
        settings: RunSettings,
        make_trainer: Callable[[Run], Trainer],
        console: Console | None = None,
        *,
        resume_command: Callable[[Path], str] | None = None,
    ) -> None:
        self.settings: Any = settings
        self.display = Display(console)
        self._resume_command = resume_command or (lambda folder: f"Run with resume=True and output={str(folder)!r}")
        self.run_folder = RunFolder(settings, self.prefix, self.display)
        self.folder = self.run_folder.path
        try:
            self._set_up(make_trainer)
        except BaseException:
            self.close()
            raise

    def _set_up(self, make_trainer: Callable[[Run], Trainer]) -> None:
        self.venv, self.eval_venv = make_environments(self.settings, self.autoreset_mode)
        for venv in (self.venv, self.eval_venv):
            seed_generators(venv, self.settings.seed)
        self.policy = self.make_policy()
        self.reference: Reference = self.make_reference()
        self.trainer = make_trainer(self)
        self.best = float("-inf")
        self.before: EvalReport | None = None
        self.after: EvalReport | None = None
        self._saved, self._warned = -1, set[str]()
        prompts = [prompt_as_dict(prompt) for venv in (self.venv, self.eval_venv) for prompt in _prompts(venv)]
        self.run_folder.bind(prompts=prompts, model=self.policy.language_model.model)
        if (state := self.run_folder.restore()) is not None:
            self._load(state)
            self.run_folder.claim()  # it may have more updates now

    def make_policy(self) -> ActorCritic:
        """What is trained; the same each time, also where the run goes on."""
        settings = self.settings
        language_model = LanguageModel(settings.model, device=settings.device, dtype=settings.dtype)
        config: ActorConfig | None = getattr(settings, "policy", None)
        return ActorCritic(language_model, config, generator=torch.Generator().manual_seed(settings.seed))

    def make_reference(self) -> Reference:
        """What KL is measured from, in training and on held-out prompts."""
        return reference_of(self.venv, self.policy)

    @property
    def options(self) -> dict[str, Any]:
        """What every native trainer is told."""
        settings = self.settings
        return {"reference": self.reference, "seed": settings.seed, "total_updates": settings.updates}

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.trainer.load_state_dict(state["trainer"])
            self.best, self.before = float(state["best"]), EvalReport(**state["before"])
            cast(Any, self.eval_venv.unwrapped).load_state_dict(state["eval_env"])
            self._saved = self.trainer.updates
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            message = f"{self.run_folder.saved()}, but does not fit this program: {type(error).__name__}: {error}"
            raise CheckpointError(message) from error

    @property
    def begun(self) -> bool:
        """Whether the first evaluation went well: from then on the folder is this run's."""
        return self.before is not None

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
            self.display.stop()
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
                    metrics, samples = trainer.iterate()
                    self._check(metrics)
                    log.write(trainer.updates, metrics)
                    if self._due(settings.eval_every):
                        self._keep_best(log)
                    if self._due(settings.save_every):
                        self._save()
                self._show(metrics, samples)
        self.display.stop()

    def evaluate(self) -> EvalReport:
        """The present policy on the held-out prompts."""
        return self._summarize(self._play())

    def _play(self) -> Played:
        return play(self.eval_venv, self.policy, self.reference, sampling=self.trainer.sampling)

    def _summarize(self, played: Played) -> EvalReport:
        report = summarize(played)
        report.metrics |= self.trainer.held_out()
        return report

    def _before(self) -> EvalReport:
        """The evaluation before training: made before the first checkpoint, and kept in each."""
        if self.before is None:
            self.display.say(f"run in {self.folder}: {self.settings.updates} updates; held-out prompts first")
            self.before = self.evaluate()
            self.run_folder.claim()  # not before: what evaluation refuses leaves no trace
            self._save()
        return self.before

    def _due(self, every: int | None) -> bool:
        return every is not None and (
            self.trainer.updates % every == 0 or self.trainer.updates == self.settings.updates
        )

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
        if metrics[self.best_by] > self.best:
            self.best = metrics[self.best_by]
            replace_folder(self.folder / "best", self.policy.save)

    # --- what people look at: after everything is saved, and whatever becomes of it -----------------------------------

    def _show(self, metrics: Mapping[str, float], samples: Samples) -> None:
        update, display = self.trainer.updates, self.display
        display.update(update, live(metrics))
        for name, warning in too_large(metrics, self.run_folder.settings.get("lr")).items():
            if name not in self._warned:  # once each
                display.say(f"update {update}: {warning}")
                self._warned.add(name)
        if self._due(self.settings.sample_every):
            display.attempt("samples", lambda: samples_table(update, samples))

    def _report(self) -> None:
        played = self._play()
        evaluations = self._keep_last(self._summarize(played))
        model = self.policy.language_model
        write_report(
            self.folder, self.display, self.settings, evaluations, lambda: frames(played, model), self._attainable()
        )
        self._say_what_is_left()

    def _keep_last(self, after: EvalReport) -> tuple[EvalReport, EvalReport]:
        """Write the last evaluation and the weights; the evaluations before and after training."""
        assert self.before is not None
        self.after = after
        replace_file(self.folder / "after.json", json.dumps(asdict(after), indent=1))
        replace_folder(self.folder / "last", self.policy.save)
        return self.before, after

    def _say_what_is_left(self) -> None:
        there = [name for path, name in LEFT.items() if (self.folder / path).exists()]
        self.display.say(f"saved in {self.folder}: {', '.join(there)}")

    def _attainable(self) -> Attainable | None:
        """The best that any policy can reach on the held-out prompts, kept in ``optimum.json``; None if not wanted."""
        found: list[Attainable] = []

        def estimate() -> None:
            sampled = sample_reference(self.eval_venv, samples=self.settings.optimum_samples)
            optimum = sampled.optimum(self.trainer.kl_coef)
            replace_file(self.folder / "optimum.json", json.dumps(asdict(optimum), indent=1))
            found.append(Attainable(optimum, sampled.frontier([optimum.kl_coef * 2**power for power in range(-2, 7)])))

        if self.settings.optimum_samples and self.trainer.kl_coef > 0:
            self.display.attempt("the best possible objective", estimate)
        return found[0] if found else None


def _prompts(venv: VectorEnv) -> list[Prompt]:
    return list(cast(Any, venv.unwrapped).prompts)


def live(metrics: Mapping[str, float]) -> str:
    """The numbers of an update that are shown while the run goes on."""
    shown = {"score": "score {:.3f}", "kl_per_token": "KL {:.3f}", "perplexity": "perplexity {:.2f}"}
    shown |= {"tokens_per_second": "{:,.0f} tokens/s"}
    return "  ".join(form.format(metrics[name]) for name, form in shown.items() if name in metrics)


def run_of_command_line(
    module: str,
    kind: type[RunSettings],
    make_trainer: Callable[[Run], Trainer],
    arguments: Sequence[str] | None,
    run_class: type[Run] = Run,
) -> Run:
    """A native trainer's run from command-line flags: everything up to the first update.

    Args:
        module: of the trainer, as in ``python -m module``.
        kind: dataclass of its settings.
        make_trainer: see `Run`, whose `settings` are those.
        arguments: the flags; None takes those of the process.
        run_class: `Run`, or a subclass for what is no policy.
    """
    settings = parse(kind, module, arguments)
    keep_freed_memory()
    return run_class(settings, make_trainer, resume_command=resume_command(module, arguments))
