"""n token episodes side by side: the only place where prefix, scorer and KL meet.

Both environments (`env.TextGenEnv` with one slot, `vector_env.TextGenVectorEnv` with n) are thin wrappers around
`Engine`; spaces, autoreset and the dictionaries of Gymnasium live there. Random generators are handed in: the engine
owns none.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from textgen_env.action_masks import ActionRules
from textgen_env.config import EnvConfig, check_room
from textgen_env.episode import Completion, Episodes, FinishReason, Prompt, StepResult, as_turns
from textgen_env.kl_penalty import KLPenalty, Price
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.prompts import load_prompts
from textgen_env.reward import Reward, unscored
from textgen_env.saved_state import clone_slot, engine_state, load_engine_state, made_with, restore_slot
from textgen_env.starts import Starts
from textgen_env.stop_strings import StopStrings
from textgen_env.turns import Answer, Turns
from textgen_env.vocabulary import fits_positions, same_vocabulary

Slots = NDArray[np.int64]


class Engine:
    """Plays n slots of the token MDP.

    Args:
        slots: how many episodes run side by side.
        config: what the MDP is; see `TextGenEnv` for each argument.

    Attributes:
        language_model: whose tokens are the actions; its weights load only when something asks for its logits.
        reward: what the scorer pays.
        turns: the environment that answers back, if there is one.
        kl: the KL penalty, with the reference model.
        starts: what episodes can begin with.
        episodes: the states.
        episodes_ended: how many have ended by themselves, in all slots.
    """

    def __init__(self, slots: int, config: EnvConfig) -> None:
        self.config = config
        self.prompts = load_prompts(config.prompts)
        self.language_model = self._load("model")
        same = config.reference is None or config.reference == config.model
        self.reference = self.language_model if same else self._load("reference")
        same_vocabulary(self.language_model, self.reference)
        if config.kl_coef > 0 or config.reference_top_p < 1 or config.reference_top_k:
            fits_positions(self.reference, config.max_prompt_tokens, config.max_new_tokens, config.reply_tokens)
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
        self.turns = None if config.responder is None else Turns(config, self.language_model, self.stop_strings)
        self._eos = np.array(sorted(self.language_model.eos_token_ids), dtype=np.int64)
        check_room(slots, config, self.language_model)
        scorer, turns = config.scorer or unscored, self.turns is not None
        self.reward = Reward(scorer, self.prompts, self.language_model, config.temperature, turns=turns)
        parts = len(self.reward.part_names)
        self.episodes = Episodes(slots, config.width, self.language_model.pad_token_id, parts)
        self.starts = Starts(config, self.prompts, self.language_model, self.reward.taken, self.turns)
        self.episodes_ended = 0

    def _load(self, role: str) -> LanguageModel:
        """The model of an argument; errors name that argument."""
        source = getattr(self.config, role)
        if not isinstance(source, (str, Path)):
            return source
        return LanguageModel(source, device=self.config.device, dtype=self.config.dtype, role=role)

    # --- starting an episode ------------------------------------------------------------------------------------------

    def start(
        self,
        starts: Mapping[int, Prompt],
        generators: Sequence[np.random.Generator],
        responses: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Begin new episodes in the given slots; all prompts are tokenised before any slot changes.

        Args:
            starts: the prompts by slot.
            generators: n, one per slot, from which an environment that answers back gets its seeds.
            responses: tokens that the agent is to have written already, by slot.

        Raises:
            ValueError: a response is masked somewhere, or ends its episode; nothing has changed.
        """
        if responses:
            before = {slot: clone_slot(self, slot) for slot in starts}, self.episodes_ended
            try:
                self.start(starts, generators)
                self._go_on(responses)
            except BaseException:
                self.episodes_ended = before[1]
                for slot, state in before[0].items():
                    restore_slot(self, slot, state)
                raise
            return
        token_ids = {slot: self.starts.tokenize(prompt) for slot, prompt in starts.items()}
        openings: dict[int, Answer] = {}
        if self.turns is not None:
            seeds = [int(generators[slot].integers(2**63 - 1)) for slot in starts]
            openings = self.turns.openings(starts, seeds)
        for slot, prompt in starts.items():
            opening = openings.get(slot, Answer())
            self.episodes.start(slot, prompt, token_ids[slot], opening.token_ids, opening.text)

    def _go_on(self, responses: Mapping[int, Sequence[int]]) -> None:
        """Let the agent have written these tokens: a step for each, without the KL."""
        actions = np.zeros(len(self.episodes), dtype=np.int64)
        with self.kl.delegating(report=False):
            for at in range(max(map(len, responses.values()))):
                active = np.zeros(len(self.episodes), dtype=np.bool_)
                for slot, tokens in responses.items():
                    if at < len(tokens):
                        active[slot], actions[slot] = True, tokens[at]
                for slot, ending in self.step(actions, active).endings.items():
                    raise ValueError(
                        f"options['response'] ends the episode of slot {slot} with its token {at} "
                        f"({ending['finish_reason']}): leave off what comes from there on"
                    )

    # --- one token ----------------------------------------------------------------------------------------------------

    def step(self, actions: Any, active: NDArray[np.bool_]) -> StepResult:
        """Append one token to each active slot.

        Args:
            actions: n integers; those of slots that are not active are not looked at.
            active: bool (n,); all of these slots play.

        Raises:
            ResetNeeded: a slot is not playing.
            TypeError: actions that are no integers.
            ValueError: an action out of range or masked, or a KL that is not finite.
            TypeError, ValueError: what the environment answered is no reply.
            ScorerError: the scorer failed, or its score is too large. As with the others, and with whatever a scorer or
                policy may raise, no slot has moved: the step may be taken again.
        """
        slots = self.playing(active)
        masks = self.action_masks(slots) if self.restricted else None
        actions = self.rules.check(actions, slots, masks)
        if self.turns is not None:
            self.turns.check(self.episodes, slots, actions)
        price = self.kl.price(self.episodes, slots, actions, masks)
        before = self.episodes.snapshot(slots)
        try:
            self.episodes.append(slots, actions[slots], by_agent=True)
            reasons = self._finish_reasons(slots, actions)
            answers = {} if self.turns is None else self.turns.reply(self.episodes, slots, reasons)
            completions = self._completions(slots, reasons)
            parts = self._parts(completions, answers, price)
            rewards = self.reward.total(parts)
            self._record(slots, before.lengths, rewards, price)
            endings = {slot: self._ending(slot, completions[slot]) for slot in sorted(reasons)}
        except BaseException:
            self.episodes.restore(slots, before)
            raise
        replies = {slot: answer.info for slot, answer in answers.items()}
        return StepResult(rewards, *self._end(reasons, replies), parts, price.ref_log_prob, endings, replies)

    def playing(self, active: NDArray[np.bool_]) -> Slots:
        """The active slots, int64 (m,), all of which play.

        Raises:
            ResetNeeded: one does not.
        """
        slots = np.flatnonzero(active)
        if not self.episodes.playing[slots].all():
            waiting = int(slots[~self.episodes.playing[slots]][0])
            raise ResetNeeded(f"slot {waiting} has no episode running: call reset() first")
        return slots

    def _finish_reasons(self, slots: Slots, actions: NDArray[np.int64]) -> dict[int, FinishReason]:
        """Why slots end with the action just appended, by slot: EOS before a stop string before the limit."""
        at_limit = self.episodes.response_lengths[slots] >= self.config.max_new_tokens
        reasons = dict.fromkeys(slots[at_limit].tolist(), FinishReason.LENGTH)
        if self.stop_strings:
            stopped = [slot for slot in slots.tolist() if self.stop_strings.reached(*self.episodes.present_turn(slot))]
            reasons |= dict.fromkeys(stopped, FinishReason.STOP)
        is_eos = (actions[slots, None] == self._eos).any(axis=1)
        reasons |= dict.fromkeys(slots[is_eos].tolist(), FinishReason.EOS)
        return reasons

    def ends_turn(self, before: Sequence[int], turn: Sequence[int]) -> bool:
        """Whether the last of these tokens ends a turn of the agent's that follows others, the length limit aside."""
        ends = [self.stop_strings, *([] if self.turns is None else [self.turns.turn_strings])]
        return turn[-1] in self._eos or any(strings and strings.reached(before, turn) for strings in ends)

    def _completions(self, slots: Slots, reasons: Mapping[int, FinishReason]) -> dict[int, Completion]:
        """The responses that are to be scored in this step, by slot."""
        asked = slots.tolist() if self.reward.dense else sorted(reasons)
        return {slot: self.completion(slot, reasons.get(slot)) for slot in asked}

    def completion(self, slot: int, reason: FinishReason | None = None) -> Completion:
        """What the agent has written in a slot's episode so far."""
        episodes = self.episodes
        ids, prompt = episodes.input_ids[slot, : episodes.lengths[slot]].tolist(), episodes.prompts[slot]
        assert prompt is not None  # the slot is playing
        texts = [self.stop_strings.text(ids[:start], ids[start:end]) for start, end in episodes.turns(slot)]
        turns = None if self.turns is None else as_turns(episodes.environment_texts[slot], texts)
        seen = tuple(ids) if self.reward.needs_policy else ()
        return Completion(prompt, "".join(texts), tuple(episodes.response(slot).tolist()), reason, turns, seen)

    def _parts(
        self, completions: Mapping[int, Completion], answers: Mapping[int, Answer], price: Price
    ) -> dict[str, NDArray[np.float64]]:
        """What is paid in this step, by part, float64 (n,): by the scorer, by the environment, for the KL."""
        scored = {slot: one for slot, one in completions.items() if one.finish_reason is not FinishReason.FAILED}
        parts = self.reward.parts(self.episodes.potentials, scored)
        if self.turns is not None:
            parts["environment"] = np.zeros(len(self.episodes))
            for slot, answer in answers.items():
                parts["environment"][slot] = answer.reward
        if price.reward is not None:
            parts["kl"] = price.reward
        return parts

    def _record(self, slots: Slots, columns: NDArray[np.int64], rewards: NDArray[np.float64], price: Price) -> None:
        """Keep what the tokens in these columns earned."""
        earned = (rewards, price.ref_log_prob, price.kl)
        for column, values in zip(self.episodes.token_columns, earned, strict=True):
            if values is not None:
                column[slots, columns] = values[slots]

    def _end(
        self, reasons: Mapping[int, FinishReason], replies: Collection[int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The step has succeeded: end these episodes; `terminated` and `truncated`, bool (n,)."""
        if self.turns is not None:
            self.turns.done({*reasons, *replies})
        cuts = {FinishReason.HORIZON, FinishReason.FAILED}
        if self.config.length_limit == "truncate":
            cuts.add(FinishReason.LENGTH)
        terminated, truncated = np.zeros((2, len(self.episodes)), dtype=np.bool_)
        for slot, reason in reasons.items():
            self.episodes.end(slot, reason)
            (truncated if reason in cuts else terminated)[slot] = True
        self.episodes_ended += len(reasons)
        return terminated, truncated

    def _ending(self, slot: int, completion: Completion) -> dict[str, Any]:
        """The `info` of an episode's end: plain texts and numbers, nothing of vocabulary size."""
        assert completion.finish_reason is not None
        info: dict[str, Any] = {
            "text": completion.text,
            "prompt": completion.prompt.text,
            "finish_reason": completion.finish_reason.value,
            "response_length": len(completion.token_ids),
        }
        if completion.turns is not None:
            info["transcript"] = "".join(turn["content"] for turn in completion.turns)
        if completion.finish_reason is not FinishReason.FAILED:
            paid = [*self.episodes.potentials[slot].tolist(), float(self.episodes.environment_rewards[slot])]
            info["score"] = self.reward.score(paid, slot)
        columns = {"ref_logprob_sum": self.episodes.token_ref_log_probs, "kl_sum": self.episodes.token_kls}
        for name, column in columns.items():
            values = self.episodes.per_token(slot, column)
            if not np.isnan(values).any():
                info[name] = float(values.sum())
        if (counters := self.reward.counters()) is not None:
            info["scorer_info"] = counters
        return info

    # --- actions and policies -----------------------------------------------------------------------------------------

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts of the score: those of the scorer, and what an environment that answers back pays."""
        return self.reward.part_names + (() if self.turns is None else ("environment",))

    @property
    def restricted(self) -> bool:
        """Whether any action can be masked at all."""
        return self.rules.restrict or self.kl.masks

    def action_masks(self, slots: Slots) -> NDArray[np.bool_]:
        """bool (m, V), True where an action is allowed in the given slots. Computed on demand."""
        masks = self.rules.masks(self.episodes.response_lengths[slots])
        if self.kl.masks:
            masks = self.kl.likely(self.episodes, slots, masks)
        return masks

    def bind_policy(self, policy: Callable[..., Any] | LanguageModel | PrefixCache | None, *, batched: bool) -> None:
        """Let the reward pay the exact KL of a policy: a function, a language model or its cache; None unbinds.

        A scorer that sees the policy sees this one, which must be a language model then.
        """
        seen = self.reward.readable(policy)
        self.kl.bind(policy, batched=batched)
        self.reward.policy.language_model = seen

    def delegate_kl(self, *, report_ref_logprob: bool = True) -> None:
        """Leave the KL to the caller: rewards carry none; `info` has log π_ref if it is to be reported."""
        self.kl.delegate(report=report_ref_logprob)

    # --- branching, keeping and releasing -----------------------------------------------------------------------------

    @functools.cached_property
    def made_with(self) -> dict[str, Any]:
        """What another engine must share to go on with this one's episodes."""
        return made_with(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """A copy that shares the language models, whose weights nobody here changes."""
        memo |= {id(model): model for model in (self.language_model, self.reference)}
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def state_dict(self) -> dict[str, Any]:
        """The episodes in flight and the scorer's running statistics, as plain JSON values."""
        return engine_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            TypeError, ValueError: the state is not one of an engine like this; nothing has changed.
        """
        load_engine_state(self, state)

    def close(self) -> None:
        """Release the caches of the models; may be called twice, and stepping afterwards builds them anew."""
        self.kl.release()
