"""Who labels pairs when no person does, which pairs are worth a label, and pairs from a policy's own responses.

What lives here: `SyntheticLabeller`, selection at random and by disagreement, `sample_pairs`. What does not: the pair
and its files (``pairs.py``), playing (``../rollout.py``), what is learned (``../dpo.py``, ``../reward_model.py``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams
from textgen_env.notices import shown
from textgen_env.prompts import prompt_as_dict
from textgen_env.scorers.base import call_scorer
from textgen_env.scorers.registry import get_scorer

from ..rollout import Rollout, collect
from ..training.setting_checks import NOT_NEGATIVE, SEED, SHARE, check
from .pairs import Choice, Pair


class SyntheticLabeller:
    """A hidden judge: prefers a with probability σ((s_a − s_b) / temperature), where s are a scorer's scores.

    Each label depends on the seed and on the pair alone: not on the order of calls, nor on which response is a.

    Args:
        scorer: name, description or callable; None takes the column "scores" of each pair, as `sample_pairs` leaves it.
        temperature: of the judge, in units of the score; 0 always prefers the better one.
        flip: share of preferences that are turned round; ½ makes labels that say nothing.
        tie: scores that differ by less than this are a tie (as are equal ones at temperature 0).
        seed: of the judge's luck.

    Raises:
        TypeError, ValueError: a setting out of range; there is no such scorer.
    """

    def __init__(
        self,
        scorer: str | Mapping[str, Any] | Callable[..., Any] | None = None,
        *,
        temperature: float = 0.0,
        flip: float = 0.0,
        tie: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.scorer = None if scorer is None else get_scorer(scorer)
        self.temperature, self.flip, self.tie, self.seed = temperature, flip, tie, seed
        check(self, {"temperature": NOT_NEGATIVE, "flip": SHARE, "tie": NOT_NEGATIVE, "seed": SEED})

    def __call__(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The same pairs with a ``choice``, by "synthetic", and the column "scores", which the choice was made by.

        Raises:
            ValueError: there is no scorer, and a pair has no "scores".
            ScorerError: the scorer failed.
        """
        scores = _known_scores(pairs) if self.scorer is None else scores_of(self.scorer, pairs)
        return [
            replace(p, choice=self._choice(p, *s), who="synthetic", columns={**p.columns, "scores": s})
            for p, s in zip(pairs, scores.tolist(), strict=True)
        ]

    def _choice(self, pair: Pair, score_a: float, score_b: float) -> Choice:
        difference = score_a - score_b
        if abs(difference) < self.tie or (difference == 0 and self.temperature == 0):
            return "tie"
        swapped = pair.b < pair.a  # luck belongs to the two texts, in the order of the alphabet
        first = _sigmoid(-difference if swapped else difference, self.temperature)
        luck, flip_luck = self._luck(pair, swapped)
        prefers_first = (luck < first) != (flip_luck < self.flip)
        return "a" if prefers_first != swapped else "b"

    def _luck(self, pair: Pair, swapped: bool) -> tuple[float, float]:
        """Two uniform numbers in [0, 1)."""
        texts = [pair.b, pair.a] if swapped else [pair.a, pair.b]
        digest = hashlib.blake2b(json.dumps([self.seed, pair.prompt, *texts]).encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:], "big") / 2**64


def _sigmoid(difference: float, temperature: float) -> float:
    if temperature == 0:
        return float(difference > 0)
    return 0.5 * (1 + math.tanh(0.5 * difference / temperature))


def scores_of(scorer: Callable[..., Any], pairs: Sequence[Pair]) -> Tensor:
    """What a scorer says of both responses of each pair, with the columns of its prompt, as an environment asks it.

    Returns:
        (N, 2) float64, of a and of b.

    Raises:
        ScorerError: the scorer failed.
    """
    texts = [text for pair in pairs for text in (pair.a, pair.b)]
    return torch.tensor(call_scorer(scorer, texts, **columns_of(pairs)), dtype=torch.float64).view(-1, 2)


def columns_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What scorers are told beside a, b, a, b, … of some pairs: prompts, references, columns, and how they ended."""
    prompts = [pair.as_prompt for pair in pairs for _ in range(2)]
    names = {name for prompt in prompts for name in prompt.extra}
    columns: dict[str, Any] = {name: [prompt.extra.get(name) for prompt in prompts] for name in names}
    if any(prompt.messages for prompt in prompts):
        columns["messages"] = [p.messages and list(p.messages) for p in prompts]
    return {
        **columns,
        "prompts": [prompt.text for prompt in prompts],
        "references": [list(prompt.references) for prompt in prompts],
        "finish_reasons": ["eos" if ended else "length" for pair in pairs for ended in pair.ended],
    }


def agreement(first: Sequence[Pair], second: Sequence[Pair]) -> float:
    """Share of pairs, the same ones in both, of which two labellings say the same; a tie agrees half with anything."""
    shares = [
        0.5 if "tie" in (one.choice, other.choice) else float(one.choice == other.choice)
        for one, other in zip(first, second, strict=True)
    ]
    return math.fsum(shares) / len(shares)


def _known_scores(pairs: Sequence[Pair]) -> Tensor:
    for number, pair in enumerate(pairs):
        if "scores" not in pair.columns:
            raise ValueError(f"scorer=None needs the column 'scores', which pairs[{number}] has not; name a scorer")
    return torch.tensor([pair.columns["scores"] for pair in pairs], dtype=torch.float64).view(-1, 2)


# --- which pairs to ask about ---------------------------------------------------------------------------------------


def choose_at_random(pairs: Sequence[Pair], count: int, *, generator: torch.Generator) -> list[Pair]:
    """``count`` of the pairs, or all if there are fewer, in random order."""
    return [pairs[i] for i in torch.randperm(len(pairs), generator=generator)[:count].tolist()]


def choose_by_disagreement(
    pairs: Sequence[Pair], count: int, differences: Callable[[Sequence[Pair]], Tensor]
) -> list[Pair]:
    """The pairs of which the members of an ensemble disagree most (Christiano et al. 2017, section 2.2.4).

    Args:
        pairs: to choose from.
        count: how many; all if there are fewer.
        differences: from N pairs to (members, N) r_a − r_b, as `reward_model.Ensemble.differences` gives them.

    Returns:
        By falling standard deviation, over members, of P(a ≻ b) = σ(r_a − r_b); equal ones in the order given.

    Raises:
        ValueError: ``differences`` returns another shape, or of a single member.
    """
    found = differences(pairs)
    if found.dim() != 2 or found.shape[0] < 2 or found.shape[1] != len(pairs):
        shape = f"(members ≥ 2, {len(pairs)})"
        raise ValueError(f"differences must return {shape} for {len(pairs)} pairs, got {tuple(found.shape)}")
    spread = found.double().sigmoid().std(dim=0, correction=0)
    return [pairs[i] for i in spread.argsort(descending=True, stable=True)[:count].tolist()]


# --- pairs from a policy --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampledPairs:
    """Pairs without labels, and of how many prompts there is none, since the responses were always the same."""

    pairs: list[Pair]
    dropped: int


def sample_pairs(
    venv: VectorEnv,
    language_model: LanguageModel,
    count: int,
    *,
    generator: torch.Generator,
    sampling: SamplingParams = PLAIN,
    attempts: int = 4,
) -> SampledPairs:
    """Two responses to each of ``count`` prompts of an environment, drawn without repetition as far as there are any.

    Where both are the same text, both are drawn again.

    Args:
        venv: made with ``autoreset_mode=AutoresetMode.DISABLED``.
        language_model: whose responses.
        count: how many prompts.
        generator: source of prompts and responses.
        sampling: how responses are sampled.
        attempts: draws per prompt, after which it is dropped and counted.

    Returns:
        Pairs with the columns of their prompts, and "scores" and "ended" as the environment said.

    Raises:
        ValueError: ``count`` or ``attempts`` is below 1; see also `collect`.
    """
    if count < 1 or attempts < 1:
        raise ValueError(f"count={count} and attempts={attempts} must be at least 1")
    prompts = cast(Any, venv.unwrapped).prompts
    rounds = math.ceil(count / len(prompts))
    drawn = torch.cat([torch.randperm(len(prompts), generator=generator) for _ in range(rounds)])[:count].tolist()
    found: dict[int, Pair] = {}
    for _ in range(attempts):
        left = [place for place in range(count) if place not in found]
        if not left:
            break
        wanted = [drawn[place] for place in left for _ in range(2)]
        spare = wanted[:1] * max(0, venv.num_envs - len(wanted))  # every slot plays at least one
        played = collect(
            venv,
            language_model,
            len(wanted) + len(spare),
            generator=generator,
            sampling=sampling,
            prompts=wanted + spare,
        )
        for number, place in enumerate(left):
            if played.texts[2 * number] != played.texts[2 * number + 1]:
                found[place] = pair_of(prompts[drawn[place]], played, [2 * number, 2 * number + 1])
    return SampledPairs([found[place] for place in sorted(found)], count - len(found))


def pair_of(prompt: Prompt, played: Rollout, rows: list[int]) -> Pair:
    """Two of the responses to a prompt, those in these rows, as a pair."""
    row_of_prompt = prompt_as_dict(prompt)
    text = row_of_prompt.pop("prompt")
    if not prompt.references:
        del row_of_prompt["references"]
    scores = played.scores[rows].tolist()
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"the prompt {shown(prompt.text)} has a response that was cut from outside, without a score")
    ended = [played.finish_reasons[row] != "length" for row in rows]
    a, b = (played.texts[row] for row in rows)
    return Pair(text, a, b, columns={**row_of_prompt, "scores": scores, "ended": ended})
