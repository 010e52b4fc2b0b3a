"""All pairs of several responses to one prompt, as InstructGPT's raters rank them.

What lives here: sampling K responses to a prompt and pairing them, and which of many pairs hold each response once.
What does not: two responses to a prompt (``labellers.py``), who says which is better (``loop.py``).

References:
    Ouyang et al., "Training language models to follow instructions with human feedback" (2022), sec. 3.5: K of 4 to 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams

from ..rollout import collect
from .labellers import SampledPairs, pair_of, sample_pairs
from .pairs import Pair


def sample_comparisons(
    venv: VectorEnv,
    language_model: LanguageModel,
    count: int,
    responses: int = 2,
    *,
    generator: torch.Generator,
    sampling: SamplingParams = PLAIN,
) -> SampledPairs:
    """All K·(K − 1)/2 pairs of K responses to each of as many prompts as ``count`` pairs take.

    A response that is compared K − 1 times says far more than one that is compared once: the noise of labels averages
    out, and it is sampled, and read by a reward model, only once.

    Args:
        venv, language_model, generator, sampling: see `sample_pairs`.
        count: how many pairs; the last prompt's are cut there. Responses that are the same text make no pair, so that
            there may be fewer.
        responses: K, to each prompt; of two see `sample_pairs`, which draws again where they are alike.

    Returns:
        Pairs as of `sample_pairs`, prompt by prompt, and how many prompts have none, all responses being alike.

    Raises:
        ValueError: ``count`` is below 1, or ``responses`` below 2; see also `collect`.
    """
    if responses < 2:
        raise ValueError(f"responses={responses} must be at least 2: a pair has two")
    if responses == 2:
        return sample_pairs(venv, language_model, count, generator=generator, sampling=sampling)
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    prompts, wanted = cast(Any, venv.unwrapped).prompts, math.ceil(count / math.comb(responses, 2))
    rounds = math.ceil(wanted / len(prompts))
    drawn = torch.cat([torch.randperm(len(prompts), generator=generator) for _ in range(rounds)])[:wanted].tolist()
    rows = [number for number in drawn for _ in range(responses)]
    rows += rows[:1] * max(0, venv.num_envs - len(rows))  # every slot plays at least one
    played = collect(venv, language_model, len(rows), generator=generator, sampling=sampling, prompts=rows)
    found: list[Pair] = []
    dropped = 0
    for place, number in enumerate(drawn):
        own = range(place * responses, (place + 1) * responses)
        different = [list(two) for two in combinations(own, 2) if len({played.texts[row] for row in two}) == 2]
        found += [pair_of(prompts[number], played, two) for two in different]
        dropped += not different
    return SampledPairs(found[:count], dropped)


def responses_once(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs, in their order, of which no two share a response to the same prompt."""
    kept, seen = [], set[tuple[str, str]]()
    for pair in pairs:
        two = {(repr(pair.prompt), text) for text in (pair.a, pair.b)}
        if not two & seen:
            kept.append(pair)
            seen |= two
    return kept
