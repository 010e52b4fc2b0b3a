"""Off-policy evaluation: what a policy would score, from recorded episodes of another: ``textgen ope``.

What lives here: the command (``python -m textgen_env.agents.ope``), and what the policy says of the episodes. What does
not: the estimators (``offline_estimates.py``), the data set (``minari_data.py``), judging by playing (``evaluate.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.notices import warn_user

from .minari_data import RecordedEpisodes, read
from .offline_estimates import ENOUGH, OffPolicy, OffPolicyEstimates
from .policy import ActorConfig, ActorCritic, PolicyConfig
from .training.command_line import parse
from .training.command_line import run as run_program
from .training.display import Display
from .training.extra import Console, Table
from .training.files import replace_file
from .training.setting_checks import FLAG, POSITIVE, SEED, TEXT, check, choice, optional
from .training.trainer import join

ROWS = 16  # episodes per teacher-forced pass


@dataclass
class OPESettings:
    """Estimate what a policy would score, from recorded episodes of another."""

    dataset: str | None = None
    """Recorded episodes: a folder that `textgen record` has written; best of all, none that the policy learned from."""
    policy: str | None = None
    """Whom to judge: a folder such as a run's last/, or any language model. A critic that lies beside it is used."""
    temperature: float | None = None
    """Of the policy in question; None: as the episodes were sampled."""
    output: str | None = None
    """A JSON file to write."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "float32"
    """Type of the weights: float32 or bfloat16."""
    seed: int = 1
    """Seeds the bootstrap."""
    debug: bool = False
    """Show where in the code a mistake in the settings was found."""

    def __post_init__(self) -> None:
        rules = dict.fromkeys(("dataset", "policy", "output"), optional(TEXT))
        check(self, {**rules, "device": TEXT, "dtype": choice("float32", "bfloat16")})
        check(self, {"temperature": optional(POSITIVE), "seed": SEED, "debug": FLAG})
        for name, what in {"dataset": "the folder of the episodes", "policy": "whom to judge"}.items():
            if getattr(self, name) is None:
                raise ValueError(f"{name}=None: name {what}")


@torch.no_grad()
def off_policy(recorded: RecordedEpisodes, policy: ActorCritic, sampling: SamplingParams | None = None) -> OffPolicy:
    """What a policy says of recorded episodes.

    Args:
        recorded: the episodes.
        policy: whom to judge; values are those of its critic, if it has one.
        sampling: how it would sample: a temperature alone. None: at that of the episodes.

    Raises:
        ValueError: top-k or top-p, under which scored log-probs are not those of what may be drawn.
    """
    sampling = recorded.sampling.of_reference if sampling is None else sampling
    if sampling != sampling.of_reference:
        raise ValueError(
            f"sampling={sampling} must be a temperature alone: what is cut off would be scored as if drawn"
        )
    if recorded.sampling != recorded.sampling.of_reference:
        warn_user(
            f"the episodes were sampled with {recorded.sampling}: what that left out was never seen, and estimates for "
            "a policy that may write it are of a part of what it would do"
        )
    rollout, chunks = recorded.rollout.to(policy.device), torch.arange(len(recorded.seeds)).split(ROWS)
    chunks = tuple(rows.to(policy.device) for rows in chunks)
    found = [policy(rollout.rows(rows), sampling, mask=rollout.masks(rows)) for rows in chunks]
    whole = partial(join, rollout.tokens, chunks)
    values = None if found[0].values is None else whole([cast(torch.Tensor, each.values) for each in found])
    log_ratios = whole([each.log_probs for each in found]) - rollout.sampled_log_probs
    assert rollout.chosen_prompts is not None
    return OffPolicy(log_ratios, rollout.rewards, rollout.response_mask, rollout.chosen_prompts, values)


def read_policy(source: str, device: str = "cpu", dtype: str = "float32") -> ActorCritic:
    """A policy as `ActorCritic.save` has written it, with its critic; or any language model, without one."""
    model = LanguageModel(source, device=device, dtype=dtype, role="policy")
    if not (path := Path(source) / "critic.safetensors").is_file():
        return ActorCritic(model, ActorConfig())
    weights = load_file(path)
    separate = any(name.startswith("critic.") for name in weights)
    policy = ActorCritic(model, PolicyConfig(critic="separate" if separate else "shared"))
    if set(weights) - set(policy.state_dict()) or not any(name.startswith("value_head.") for name in weights):
        raise ValueError(f"policy={source!r}: {path.name} does not fit the model beside it")
    policy.load_state_dict(weights, strict=False)  # the actor has its own already
    return policy.eval()


class OffPolicyEvaluation:
    """The program of the command line.

    Raises:
        ValueError: there is no such data set, or the policy has other tokens than who played.
    """

    begun = False

    def __init__(self, settings: OPESettings, console: Console | None = None) -> None:
        self.settings, self.display = settings, Display(console)
        self.recorded = read(cast(str, settings.dataset))
        self.policy = read_policy(cast(str, settings.policy), settings.device, settings.dtype)
        size, theirs = self.policy.language_model.vocab_size, self.recorded.facts["vocab_size"]
        if size != theirs:
            raise ValueError(f"policy={settings.policy!r} has {size} tokens, and the episodes are of {theirs}")

    def execute(self) -> OffPolicyEstimates:
        """Score, estimate, print, and write if wanted."""
        settings = self.settings
        sampling = None if settings.temperature is None else SamplingParams(settings.temperature)
        found = off_policy(self.recorded, self.policy, sampling).estimate(seed=settings.seed)
        if settings.output is not None:
            told = {**found._asdict(), "reliable": found.reliable}
            replace_file(Path(settings.output), json.dumps(told, indent=1))
        self.display.attempt("the table", lambda: estimates_table(found, str(settings.policy)))
        if not found.reliable:
            self.display.say(
                f"warning: {found.episodes} episodes are worth {found.ess:.0f} of the policy's own; below {ENOUGH:.0f} "
                "intervals are too narrow. Record more, or judge a policy that is closer to who played"
            )
        return found


def estimates_table(found: OffPolicyEstimates, policy: str) -> Table:
    """One line per estimator."""
    title = f"{policy}, from {found.episodes} episodes of another: {found.ess:.0f} effective ones"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("score (95 %)", justify="right")
    named = {"who played": found.behaviour, **found.values, "mean weight (expected: 1)": found.mean_weight}
    for name, (value, low, high) in named.items():
        table.add_row(name, f"{value:.3f} ({low:.3f} to {high:.3f})")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m textgen_env.agents.ope --help``"""
    OffPolicyEvaluation(parse(OPESettings, "textgen_env.agents.ope", arguments)).execute()


if __name__ == "__main__":
    run_program(lambda: OffPolicyEvaluation(parse(OPESettings, "textgen_env.agents.ope")))
