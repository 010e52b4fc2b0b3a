"""What there is to choose in each state: lists of texts, their tokens, which are allowed, and how likely each is.

The wrappers that make actions of them are in `options.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from textgen_env.config import check_integer
from textgen_env.engine import Engine
from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams, warp_logits
from textgen_env.notices import shown
from textgen_env.vocabulary import same_vocabulary
from textgen_env.wrappers.text_actions import Writer


@dataclass(frozen=True, slots=True)
class Situation:
    """Where an option is to be chosen.

    Attributes:
        slot: the number of the slot, 0 in a single environment.
        prompt: what the episode began with, with its further columns.
        response: what agent and environment have said behind it so far.
    """

    slot: int
    prompt: Prompt
    response: str


OptionSource: TypeAlias = "Sequence[str] | str | Callable[[Situation], Sequence[str]]"


class Menu:
    """What can be chosen in each slot, as texts, tokens and log-probabilities.

    Args:
        env: of this package, with nothing between that changes steps.
        options, count, append_eos: see `Options`.

    Attributes:
        size: n.

    Raises:
        TypeError, ValueError: an argument that is none.
    """

    def __init__(self, env: Any, options: OptionSource, count: int | None, append_eos: bool) -> None:
        self._writer = Writer(env, (), append_eos)
        self._engine: Engine = env.unwrapped.engine
        self._options = options if isinstance(options, str) or callable(options) else _checked(options, "options")
        self.size = self._count() if count is None else check_integer("count", count, minimum=1)
        self._known: dict[int, tuple[bytes, list[str], list[list[int]]]] = {}  # by slot: prefix, texts, tokens
        self._caches: list[tuple[LanguageModel, Any]] = []  # of the models that were asked last, two at most

    def _count(self) -> int:
        if callable(self._options):
            raise ValueError("options is a function, of whose lists count= must say how long they are at most")
        if isinstance(self._options, str):
            return max(len(self._listed(prompt, f"prompts[{i}]")) for i, prompt in enumerate(self._engine.prompts))
        return len(self._options)

    def _listed(self, prompt: Prompt, where: str) -> list[str]:
        column = str(self._options)
        if column not in prompt.extra:
            raise ValueError(f"options={column!r}: {where} has no such column, only {sorted(prompt.extra)}")
        return _checked(prompt.extra[column], f"{where}, column {column!r}")

    def forget(self) -> None:
        """New episodes may have begun: functions are asked anew."""
        self._known.clear()

    def texts(self, slot: int) -> list[str]:
        """The texts in a slot that plays, or played last."""
        return self._state(slot)[1]

    def _state(self, slot: int) -> tuple[bytes, list[str], list[list[int]]]:
        episodes = self._engine.episodes
        prefix = episodes.input_ids[slot, : episodes.lengths[slot]].tobytes()
        if slot not in self._known or self._known[slot][0] != prefix:
            texts = self._asked(slot)
            self._known[slot] = prefix, texts, [self._writer.tokens(slot, text) for text in texts]
        return self._known[slot]

    def _asked(self, slot: int) -> list[str]:
        prompt = self._engine.episodes.prompts[slot]
        if prompt is None:
            raise ResetNeeded(f"slot {slot} has no episode, and so no options: call reset() first")
        if isinstance(self._options, list):
            return self._options
        if isinstance(self._options, str):
            texts, where = self._listed(prompt, "the prompt"), f"column {self._options!r}"
        else:
            where = "options(…)"
            said = self._writer.observation(slot)["response"]
            texts = _checked(self._options(Situation(slot, prompt, said)), where)  # type: ignore[operator]
        if len(texts) > self.size:
            raise ValueError(f"{where} holds {len(texts)} options for slot {slot}, more than count={self.size}")
        return texts

    def masks(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (m, n); all True where no episode plays. What the reference masks needs its log-probs."""
        if not self._engine.kl.masks:
            return self._ruled(rows)
        log_probs = self.log_probs(rows, None, per_token=False)
        return np.isfinite(log_probs)

    def _ruled(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (m, n): the options that exist, without forbidden tokens."""
        masks = np.ones((len(rows), self.size), dtype=np.bool_)
        for at in np.flatnonzero(self._engine.episodes.playing[rows]):
            allowed = [self._allowed(int(rows[at]), tokens) for tokens in self._state(int(rows[at]))[2]]
            masks[at] = np.pad(allowed, (0, self.size - len(allowed)))
        return masks

    def _allowed(self, slot: int, tokens: Sequence[int]) -> bool:
        """Whether no token is forbidden, and no EOS comes too early."""
        if not self._engine.rules.restrict:
            return True
        written = int(self._engine.episodes.response_lengths[slot])
        masks = self._engine.rules.masks(written + np.arange(len(tokens)))
        return bool(masks[np.arange(len(tokens)), tokens].all())

    def tokens(self, slot: int, action: int) -> list[int]:
        """What writes an option.

        Raises:
            ValueError: it is out of range, or masked.
        """
        if not 0 <= action < self.size:
            raise ValueError(f"action {action} is not in Discrete({self.size})")
        _, texts, tokens = self._state(slot)
        if action >= len(texts):
            raise ValueError(f"action {action} is masked: slot {slot} has {len(texts)} options; see action_masks()")
        if not self.masks(np.array([slot]))[0, action]:
            raise ValueError(f"action {action} is masked: {texts[action]!r} has a token that is forbidden here")
        return tokens[action]

    def log_probs(self, rows: NDArray[np.int64], model: LanguageModel | None, per_token: bool) -> NDArray[np.float64]:
        """float64 (m, n), see `Options.option_log_probs`; 0 where no episode plays."""
        episodes, cache = self._engine.episodes, self._cache(self._engine.reference if model is None else model)
        result = np.where(self._ruled(rows), 0.0, -np.inf)
        left = {
            (at, choice): self._state(int(rows[at]))[2][choice]
            for at, choice in np.argwhere((result == 0) & episodes.playing[rows, None]).tolist()
        }
        for depth in range(max(map(len, left.values()), default=0)):
            left = {place: tokens for place, tokens in left.items() if len(tokens) > depth}
            slots = np.array([rows[at] for at, _ in left])
            log_probs = self._next(cache, slots, [choice for _, choice in left], list(left.values()), depth)
            for place, log_prob in zip(left, log_probs, strict=True):
                result[place] += log_prob
        if per_token:
            for at in np.flatnonzero(episodes.playing[rows]):
                lengths = [len(tokens) for tokens in self._state(int(rows[at]))[2]]
                result[at, : len(lengths)] /= lengths
        return result

    def _next(
        self, cache: Any, slots: NDArray[np.int64], choices: list[int], options: list[list[int]], depth: int
    ) -> NDArray[np.float64]:
        """log p (m,) of token `depth` of m options, given the prefix and what comes before it in the option."""
        logits = self._logits(cache, slots, choices, options, depth)
        rules, kl, lengths = self._engine.rules, self._engine.kl, self._engine.episodes.response_lengths[slots] + depth
        allowed = rules.masks(lengths) if rules.restrict else None
        if kl.masks:
            reference = self._cache(self._engine.reference)
            ref_logits = logits if cache is reference else self._logits(reference, slots, choices, options, depth)
            allowed = kl.inside(ref_logits, slots, allowed)
        mask = None if allowed is None else torch.from_numpy(allowed)
        warped = warp_logits(logits, SamplingParams(self._engine.config.temperature), mask=mask).double()
        tokens = torch.tensor([option[depth] for option in options], device=warped.device)
        return warped.log_softmax(-1).gather(1, tokens[:, None])[:, 0].cpu().numpy()

    def _logits(
        self, cache: Any, slots: NDArray[np.int64], choices: list[int], options: list[list[int]], depth: int
    ) -> torch.Tensor:
        """Raw logits (m, V) behind the prefix and the first `depth` tokens of m options."""
        episodes, n = self._engine.episodes, len(self._engine.episodes)
        lengths = episodes.lengths[slots] + depth
        ids = np.zeros((len(slots), int(lengths.max())), dtype=np.int64)
        for row, (slot, option) in enumerate(zip(slots.tolist(), options, strict=True)):
            ids[row, : lengths[row]] = [*episodes.input_ids[slot, : episodes.lengths[slot]], *option[:depth]]
        if depth:  # a row of its own, which takes over the prefix from the row of its slot
            return cache.next_logits(ids, lengths, n + slots * self.size + np.array(choices))
        _, first, back = np.unique(slots, return_index=True, return_inverse=True)
        return cache.next_logits(ids[first], lengths[first], slots[first])[torch.from_numpy(back)]

    def _cache(self, model: Any) -> Any:
        """The memory of a model: a row per slot for its prefix, and one for each option behind it."""
        if not isinstance(model, LanguageModel):
            raise TypeError(f"model={shown(model)} must be a LanguageModel, not {type(model).__name__}")
        for known, cache in self._caches:
            if known is model:
                return cache
        same_vocabulary(self._engine.language_model, model, role="model")
        cache = model.prefix_cache(len(self._engine.episodes) * (1 + self.size))
        kept = [pair for pair in self._caches if pair[0] is self._engine.reference]
        self._caches = [*kept, (model, cache)]
        return cache


def _checked(options: Any, where: str) -> list[str]:
    """Texts to choose from, at least one."""
    if isinstance(options, (str, bytes)) or not isinstance(options, Sequence):
        raise TypeError(f"{where}={shown(options)} must be a list of texts, not {type(options).__name__}")
    for text in options:
        if not isinstance(text, str):
            raise TypeError(f"{where} holds {shown(text)}; options are texts")
    if not options:
        raise ValueError(f"{where} is empty; there must be something to choose from")
    return list(options)
