"""Pairs that part where an ensemble of reward models disagrees: two continuations of one beginning.

What lives here: which token of a response the members disagree about most, and the pairs that begin in front of it.
What does not: pairs of whole responses (``labellers.py``), what an ensemble is (``../reward_model.py``).

Both responses of such a pair are the same up to a token, so that a choice between them is about what comes from there
on, where the reward model is least sure what a token is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import PLAIN, SamplingParams
from textgen_env.lm.token_text import TokenText
from textgen_env.prompts import prompt_as_dict

from ..rollout import collect
from .labellers import SampledPairs, draw_prompts, sample_twice
from .pairs import Pair

Differences = Callable[[Sequence[Pair]], Tensor]
"""From N pairs to (members, N) r_a − r_b."""


@dataclass(frozen=True)
class Branch:
    """Where a response is to be begun anew.

    Attributes:
        prompt: the number of its prompt.
        beginning: the tokens that both continuations have in common.
        shared: their text.
        disagreement: about the token that came next: standard deviation, over the members, of what it adds to the
            reward.
    """

    prompt: int
    beginning: list[int]
    shared: str
    disagreement: float


def sample_branches(
    venv: VectorEnv,
    language_model: LanguageModel,
    count: int,
    differences: Differences,
    *,
    candidates: int = 4,
    generator: torch.Generator,
    sampling: SamplingParams = PLAIN,
    attempts: int = 4,
) -> SampledPairs:
    """Two continuations of each of ``count`` beginnings, whose next token the ensemble disagrees about most.

    Responses to ``count · candidates`` prompts are sampled first; of those where the members disagree most about any
    one token, everything in front of that token is kept, and continued twice.

    Args:
        venv: see `sample_pairs`; it must take responses that are begun.
        language_model: whose responses.
        count: how many pairs.
        differences: of an ensemble, see `choose_by_disagreement`.
        candidates: responses per pair, of which disagreement chooses.
        generator: source of prompts and responses.
        sampling: how responses are sampled.
        attempts: draws per beginning, after which it is dropped and counted.

    Returns:
        As `sample_pairs`, with a column "shared": the text that both responses begin with by design.

    Raises:
        ValueError: ``count``, ``candidates`` or ``attempts`` is below 1; see also `collect`.
    """
    if min(count, candidates, attempts) < 1:
        raise ValueError(f"count={count}, candidates={candidates} and attempts={attempts} must be at least 1")
    drawn = draw_prompts(venv, max(count * candidates, venv.num_envs), generator)
    found = find_branches(venv, language_model, drawn, differences, generator=generator, sampling=sampling)
    chosen = sorted(found, key=lambda branch: -branch.disagreement)[:count]
    if not chosen:
        return SampledPairs([], count)
    pairs = sample_twice(
        venv,
        language_model,
        [branch.prompt for branch in chosen],
        [branch.beginning for branch in chosen],
        generator=generator,
        sampling=sampling,
        attempts=attempts,
    )
    kept = [
        replace(pair, columns={**pair.columns, "shared": branch.shared})
        for pair, branch in zip(pairs, chosen, strict=True)
        if pair is not None
    ]
    return SampledPairs(kept, count - len(kept))


def find_branches(
    venv: VectorEnv,
    language_model: LanguageModel,
    drawn: Sequence[int],
    differences: Differences,
    *,
    generator: torch.Generator,
    sampling: SamplingParams = PLAIN,
) -> list[Branch]:
    """One response to each of some prompts, and the token of it that the members disagree about most.

    A token's worth is r(up to and with it) − r(up to it), of each member. Tokens that add no text of their own (EOS,
    parts of characters) are no place to branch.

    Args:
        venv, language_model, differences, generator, sampling: see `sample_branches`.
        drawn: numbers of the prompts, at least as many as there are slots.
    """
    played = collect(venv, language_model, len(drawn), generator=generator, sampling=sampling, prompts=list(drawn))
    prompts = cast(Any, venv.unwrapped).prompts
    text, branches, pairs = TokenText(language_model.tokenizer), list[Branch](), list[Pair]()
    for row, prompt in enumerate(drawn):
        before, after = _split(played.tokens.rows(torch.tensor([row])))
        begun = ""
        for start, piece in enumerate(text.pieces(before, after)):
            if piece:
                pairs.append(_step(prompts[prompt], begun, begun + piece))
                branches.append(Branch(row, after[:start], begun, 0.0))
            begun += piece
    if not pairs:
        return []
    disagreement = differences(pairs).double().std(dim=0, correction=0).tolist()
    best: dict[int, Branch] = {}
    for branch, value in zip(branches, disagreement, strict=True):
        row = branch.prompt  # until here the number of the response: a prompt may have several
        if row not in best or value > best[row].disagreement:
            best[row] = replace(branch, disagreement=value)
    return [replace(branch, prompt=drawn[row]) for row, branch in best.items()]


def _split(tokens: Any) -> tuple[list[int], list[int]]:
    """The tokens of a prompt and of the response to it."""
    ids, there, written = tokens.input_ids[0], tokens.attention_mask[0].bool(), tokens.response_mask[0].bool()
    return ids[there & ~written].tolist(), ids[written].tolist()


def _step(prompt: Any, before: str, after: str) -> Pair:
    """What a token adds, as a pair: a has it, b has not."""
    row = prompt_as_dict(prompt)
    text = row.pop("prompt")
    row.setdefault("references", [])
    return Pair(text, after, before, columns={**row, "ended": [False, False]})
