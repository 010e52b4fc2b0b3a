"""n token episodes side by side: the only place where prefix, scorer and KL meet.

Both environments (`env.TextGenEnv` with one slot, `vector_env.TextGenVectorEnv` with n) are thin wrappers around
`Engine`; spaces, autoreset and the dictionaries of Gymnasium live there. Random generators are handed in: the engine
owns none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from textgen_env.action_masks import ActionRules
from textgen_env.config import EnvConfig, check_room
from textgen_env.episode import Completion, FinishReason, Prefixes, Prompt, StepResult
from textgen_env.kl_penalty import KLPenalty
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.notices import warn_user
from textgen_env.prompts import PromptLike, as_prompt, check_columns, load_prompts
from textgen_env.reward import Reward
from textgen_env.saved_state import engine_state, load_engine_state
from textgen_env.stop_strings import StopStrings
from textgen_env.vocabulary import fits_positions, same_vocabulary, tokenize_prompt

Rows = NDArray[np.int64]


class Engine:
    """Plays n slots of the token MDP.

    Args:
        slots: how many episodes run side by side.
        config: what the MDP is; see `TextGenEnv` for each argument.

    Attributes:
        language_model: whose tokens are the actions; its weights load only when something asks for its logits.
        reward: what the scorer pays.
        kl: the KL penalty, with the reference model.
        prefixes: the states.
        episodes_ended: how many have ended by themselves, in all slots.
        playing: bool (n,); False before a reset and after the end of an episode.
        token_rewards: float64 (n, max_new_tokens); what each token of the running episode earned, for rendering.
        token_ref_log_probs, token_kls: the same for log π_ref and for the KL, in nats; NaN where unknown.
    """

    def __init__(self, slots: int, config: EnvConfig) -> None:
        self.config = config
        self.prompts = load_prompts(config.prompts)
        self.language_model = self._load("model")
        same = config.reference is None or config.reference == config.model
        self.reference = self.language_model if same else self._load("reference")
        same_vocabulary(self.language_model, self.reference)
        if config.kl_coef > 0 or config.reference_top_p < 1 or config.reference_top_k:
            fits_positions(self.reference, config.max_prompt_tokens, config.max_new_tokens)
        self.kl = KLPenalty(
            self.reference,
            slots,
            coef=config.kl_coef,
            estimator=config.kl_estimator,
            temperature=config.temperature,
            top_p=config.reference_top_p,
            top_k=config.reference_top_k,
        )
        self.rules = ActionRules(self.language_model, config.forbidden_tokens, config.min_new_tokens)
        self.stop_strings = StopStrings(config.stop_strings, self.language_model)
        self._eos = np.array(sorted(self.language_model.eos_token_ids), dtype=np.int64)
        check_room(slots, config, self.language_model)
        self.reward = Reward(config.scorer, self.prompts, slots)
        width = config.max_prompt_tokens + config.max_new_tokens
        self.prefixes = Prefixes(slots, width, self.language_model.pad_token_id)
        self.playing = np.zeros(slots, dtype=np.bool_)
        self.current: list[Prompt | None] = [None] * slots
        self.finish_reasons: list[FinishReason | None] = [None] * slots
        self.token_rewards, self.token_ref_log_probs, self.token_kls = (
            np.full((slots, config.max_new_tokens), np.nan) for _ in range(3)
        )
        self._token_ids: dict[Any, list[int]] = {}
        self._warned_of_cut = False
        self.episodes_ended = 0
        self._check_prompts()

    def _load(self, role: str) -> LanguageModel:
        """The model of an argument; errors name that argument."""
        source = getattr(self.config, role)
        if not isinstance(source, (str, Path)):
            return source
        return LanguageModel(source, device=self.config.device, dtype=self.config.dtype, role=role)

    def _check_prompts(self) -> None:
        """Find prompts that the scorer or the tokenizer cannot take before the first episode does.

        Templates refuse conversations for the order of their roles, so that one of each order is written out. Texts are
        looked through only where the tokenizer knows tokens that the model does not.
        """
        every_text = len(self.language_model.tokenizer) > self.language_model.vocab_size
        orders = set()
        for index, prompt in enumerate(self.prompts):
            check_columns(prompt, self.reward.taken, f"prompts[{index}]")
            order = tuple(message["role"] for message in prompt.messages or ())
            if every_text or (order and order not in orders):
                orders.add(order)
                try:
                    tokenize_prompt(self.language_model, prompt, self.config.max_prompt_tokens)
                except ValueError as error:
                    raise ValueError(f"prompts[{index}]: {error}") from error

    # --- starting an episode ------------------------------------------------------------------------------------------

    def named_prompt(self, choice: PromptLike | int) -> Prompt:
        """The prompt that a caller names: a text, a mapping, or an index into the set.

        Raises:
            IndexError, TypeError, ValueError: an index beyond the set, or no prompt; see `as_prompt`.
        """
        if isinstance(choice, (int, np.integer)) and not isinstance(choice, bool):
            if not 0 <= choice < len(self.prompts):
                raise IndexError(f"options['prompt']={choice} is not an index of the {len(self.prompts)} prompts")
            return self.prompts[int(choice)]
        prompt = as_prompt(choice, "options['prompt']")  # type: ignore[arg-type]
        check_columns(prompt, self.reward.taken, "options['prompt']")
        return prompt

    def draw_prompt(self, generator: np.random.Generator) -> Prompt:
        """A prompt drawn uniformly from the set."""
        return self.prompts[int(generator.integers(len(self.prompts)))]

    def start(self, starts: Mapping[int, Prompt]) -> None:
        """Begin new episodes in the given rows; all prompts are tokenised before any row changes."""
        token_ids = {row: self._tokenize(prompt) for row, prompt in starts.items()}
        for row, prompt in starts.items():
            self.prefixes.start(row, token_ids[row])
            self.current[row], self.finish_reasons[row] = prompt, None
            self.playing[row] = True
            self.reward.potentials[row] = 0.0
            for column in self.token_columns:
                column[row] = np.nan

    def _tokenize(self, prompt: Prompt) -> list[int]:
        key = prompt.text if prompt.messages is None else (repr(prompt.messages),)
        if key not in self._token_ids:
            if len(self._token_ids) > 10 * len(self.prompts) + 1000:  # prompts given by hand must not pile up for ever
                self._token_ids.clear()
            limit = self.config.max_prompt_tokens
            self._token_ids[key], excess = tokenize_prompt(self.language_model, prompt, limit)
            if excess and not self._warned_of_cut:
                self._warned_of_cut = True
                warn_user(
                    f"a prompt of {limit + excess} tokens was cut on the left to max_prompt_tokens={limit}: "
                    f"{prompt.text[:60]!r}… (said once for an environment)"
                )
        return self._token_ids[key]

    # --- one token ----------------------------------------------------------------------------------------------------

    def step(self, actions: Any, rows: Rows) -> StepResult:
        """Append one token to each of the given rows.

        Args:
            actions: m integers.
            rows: int64 (m,), distinct; all of them playing.

        Raises:
            ResetNeeded: a row is not playing.
            TypeError: actions that are no integers.
            ValueError: an action out of range or masked, or a KL that is not finite.
            ScorerError: the scorer failed, or its score is too large. As with the others, and with whatever a scorer or
                policy may raise, no row has moved: the step may be taken again.
        """
        if not self.playing[rows].all():
            raise ResetNeeded(f"slot {int(rows[~self.playing[rows]][0])} has no episode running: call reset() first")
        masks = self.action_masks(rows) if self.restricted else None
        actions = self.rules.check(actions, masks)
        price = self.kl.price(self.prefixes, rows, actions, masks)
        potentials = self.reward.potentials[rows]
        self.prefixes.append(rows, actions)
        try:
            reasons = self._finish_reasons(actions, rows)
            completions = self._completions(rows, reasons)
            parts = self.reward.parts(rows, completions)
            if price.reward is not None:
                parts["kl"] = price.reward
            rewards = self.reward.total(rows, parts)
            self._remember(rows, rewards, price.ref_log_prob, price.kl)
            ended = np.array([reason is not None for reason in reasons], dtype=np.bool_)
            endings = {int(at): self._ending(int(rows[at]), completions[int(rows[at])]) for at in np.flatnonzero(ended)}
        except BaseException:
            self.reward.potentials[rows] = potentials
            self.prefixes.undo(rows)
            raise
        for at in endings:
            self.finish_reasons[rows[at]] = reasons[at]
        self.playing[rows[ended]] = False
        self.episodes_ended += len(endings)
        cut = np.array([reason is FinishReason.LENGTH for reason in reasons], dtype=np.bool_)
        truncated = cut if self.config.length_limit == "truncate" else np.zeros_like(cut)
        return StepResult(rewards, ended & ~truncated, truncated, parts, price.ref_log_prob, endings)

    def _finish_reasons(self, actions: NDArray[np.int64], rows: Rows) -> list[FinishReason | None]:
        """Why each row ends with the action just appended, or None: EOS before a stop string before the limit."""
        is_eos = (actions[:, None] == self._eos).any(axis=1)
        at_limit = self.prefixes.response_lengths[rows] >= self.config.max_new_tokens
        reasons: list[FinishReason | None] = [None] * len(rows)
        for at in np.flatnonzero(at_limit).tolist():
            reasons[at] = FinishReason.LENGTH
        if self.stop_strings:
            for at, row in enumerate(rows.tolist()):
                if self.stop_strings.reached(*self.prefixes.halves(row)):
                    reasons[at] = FinishReason.STOP
        for at in np.flatnonzero(is_eos).tolist():
            reasons[at] = FinishReason.EOS
        return reasons

    def _completions(self, rows: Rows, reasons: Sequence[FinishReason | None]) -> dict[int, Completion]:
        """The responses that are to be scored in this step, by row."""
        asked = ((row, reason) for row, reason in zip(rows.tolist(), reasons, strict=True))
        return {row: self._completion(row, reason) for row, reason in asked if self.reward.dense or reason is not None}

    def _completion(self, row: int, reason: FinishReason | None) -> Completion:
        prompt_ids, token_ids = self.prefixes.halves(row)
        text = self.stop_strings.text(prompt_ids, token_ids)
        prompt = self.current[row]
        assert prompt is not None  # the row is playing
        return Completion(prompt, text, tuple(token_ids), reason)

    def _remember(
        self,
        rows: Rows,
        rewards: NDArray[np.float64],
        ref_log_probs: NDArray[np.float64] | None,
        kls: NDArray[np.float64] | None,
    ) -> None:
        columns = self.prefixes.response_lengths[rows] - 1
        self.token_rewards[rows, columns] = rewards
        if ref_log_probs is not None:
            self.token_ref_log_probs[rows, columns] = ref_log_probs
        if kls is not None:
            self.token_kls[rows, columns] = kls

    def _ending(self, row: int, completion: Completion) -> dict[str, Any]:
        """The `info` of an episode's end: plain texts and numbers, nothing of vocabulary size."""
        assert completion.finish_reason is not None
        length = len(completion.token_ids)
        info: dict[str, Any] = {
            "text": completion.text,
            "prompt": completion.prompt.text,
            "finish_reason": completion.finish_reason.value,
            "score": self.reward.score(row),
            "response_length": length,
        }
        for name, values in (("ref_logprob_sum", self.token_ref_log_probs), ("kl_sum", self.token_kls)):
            if not np.isnan(values[row, :length]).any():
                info[name] = float(values[row, :length].sum())
        if (counters := self.reward.counters()) is not None:
            info["scorer_info"] = counters
        return info

    # --- actions and policies -----------------------------------------------------------------------------------------

    @property
    def restricted(self) -> bool:
        """Whether any action can be masked at all."""
        return self.rules.restrict or self.kl.masks

    def action_masks(self, rows: Rows) -> NDArray[np.bool_]:
        """bool (m, V), True where an action is allowed at the given rows. Computed on demand."""
        masks = self.rules.masks(self.prefixes.response_lengths[rows])
        if self.kl.masks:
            masks = self.kl.likely(self.prefixes, rows, masks)
        return masks

    def bind_policy(self, policy: Callable[..., Any] | LanguageModel | PrefixCache | None, *, batched: bool) -> None:
        """Let the reward pay the exact KL of a policy: a function, a language model or its cache; None unbinds."""
        self.kl.bind(policy, batched=batched)

    def delegate_kl(self, *, report_ref_logprob: bool = True) -> None:
        """Leave the KL to the caller: rewards carry none; `info` has log π_ref if it is to be reported."""
        self.kl.policy, self.kl.delegated, self.kl.report = None, True, report_ref_logprob

    # --- keeping and releasing ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight and the scorer's running statistics, as plain JSON values."""
        return engine_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TypeError, ValueError: the state is not one of an engine like this; nothing has changed.
        """
        load_engine_state(self, state)

    @property
    def token_columns(self) -> tuple[NDArray[np.float64], ...]:
        """What is kept of each token of the running episodes: rewards, log π_ref, KL."""
        return self.token_rewards, self.token_ref_log_probs, self.token_kls

    def close(self) -> None:
        """Release the caches of the models; may be called twice, and stepping afterwards builds them anew."""
        self.kl.release()
