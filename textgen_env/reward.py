"""What responses are paid by the scorer: the growth of its parts, asked for once per step, and checked.

The KL penalty is `kl_penalty.py`'s, when episodes end the engine's to say, and what a scorer is stands in `scorers/`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.episode import Completion, FinishReason, Prompt
from textgen_env.notices import shown
from textgen_env.scorers import ScorerError, as_scorer, get_scorer, scorer_name
from textgen_env.scorers.base import score_parts
from textgen_env.scorers.columns import taken_names
from textgen_env.scorers.policy_view import PolicyView
from textgen_env.vocabulary import same_vocabulary

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel


class BoundPolicy:
    """Whose weights a scorer sees: shared by copies, which play side by side; left behind by pickles, whose weights
    would not learn.
    """

    def __init__(self, language_model: LanguageModel | None = None) -> None:
        self.language_model = language_model

    def __deepcopy__(self, memo: Any) -> BoundPolicy:
        return BoundPolicy(self.language_model)

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundPolicy, ()


class Reward:
    """The scorer of n episodes. It is a potential Φ that pays its growth, with Φ = 0 at the start.

    A scorer that is not dense is asked only at the end, so that the growth is its score.

    Args:
        scorer: a name, a mapping or a callable, see `get_scorer`; its models are loaded.
        prompts: whose references it may fit itself to (CIDEr's document frequencies).
        language_model: whose tokens a policy that is bound must have.
        temperature: of the policy.
        turns: whether an environment answers back, which scorers are shown as `turns`.

    Attributes:
        scorer: as it was given, or made of what was given.
        bound: the same with everything that scorers may have.
        part_names: of what the score is the sum.
        taken: the names of columns that the scorer cannot be handed.
        policy: what a scorer that sees the policy sees.

    Raises:
        ValueError: the scorer has a part named "kl", or with turns "environment".
    """

    def __init__(
        self,
        scorer: Any,
        prompts: Sequence[Prompt],
        language_model: LanguageModel | None = None,
        temperature: float = 1.0,
        *,
        turns: bool = False,
    ) -> None:
        self.scorer = get_scorer(scorer)
        self.bound = as_scorer(self.scorer, part_name="score")
        self.bound.load_models()
        self.bound.fit_references([prompt.references for prompt in prompts])
        self.part_names = self.bound.part_names
        if "kl" in self.part_names:
            raise ValueError(f"scorer {scorer!r} has a part named 'kl', which is the KL penalty's name")
        if turns and "environment" in self.part_names:
            raise ValueError(f"scorer {scorer!r} has a part named 'environment', which is what the responder pays")
        self.taken = taken_names(self.scorer) | ({"turns"} if turns else set())
        self.taken |= {"policy"} if self.needs_policy else set()
        self.policy, self._language_model, self._temperature = BoundPolicy(), language_model, temperature

    @property
    def dense(self) -> bool:
        """Whether the scorer is asked after every token."""
        return self.bound.dense

    # --- the policy, where the scorer sees it -------------------------------------------------------------------------

    @property
    def needs_policy(self) -> bool:
        """Whether the scorer is handed a view of the policy."""
        return self.bound.needs_policy

    def check_policy(self) -> None:
        """See that there is a policy, if the scorer needs one.

        Raises:
            RuntimeError: there is none.
        """
        if self.needs_policy and self.policy.language_model is None:
            raise RuntimeError(
                f"scorer {scorer_name(self.scorer)!r} sees the policy, and none is bound: trainers bind theirs while "
                "they play; in a loop of one's own call env.unwrapped.bind_policy(language_model) before reset(). "
                "Copies in other processes have none: use the vector environment of gym.make_vec, not AsyncVectorEnv"
            )

    def readable(self, policy: Any) -> LanguageModel | None:
        """The policy as the scorer can see it; None where it sees none.

        Raises:
            TypeError: it sees one, and this is no language model.
            ValueError: of another vocabulary.
            RuntimeError: this is a worker process, whose copy of the weights does not learn.
        """
        if not self.needs_policy or policy is None:
            return None
        if not hasattr(policy, "encode_behind"):
            raise TypeError(
                f"policy={shown(policy)} must be a LanguageModel: scorer {scorer_name(self.scorer)!r} asks it for "
                "texts that could follow, which no function of the observation tells"
            )
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                f"scorer {scorer_name(self.scorer)!r} sees the policy, and in a worker process its weights are a copy "
                "that does not learn: use the vector environment of gym.make_vec, not AsyncVectorEnv"
            )
        if self._language_model is not None:
            same_vocabulary(self._language_model, policy, "policy")
        return policy  # type: ignore[no-any-return]

    @contextmanager
    def seeing(self, policy: LanguageModel) -> Iterator[None]:
        """The scorer sees this policy for as long as the context lasts."""
        before, self.policy.language_model = self.policy.language_model, self.readable(policy)
        try:
            yield
        finally:
            self.policy.language_model = before

    # --- what is paid -------------------------------------------------------------------------------------------------

    def parts(
        self, potentials: NDArray[np.float64], completions: Mapping[int, Completion]
    ) -> dict[str, NDArray[np.float64]]:
        """What each slot is paid in this step, by part: float64 (n,); 0 where the scorer is not asked.

        Args:
            potentials: float64 (n, parts), Φ so far; those of the slots that are asked for move.
            completions: what is to be scored, by slot.

        Raises:
            ScorerError: the scorer failed.
        """
        parts = {name: np.zeros(len(potentials)) for name in self.part_names}
        if not completions:
            return parts
        slots, scored = list(completions), self._ask(list(completions.values()))
        for index, name in enumerate(self.part_names):
            values = np.asarray(scored[name], dtype=np.float64)
            with np.errstate(over="ignore"):  # a growth that overflows is told by `total`
                parts[name][slots] = values - potentials[slots, index]
            potentials[slots, index] = values
        return parts

    def total(self, parts: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The rewards: what all parts add up to, one finite number per slot, float64 (n,).

        Raises:
            ScorerError: a sum is not finite.
        """
        # Python's sum, as a reader of `reward_parts` would take it: newer Pythons round it better than numpy does.
        rewards = np.array([sum(values) for values in zip(*(part.tolist() for part in parts.values()), strict=True)])
        if not np.isfinite(rewards).all():
            slot = int(np.isfinite(rewards).argmin())
            named = {name: float(part[slot]) for name, part in parts.items()}
            raise ScorerError(
                f"scorer {scorer_name(self.scorer)!r}: slot {slot} would be paid {rewards[slot]}, the sum of {named}"
                "; a reward is a finite number: scale the scores down"
            )
        return rewards

    def score(self, paid: Sequence[float], slot: int) -> float:
        """The score of a slot's episode so far: the sum of its potentials and of what its environment has paid.

        Raises:
            ScorerError: it is not finite.
        """
        score = float(sum(paid))
        if not np.isfinite(score):
            raise ScorerError(f"scorer {scorer_name(self.scorer)!r}: slot {slot} has the score {score}; scale it down")
        return score

    def counters(self) -> dict[str, float] | None:
        """What the scorer counts, as plain numbers; None if it counts nothing.

        Raises:
            ScorerError: they are no numbers.
        """
        return self.bound.info() or None

    def _ask(self, completions: Sequence[Completion]) -> dict[str, list[float]]:
        """All completions in one call, with every column that any of their prompts has as a keyword argument."""
        columns = {key for completion in completions for key in completion.prompt.extra}
        extra: dict[str, Any] = {key: [one.prompt.extra.get(key) for one in completions] for key in columns}
        if any(completion.prompt.messages for completion in completions):
            extra["messages"] = [_messages(completion.prompt) for completion in completions]
        extra["completion_ids"] = [list(completion.token_ids) for completion in completions]
        if any(completion.turns is not None for completion in completions):
            extra["turns"] = [[dict(turn) for turn in completion.turns or ()] for completion in completions]
        if self.needs_policy:
            extra["policy"] = self._view(completions)
        extra["finish_reasons"] = [c.finish_reason.value if c.finish_reason else None for c in completions]
        scored = score_parts(
            self.bound,
            [completion.text for completion in completions],
            prompts=[completion.prompt.text for completion in completions],
            references=[list(completion.prompt.references) for completion in completions],
            default_name=None,
            **extra,
        )
        if tuple(scored) != self.part_names:
            raise ValueError(f"scorer {self.scorer!r} returned parts {tuple(scored)}, expected {self.part_names}")
        return scored

    def _view(self, completions: Sequence[Completion]) -> PolicyView:
        self.check_policy()
        assert self.policy.language_model is not None
        ended = [completion.finish_reason is FinishReason.EOS for completion in completions]
        token_ids = [completion.input_ids for completion in completions]
        return PolicyView(self.policy.language_model, token_ids, ended, self._temperature)


def unscored(completions: Sequence[str], **_: Any) -> list[float]:
    """The scorer of an environment that pays by itself."""
    return [0.0] * len(completions)


def _messages(prompt: Prompt) -> Any:
    """What a scorer gets as `messages`: the conversation, or a text's column of that name."""
    if prompt.messages is None:
        return prompt.extra.get("messages")
    return [dict(message) for message in prompt.messages]
