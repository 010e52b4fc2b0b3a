"""Reinforcement learning from preferences as one command: from a model and a judge to a better model.

What lives here: the stages, in what order they run and how they go on after a stop; the door of the command line
(``python -m textgen_env.agents.rlhf``). What does not: their settings (``rlhf_config.py``), each stage, an ordinary run
in a folder of its own (``sft.py``, ``reward_model.py``, ``ppo.py``), labels (``preferences/loop.py``), the last table
(``preferences/stages.py``).

References:
    Ouyang et al., "Training language models to follow instructions with human feedback" (2022): one round.
    Christiano et al., "Deep reinforcement learning from human preferences" (2017): several rounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.scorers.registry import get_scorer

from . import ppo, reward_model, sft
from .policy import ActorConfig, ActorCritic
from .preferences.loop import choices_in, draw_pairs, ensemble_differences, make_labeller, normalized_scorer
from .preferences.opinions import put_opinions
from .preferences.pairs import read_pairs, write_pairs
from .preferences.source import PairConfig, split_pairs
from .preferences.stages import measure_stage, stages_table
from .preferences.store import PreferenceStore
from .rlhf_config import RLHFSettings
from .training.checkpoint import latest_checkpoint, read_state
from .training.command_line import parse, read_lines, resume_command
from .training.command_line import run as run_program
from .training.display import Display
from .training.environments import make_environments, seed_generators
from .training.evaluate import EvalReport
from .training.extra import Console
from .training.files import replace_file
from .training.memory import keep_freed_memory
from .training.run import Run
from .training.run_folder import RunFolder
from .training.run_settings import FolderSettings
from .training.seeds import derived_seed
from .training.stopping import Stopped, Stopping

LEAST_UPDATES = 24
"""Of a fit to few pairs: a head that starts at zero says nothing before."""
COMPLETE = "complete"
"""The file that a stage's folder has once the stage has run to its end."""


class RLHF:
    """The pipeline and its folder; `execute` runs what of it has not been run yet.

    The folder: ``settings.json``, ``preferences.db`` with all pairs and choices, ``sft/``, and for each round (in the
    folder itself where there is one, else in ``round-1/``, ``round-2/``, …) ``pairs.jsonl``, what was said up to then;
    ``reward_model/`` and ``ppo/``, which are run folders; ``scorer.json``, the reward model as a scorer. At its end
    ``stages.json``. It is locked until `execute` ends, or `close`.

    Args:
        settings: of everything.
        console: where to print.
        resume_command: from the folder to how to go on; said when the pipeline is stopped.

    Raises:
        FileExistsError, ValueError, BlockingIOError: the folder, see `RunFolder`.
        ValueError: there is no such environment, scorer or file.
    """

    def __init__(
        self,
        settings: RLHFSettings,
        console: Console | None = None,
        *,
        resume_command: Callable[[Path], str] | None = None,
    ) -> None:
        self.settings, self.display, self.begun = settings, Display(console), False
        self._resume_command = resume_command or (lambda folder: f"RLHF with resume=True and output={str(folder)!r}")
        self.run_folder = RunFolder(settings, "rlhf-", self.display)
        self.folder = self.run_folder.path
        try:
            make_environments(settings)  # what is wrong with the task is said before anything is written
            self._ptx_texts = read_lines("ptx_texts", settings.ptx_texts) if settings.ptx_texts else []
            self._given = None if settings.labels.pairs is None else read_pairs(settings.labels.pairs)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder free for other processes."""
        self.run_folder.close()

    def execute(self) -> Path:
        """Run to the end, and return the folder.

        Raises:
            SystemExit: a signal stopped it, with code 128 + its number; everything is saved.
        """
        try:
            with Stopping(""):
                self.run_folder.claim()
                self.begun = True
                self._stages()
        except Stopped as stopped:
            self.display.say(f"stopped by {stopped} between two runs; to go on:")
            self.display.say(self._resume_command(self.folder))
            raise SystemExit(stopped.code) from None
        finally:
            self.close()
        return self.folder

    def _stages(self) -> None:
        settings = self.settings
        if settings.sft_updates:
            self._run(self.folder / "sft", self._sft)
        for number in range(1, settings.rounds + 1):
            self._label(number)
            self._run(self.round(number) / "reward_model", partial(self._reward_model, number))
            self._scorer(number)
            self._run(self.round(number) / "ppo", partial(self._ppo, number))
        self._report()

    def round(self, number: int) -> Path:
        """The folder of a round, counted from 1."""
        return self.folder if self.settings.rounds == 1 else self.folder / f"round-{number}"

    @property
    def start(self) -> str:
        """The model that labels and PPO begin with, and that KL is measured from."""
        return str(self.folder / "sft" / "last") if self.settings.sft_updates else self.settings.model

    def _policy_of(self, number: int) -> str:
        """The model as it is after a round; 0: before the first."""
        return str(self.round(number) / "ppo" / "last") if number else self.start

    def _updates_by(self, number: int) -> int:
        """How many updates PPO has done at the end of a round."""
        return self.settings.ppo_updates * number // self.settings.rounds

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _run(self, folder: Path, make: Callable[[dict[str, Any]], Run]) -> None:
        """Run a stage, or go on with it, unless it has come to its end; a signal ends it as it ends any run."""
        if (folder / COMPLETE).exists():
            return
        make(self._shared(folder)).execute()
        replace_file(folder / COMPLETE, "")

    def _shared(self, folder: Path) -> dict[str, Any]:
        """The settings that all stages share; a stage whose folder is a run already goes on with it."""
        named = fields(FolderSettings)
        shared = {each.name: getattr(self.settings, each.name) for each in named}
        own = {"model": self.start, "output": str(folder), "resume": (folder / "settings.json").exists()}
        return {**shared, **own, "optimum_samples": 0}

    def _options(self) -> dict[str, Any]:
        return {"console": self.display.console, "resume_command": lambda _: self._resume_command(self.folder)}

    def _sft(self, shared: dict[str, Any]) -> Run:
        settings = self.settings
        given = {**shared, "model": settings.model, "updates": settings.sft_updates}
        actor = ActorConfig(**{each.name: getattr(settings.policy, each.name) for each in fields(ActorConfig)})
        return Run(sft.SFTSettings(**given, policy=actor, sft=settings.sft), sft.make_trainer, **self._options())

    def _reward_model(self, number: int, shared: dict[str, Any]) -> Run:
        """A fit from the start model, to all labels so far.

        From scratch: an earlier fit has learned some of what is held out now, and costs no more than it saves.
        """
        settings, pairs = self.settings, str(self.round(number) / "pairs.jsonl")
        data = PairConfig(pairs=pairs, held_out_pairs=settings.labels.held_out_pairs)
        learned = sum(pair.ranked is not None for pair in split_pairs(read_pairs(pairs), data.held_out_pairs)[0])
        per_epoch = math.ceil(learned / settings.reward_model.minibatch_size)
        updates = settings.reward_updates or max(LEAST_UPDATES, settings.reward_epochs * per_epoch)
        often = {name: max(1, updates // 4) for name in ("eval_every", "sample_every")}
        given = {**shared, **often, "updates": updates, "data": data}
        kept = reward_model.RewardModelSettings(**given, reward_model=settings.reward_model)

        def make_trainer(run: Any) -> reward_model.RewardModelTrainer:
            own = self._given is None and settings.labels.labeller == "synthetic"
            run.judge = settings.labels if own else None
            return reward_model.make_trainer(run)

        return reward_model.RewardModelRun(kept, make_trainer, **self._options())

    def _ppo(self, number: int, shared: dict[str, Any]) -> Run:
        """PPO as it was after the round before: policy, critic, optimiser, β and generators; only the scorer is new."""
        settings = self.settings
        scorer = (self.round(number) / "scorer.json").read_text(encoding="utf-8")
        given = {**shared, "scorer": scorer, "updates": self._updates_by(number), "ptx_texts": settings.ptx_texts}
        before = latest_checkpoint(self.round(number - 1) / "ppo" / "checkpoints") if number > 1 else None

        def make_trainer(run: Run) -> ppo.PPO:
            options = {**run.options, "total_updates": settings.ppo_updates}
            trainer = ppo.PPO(run.venv, run.policy, settings.ppo, ptx_texts=self._ptx_texts, **options)
            if before is not None:
                state = read_state(before)["trainer"]
                state["env"] = {**trainer.env.state_dict(), "generators": state["env"]["generators"]}
                trainer.load_state_dict(state)
            return trainer

        return Run(ppo.PPOSettings(**given, policy=settings.policy, ppo=settings.ppo), make_trainer, **self._options())

    # --- labels and rewards -------------------------------------------------------------------------------------------

    @cached_property
    def _store(self) -> PreferenceStore:
        return PreferenceStore(self.folder / "preferences.db")

    def _label(self, number: int) -> None:
        """``pairs.jsonl``: everything that was said by the time that the labeller returns."""
        path = self.round(number) / "pairs.jsonl"
        if path.exists():
            return
        if self._given is not None:
            write_pairs(path, self._given)
            return
        settings, labels = self.settings, self.settings.labels
        count = labels.schedule(settings.rounds)[number - 1]
        asks = labels.select != "random" and number > 1
        venv, _ = make_environments(settings)  # a new one: a judge may keep running statistics, which a stop would end
        drawn = draw_pairs(
            venv,
            self._load(self._policy_of(number - 1)),
            count,
            ensemble_differences(self.round(number - 1) / "reward_model" / "last") if asks else None,
            responses=labels.responses,
            branches=labels.select == "branches",
            candidates=labels.candidates,
            seed=derived_seed(settings.seed, number),
            temperature=settings.temperature,
        )
        make_labeller(labels, settings.seed, self.display.say)(self._store, drawn.pairs)
        said = choices_in(self._store)
        self.display.say(f"round {number} of {settings.rounds}: {len(drawn.pairs)} pairs to label, {len(said)} choices")
        write_pairs(path, said)

    def _scorer(self, number: int) -> None:
        """``scorer.json``: the reward model as PPO gets it, on the scale of the first policy's responses."""
        path = self.round(number) / "scorer.json"
        if not path.exists():
            first = read_pairs(self.round(1) / "pairs.jsonl")
            scorer = normalized_scorer(self.round(number) / "reward_model" / "last", first)
            if self.settings.labels.labeller == "page":
                put_opinions(self._store, self.round(number) / "reward_model" / "last")
            replace_file(path, json.dumps(scorer))

    def _load(self, model: str) -> LanguageModel:
        return LanguageModel(model, device=self.settings.device, dtype=self.settings.dtype)

    # --- what became of it --------------------------------------------------------------------------------------------

    def _report(self) -> None:
        path = self.folder / "stages.json"
        if not path.exists():
            stages = self._measure()
            replace_file(path, json.dumps({name: asdict(report) for name, report in stages.items()}, indent=1))
        stages = {name: EvalReport(**report) for name, report in json.loads(path.read_text(encoding="utf-8")).items()}
        self.display.attempt("the table of labels", self._say_of_labels)
        self.display.attempt("the table of stages", lambda: stages_table(stages))
        self.display.say(f"saved in {self.folder}: stages.json, {self._policy_of(self.settings.rounds)}")

    def _measure(self) -> dict[str, EvalReport]:
        """Every policy on the same held-out prompts, by the judge and by the last reward model."""
        settings = self.settings
        models = {"at the start": settings.model} | ({"after SFT": self.start} if settings.sft_updates else {})
        for number in range(1, settings.rounds + 1):
            name = "after PPO" if settings.rounds == 1 else f"after round {number}"
            models[name] = self._policy_of(number)
        scorer = get_scorer(json.loads((self.round(settings.rounds) / "scorer.json").read_text(encoding="utf-8")))
        reference = ActorCritic(self._load(self.start), ActorConfig()).reference()
        sampling = SamplingParams(settings.temperature, settings.ppo.top_k, settings.ppo.top_p)
        _, venv = make_environments(settings)
        seed_generators(venv, settings.seed)

        def measure(model: str) -> EvalReport:
            policy = ActorCritic(self._load(model), ActorConfig())
            return measure_stage(venv, policy, reference, scorer, sampling)

        return {name: measure(model) for name, model in models.items()}

    def _say_of_labels(self) -> None:
        """How well each fit foretells held-out labels, beside how well the judge does itself."""
        settings = self.settings
        for number in range(1, settings.rounds + 1):
            folder = self.round(number)
            pairs = read_pairs(folder / "pairs.jsonl")
            held_out = split_pairs(pairs, settings.labels.held_out_pairs)[1]
            after = EvalReport(**json.loads((folder / "reward_model" / "after.json").read_text(encoding="utf-8")))
            accuracy, error = after.metrics["accuracy"], after.standard_error("accuracy")
            line = (
                f"reward model {number}, {len(pairs)} labels: right in {accuracy:.1%} ± {error:.1%} of those held out"
            )
            if settings.labels.pairs is None and settings.labels.labeller == "synthetic":
                own = settings.labels.self_agreement(held_out, settings.seed)
                line += f"; the judge, asked twice, agrees in {own:.1%}: {accuracy / own:.0%} of that"
            self.display.say(line)


def make_run(arguments: Sequence[str] | None = None) -> RLHF:
    """Everything up to the first stage; see `main`."""
    module = "textgen_env.agents.rlhf"
    settings = parse(RLHFSettings, module, arguments)
    keep_freed_memory()
    return RLHF(settings, resume_command=resume_command(module, arguments))


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.rlhf --help``"""
    make_run(arguments).execute()


if __name__ == "__main__":
    run_program(make_run)
