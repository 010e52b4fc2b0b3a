"""Judge a policy on held-out prompts: greedy, sampled and best of n, and one policy beside another.

What lives here: the command (``python -m textgen_env.agents.evaluate``) and its tables. What does not: playing, by
which runs judge their policies too (``training/evaluate.py``), and the numbers (``best_of_n.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from textgen_env.episode import Completion, FinishReason
from textgen_env.lm.sampling import SamplingParams
from textgen_env.reward import Reward

from .best_of_n import Estimate, Responses, compare
from .policy import ActorCritic, frozen_reference
from .training.command_line import parse
from .training.command_line import run as run_program
from .training.display import Display
from .training.environments import make_environments, named_policy, read_scorer
from .training.evaluate import Played, distinct_without_each, jackknife, play
from .training.extra import Console, Table
from .training.files import replace_file
from .training.run_settings import TaskSettings
from .training.setting_checks import COUNT, COUNT_OR_ZERO, MASS, TEXT, check, optional

DEVIATIONS = 1.96  # of a normal distribution, for 95 %
ROWS = (
    ("score", "score", "{:.3f}"),
    ("judge", "judge's score", "{:.3f}"),
    ("win_rate", "win rate", "{:.0%}"),
    ("kl_per_response", "KL, nats per response", "{:.2f}"),
    ("reference_perplexity", "perplexity, reference", "{:.1f}"),
    ("response_length", "length, tokens", "{:.1f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
    ("eos_rate", "end with EOS", "{:.0%}"),
)


@dataclass
class EvaluateSettings(TaskSettings):
    """Judge a policy on a task's held-out prompts: greedy, sampled and best of n; and beside another policy."""

    policy: str | None = None
    """Whom to judge: a folder such as a run's last/, or anything that --model takes; None: --model itself, which is the
    reference."""
    against: str | None = None
    """Another policy, on the same prompts."""
    judge: str | None = None
    """Name of a scorer, or its JSON form, that decides who wins; None: the task's, by which the best of n is chosen."""
    samples: int = 16
    """Responses per prompt."""
    best_of: tuple[int, ...] = (4, 16)
    """Numbers of responses of which the best is taken, each at most --samples."""
    top_k: int = 0
    """Policies sample among the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Policies sample from the nucleus of this mass; 1 for all."""
    output: str | None = None
    """A JSON file to write, with every response."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, dict.fromkeys(("policy", "against", "judge", "output"), optional(TEXT)))
        check(self, {"samples": COUNT, "top_k": COUNT_OR_ZERO, "top_p": MASS})
        for n in self.best_of:
            if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= self.samples:
                raise ValueError(f"best_of={self.best_of} must hold whole numbers from 1 to samples={self.samples}")

    @property
    def decodings(self) -> list[Decoding]:
        """All that are judged."""
        return [
            Decoding("greedy", "greedy", 1),
            *(Decoding("sampled" if n == 1 else f"best of {n}", "sampled", n) for n in sorted({1, *self.best_of})),
        ]


class Decoding(NamedTuple):
    """A way to answer."""

    name: str
    played: str  # which responses it is made of: the "greedy" or the "sampled"
    n: int  # of how many the best counts


class Answers(NamedTuple):
    """What one policy wrote to every prompt, some responses each, and what they are worth."""

    played: Played
    responses: Responses

    def metrics(self, n: int) -> dict[str, Estimate]:
        """Those of `Responses.metrics`, and ``distinct_2`` of one response per prompt: the best of the first n.

        Its interval is ± 1.96 jackknife errors: prompts that the bootstrap draws twice would repeat each other.
        """
        count = self.responses.scores.shape[1]
        chosen = self.responses.scores[:, :n].argmax(dim=1).tolist()
        tokens = self.played.tokens()
        value, *left_out = distinct_without_each([tokens[p * count + i] for p, i in enumerate(chosen)], 2)
        half = DEVIATIONS * jackknife(left_out)
        return {**self.responses.metrics(n), "distinct_2": Estimate(value, value - half, value + half)}

    def rows(self) -> list[dict[str, Any]]:
        """Every response as plain data."""
        rollout, told = self.played.rollout, self.responses
        columns = (told.scores, told.judged, told.kl, told.ref_log_probs)
        numbers = zip(*(column.flatten().tolist() for column in columns), strict=True)
        names = ("prompt", "text", "token_ids", "finish_reason", "score", "judge", "kl", "ref_log_prob")
        texts = zip(rollout.prompts, rollout.texts, self.played.tokens(), rollout.finish_reasons, strict=True)
        return [dict(zip(names, (*text, *row), strict=True)) for text, row in zip(texts, numbers, strict=True)]


class Judgement:
    """The program of the command line.

    Raises:
        ValueError: a policy has other tokens than the task's model; there is no such scorer.
    """

    begun = False

    def __init__(self, settings: EvaluateSettings, console: Console | None = None) -> None:
        self.settings, self.display = settings, Display(console)
        _, self.venv = make_environments(settings)
        self.env = cast(Any, self.venv.unwrapped)
        self.reference = frozen_reference(self.env.reference.model, self.env.reference.vocab_size)
        self.judge = Reward(read_scorer("judge", settings.judge), self.env.prompts) if settings.judge else None
        if self.judge and self.judge.needs_policy:
            raise ValueError(f"judge={settings.judge!r} sees the policy: one judge must judge both; name its model")
        names = ["policy", *(["against"] if settings.against else [])]
        self.policies = {name: named_policy(settings, self.venv, name) for name in names}

    def execute(self) -> dict[str, Any]:
        """Play, print, and write if wanted; the same as plain data."""
        settings, found = self.settings, {}
        answers = {name: self._answers(policy) for name, policy in self.policies.items()}
        for name, ways in answers.items():
            title = f"{getattr(settings, name) or settings.model}: {len(self.env.prompts)} held-out prompts"
            found[title] = {way.name: ways[way.played].metrics(way.n) for way in settings.decodings}
        if len(answers) == 2:
            ours, theirs = answers["policy"], answers["against"]
            found["the first less the second, on the same prompts"] = {
                way.name: compare(ours[way.played].responses, theirs[way.played].responses, way.n)
                for way in settings.decodings
            }
        if settings.output is not None:
            self._write(Path(settings.output), found, answers)
        for title, metrics in found.items():
            self.display.attempt("the table", partial(decodings_table, f"{title} (95 % interval)", metrics))
        return found

    def _answers(self, policy: ActorCritic) -> dict[str, Answers]:
        settings = self.settings
        sampling = SamplingParams(settings.temperature, settings.top_k, settings.top_p)
        play_by = partial(play, self.venv, policy, self.reference, seed=settings.seed, sampling=sampling)
        played = {"greedy": play_by(greedy=True), "sampled": play_by(samples=settings.samples)}
        return {name: Answers(each, self._responses(each, name == "greedy")) for name, each in played.items()}

    def _responses(self, played: Played, greedy: bool) -> Responses:
        rollout = played.rollout
        if cut := rollout.finish_reasons.count("cut"):
            raise ValueError(f"{cut} responses were cut from outside, without a score; take the limit of steps away")
        log_probs, ref_log_probs = (
            torch.stack([row.double().sum() for row in rollout.per_response(grid)])
            for grid in (played.log_probs, played.ref_log_probs)
        )
        columns = {
            "scores": rollout.scores,
            "judged": self._judged(played) if self.judge else rollout.scores,
            "kl": -ref_log_probs if greedy else log_probs - ref_log_probs,
            "ref_log_probs": ref_log_probs,
            "lengths": rollout.lengths,
            "eos": torch.tensor([reason == "eos" for reason in rollout.finish_reasons]),
        }
        return Responses(**{name: column.cpu().view(len(self.env.prompts), -1) for name, column in columns.items()})

    def _judged(self, played: Played) -> Tensor:
        """(B,) what the judge says, asked as an environment asks its scorer."""
        assert self.judge
        rollout, prompts = played.rollout, self.env.prompts
        each = len(rollout.texts) // len(prompts)
        completions = {
            row: Completion(prompts[row // each], text, tuple(tokens), FinishReason(reason))
            for row, (text, tokens, reason) in enumerate(
                zip(rollout.texts, played.tokens(), rollout.finish_reasons, strict=True)
            )
        }
        nothing = np.zeros((len(completions), len(self.judge.part_names)))
        return torch.from_numpy(self.judge.total(self.judge.parts(nothing, completions)))

    def _write(self, path: Path, found: Mapping[str, Any], answers: Mapping[str, Mapping[str, Answers]]) -> None:
        content = {
            "settings": asdict(self.settings),
            "metrics": {
                title: {way: {name: e._asdict() for name, e in metrics.items()} for way, metrics in ways.items()}
                for title, ways in found.items()
            },
            "responses": {name: {way: each.rows() for way, each in ways.items()} for name, ways in answers.items()},
        }
        replace_file(path, json.dumps(content, indent=1))


def decodings_table(title: str, metrics: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """A column per decoding and a row per metric, each number above its interval.

    Args:
        title: of the table.
        metrics: by decoding and name.
    """
    table = Table(title=title, title_justify="left")
    for name in ("", *metrics):
        table.add_column(name, justify="right" if name else "left")
    names = next(iter(metrics.values()))
    for name, label, form in ROWS:
        if name in names:
            estimates = (each[name] for each in metrics.values())
            cells = (f"{form.format(e.value)}\n{form.format(e.low)} to {form.format(e.high)}" for e in estimates)
            table.add_row(label, *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.evaluate --help``"""
    Judgement(parse(EvaluateSettings, "textgen_env.agents.evaluate", arguments)).execute()


if __name__ == "__main__":
    run_program(lambda: Judgement(parse(EvaluateSettings, "textgen_env.agents.evaluate")))
