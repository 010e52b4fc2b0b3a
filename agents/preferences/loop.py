"""Labels in rounds: how many each round, of which pairs, and who gives them.

What lives here: the schedule, the choice of pairs, the seam between a loop and its labeller, and what a fitted reward
model is as a scorer. What does not: rounds and trainers (``../rlhf.py``), the judge itself and sampling
(``labellers.py``), where choices are kept (``store.py``).

References:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), section 2.2 and appendix A.
    Ziegler et al., "Fine-tuning language models from human preferences" (2019), section 2.1: normalised rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.scorers.combine import Affine
from textgen_env.scorers.registry import get_scorer

from ..training.setting_checks import COUNT, POSITIVE, SHARE, TEXT, check, choice, optional, whole
from .comparisons import responses_once, sample_comparisons
from .labellers import SampledPairs, choose_by_disagreement, columns_of, scores_of
from .pairs import Pair
from .source import JudgeConfig
from .store import PreferenceStore

Scorer = Mapping[str, Any]
"""A scorer as JSON."""


@dataclass
class LabelConfig(JudgeConfig):
    """How many labels there are, of which pairs, and who gives them."""

    labeller: Literal["synthetic"] = "synthetic"
    """Who labels: the task's own scorer as a hidden judge."""
    pairs: str | None = None
    """A JSONL file of labelled pairs, in our own form or in TRL's, instead of pairs that are sampled and labelled."""
    labels: int = 22400
    """Pairs that are labelled, in all rounds together."""
    responses: int = 8
    """Responses to a prompt, K, of which all K·(K − 1)/2 pairs are labelled."""
    held_out_pairs: int = 2240
    """Of these, what the reward model is measured on: the pairs of some prompts, at most a fifth."""
    initial_share: float = 0.25
    """Share of the labels that the policy's first responses get, where there are several rounds."""
    half_rate_at: float = 0.2
    """Share of the training after which labels come half as fast as at its beginning: the rate is
    half_rate_at / (half_rate_at + t)."""
    select: Literal["random", "disagreement"] = "random"
    """Pairs to ask about: as they are sampled, or, once there is an ensemble, those of which it disagrees most."""
    candidates: int = 4
    """Pairs sampled per label, of which disagreement chooses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {"pairs": optional(TEXT), **dict.fromkeys(("labels", "held_out_pairs", "candidates"), COUNT)}
        rules |= {"responses": whole(2), "initial_share": SHARE, "half_rate_at": POSITIVE}
        check(self, {**rules, "labeller": choice("synthetic"), "select": choice("random", "disagreement")})

    def schedule(self, rounds: int) -> list[int]:
        """See `label_schedule`."""
        return label_schedule(self.labels, rounds, self.initial_share, self.half_rate_at)


def label_schedule(labels: int, rounds: int, initial_share: float, half_rate_at: float) -> list[int]:
    """How many labels each round gets: a share up front, then at a rate ∝ τ/(τ + t) that falls with training.

    Christiano et al. ask for a quarter up front, and then at the rate 2·10⁶/(2·10⁶ + T) in T time steps. Here t is the
    share of the training that is done when a round begins: 1/K, 2/K, … in K rounds; the first round, before any
    training, has what is asked up front. Shares are rounded by largest remainders, so that their sum is ``labels``.

    Args:
        labels: of all rounds.
        rounds: K; a single one gets them all.
        initial_share: of the first of several rounds.
        half_rate_at: τ, as a share of the training.

    Raises:
        ValueError: a round gets none.
    """
    rates = [half_rate_at / (half_rate_at + number / rounds) for number in range(1, rounds)]
    shares = [initial_share, *((1 - initial_share) * rate / math.fsum(rates) for rate in rates)] if rates else [1.0]
    counts = [math.floor(labels * share + 1e-9) for share in shares]
    by_remainder = sorted(range(rounds), key=lambda i: counts[i] - labels * shares[i])
    for i in by_remainder[: labels - sum(counts)]:
        counts[i] += 1
    if min(counts) < 1:
        raise ValueError(
            f"labels={labels} leave none for round {counts.index(0) + 1} of rounds={rounds}, with "
            f"initial_share={initial_share:g}; give more labels, or have fewer rounds"
        )
    return counts


# --- who labels -----------------------------------------------------------------------------------------------------


class Labeller(Protocol):
    """Who answers: the seam between a loop and a judge, a page, a crowd."""

    def __call__(self, store: PreferenceStore, pairs: Sequence[Pair]) -> None:
        """Put pairs into the store, and return once the reward model is to be fitted to the choices that are there.

        That may be at once, with the choices (a judge), when all are made, or when enough are, the rest to come in
        later rounds (people). After a stop the same pairs are given again; a pair that the store has is not added
        twice.
        """


def make_labeller(config: LabelConfig, seed: int) -> Labeller:
    """The labeller that the settings name."""
    judge = config.judge(seed)

    def synthetic(store: PreferenceStore, pairs: Sequence[Pair]) -> None:
        store.add(judge(pairs))  # pairs and choices in one transaction

    return synthetic


def choices_in(store: PreferenceStore) -> list[Pair]:
    """Everything that was said so far: each pair once per choice."""
    return [pair for pair in store.pairs() if pair.choice is not None]


def draw_pairs(
    venv: VectorEnv,
    language_model: LanguageModel,
    count: int,
    differences: Callable[[Sequence[Pair]], Tensor] | None = None,
    *,
    responses: int = 2,
    candidates: int = 4,
    seed: int,
    temperature: float = 1.0,
) -> SampledPairs:
    """Pairs of a policy's own responses that are worth a label.

    Args:
        venv: see `sample_pairs`.
        language_model: the policy, as it is now.
        count: how many.
        differences: of an ensemble, see `choose_by_disagreement`; None takes pairs as they are sampled.
        responses: to each prompt, see `sample_comparisons`.
        candidates: pairs per label that are sampled where an ensemble chooses.
        seed: of prompts and responses.
        temperature: of the responses.
    """
    generator = torch.Generator(next(language_model.model.parameters()).device).manual_seed(seed)
    sampling, wanted = SamplingParams(temperature), count if differences is None else count * candidates
    sampled = sample_comparisons(venv, language_model, wanted, responses, generator=generator, sampling=sampling)
    if differences is None:
        return sampled
    return SampledPairs(choose_by_disagreement(sampled.pairs, count, differences), sampled.dropped)


# --- a fitted reward model as a scorer --------------------------------------------------------------------------------


def member_scorers(folder: Path, pairs: Sequence[Pair]) -> list[Scorer]:
    """Each member of a saved reward model as a scorer of raw rewards, which reads prompts as these pairs have them."""
    folders = [folder, *sorted(folder.glob("member-*"), key=lambda path: int(path.name.split("-")[1]))]
    form = "prompt+completion" if all(isinstance(pair.prompt, str) for pair in pairs) else "chat"
    return [{"name": "classifier", "model": str(path), "output": "logit", "text": form} for path in folders]


def ensemble_differences(folder: Path) -> Callable[[Sequence[Pair]], Tensor]:
    """From N pairs to (members, N) r_a − r_b, of a saved reward model."""

    def differences(pairs: Sequence[Pair]) -> Tensor:
        scorers = [get_scorer(member) for member in member_scorers(folder, pairs)]
        scores = torch.stack([scores_of(scorer, pairs) for scorer in scorers])  # (members, N, 2)
        return scores[..., 0] - scores[..., 1]

    return differences


def normalized_scorer(folder: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """A saved reward model, the mean of its members, as a scorer with mean 0 and deviation 1 over these responses.

    Preferences leave the level of rewards open, and hard labels their scale. Measured on responses of the policy that
    training began with, the same ones after each refit, a reward is in units that β can be chosen for.

    Args:
        folder: where it was saved.
        pairs: whose responses; one that is in several counts once.

    Raises:
        ValueError: it finds all of them equally good.
    """
    members, pairs = member_scorers(folder, pairs), responses_once(pairs)
    raw = {f"member {number}": [1 / len(members), member] for number, member in enumerate(members)}
    scorer = members[0] if len(members) == 1 else {"name": "sum", "scorers": raw}
    try:
        fitted = Affine.fitted(scorer, [text for pair in pairs for text in (pair.a, pair.b)], **columns_of(pairs))
    except ValueError as error:
        raise ValueError(f"the reward model in {folder} finds all {2 * len(pairs)} responses equally good") from error
    return {"name": "affine", "scorer": scorer, "gain": fitted.gain, "bias": fitted.bias}
