"""Whose turn it is: when the agent's ends, and what the environment is asked.

How replies become tokens is `replies.py`'s, what environments there are stands in `responders/`; the engine appends the
agent's tokens, scores and ends episodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.config import EnvConfig
from textgen_env.episode import Episodes, FinishReason, Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.messages import Tools
from textgen_env.notices import shown, warn_user
from textgen_env.replies import Answer, ReplyEncoder
from textgen_env.responders import Reply, Responder, as_responder
from textgen_env.responders.base import PerText, checked
from textgen_env.stop_strings import StopStrings


class Turns:
    """The environment's side of n dialogues.

    A responder acts on the world, so that no turn is answered twice: its answer is kept until a step has taken it up. A
    step that fails afterwards (its scorer raised) can be taken again with the same action; another is refused, since
    the environment has answered this one.

    Args:
        config: `responder`, `turn_strings`, `max_turns`, `max_reply_tokens`; see `TextGenEnv`.
        model: whose tokens replies become.
        stop_strings: what ends an episode, so that it is not answered.

    Attributes:
        responder: the environment.
        tools: JSON schemas of the functions that it offers, for the chat template.
        encoder: makes tokens of its replies.

    Raises:
        TypeError, ValueError, ImportError: no responder; see `as_responder`.
    """

    def __init__(self, config: EnvConfig, model: LanguageModel, stop_strings: StopStrings) -> None:
        self.responder: Responder = as_responder(config.responder)
        self.tools: Tools = getattr(self.responder, "tool_schemas", ())
        role = getattr(self.responder, "role", "user")
        self.encoder = ReplyEncoder(model, config.max_reply_tokens, role, self.tools)
        self.max_turns, self.max_new_tokens, self.stop_strings = config.max_turns, config.max_new_tokens, stop_strings
        self.turn_strings = StopStrings(config.turn_strings, model, argument="turn_strings")
        self.model = model
        self._waiting: dict[int, tuple[list[int] | None, Answer | None]] = {}  # by slot: to which turn (None: any)
        self._warned = False

    # --- the environment's first word ---------------------------------------------------------------------------------

    def openings(self, prompts: Mapping[int, Prompt], seeds: Sequence[int]) -> dict[int, Answer]:
        """What the environment writes behind the prompts of new episodes, by slot.

        Where the responder fails, the episode begins without, and ends with its first token.

        Raises:
            TypeError, ValueError: it answered with something else than one text per prompt.
        """
        slots = list(prompts)
        try:
            texts = self.responder.reset(slots, list(prompts.values()), list(seeds))
        except Exception as error:
            failed = self._failed(slots[0], error)
            answers = dict.fromkeys(slots, failed)
        else:
            texts = self._one_each("reset", slots, texts)
            answers = {
                slot: self._failed(slot, text) if isinstance(text, Exception) else self._opening(slot, text, prompt)
                for (slot, prompt), text in zip(prompts.items(), texts, strict=True)
            }
        for slot, answer in answers.items():
            self._waiting.pop(slot, None)
            if answer.finish_reason is FinishReason.FAILED:
                self._waiting[slot] = None, answer
        return answers

    def _opening(self, slot: int, text: Any, prompt: Prompt) -> Answer:
        if not isinstance(text, str):
            raise TypeError(f"responder: reset returned {shown(text)} for slot {slot}; it must be a text, '' for none")
        if text and prompt.messages is not None:
            raise ValueError(
                f"responder: reset returned {shown(text)} for slot {slot}, whose prompt is a conversation: there the "
                "agent writes next; return '' and make the opening a message of the prompt"
            )
        return self.encoder(Reply(text), prompt, ())

    # --- answering ----------------------------------------------------------------------------------------------------

    def check(self, episodes: Episodes, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> None:
        """Check that slots whose turn was answered in a step that failed write the same turn again.

        Raises:
            ValueError: one of them writes another.
        """
        for slot in self._waiting.keys() & set(slots.tolist()):
            answered, turn = self._waiting[slot][0], [*episodes.present_turn(slot)[1], int(actions[slot])]
            if answered is not None and answered[: len(turn)] != turn:
                raise ValueError(
                    f"slot {slot}, action {actions[slot]}: the environment has already answered action "
                    f"{answered[len(turn) - 1]}, in a step that failed later; take that step again, or reset the slot. "
                    "No slot has moved"
                )

    def reply(
        self,
        episodes: Episodes,
        slots: NDArray[np.int64],
        reasons: dict[int, FinishReason],
    ) -> dict[int, Answer]:
        """Append the replies to the turns that end with the tokens just appended.

        Args:
            episodes: the states.
            slots: int64 (m,), which of them are stepped.
            reasons: why episodes would end if nobody answered, by slot; changed to why they end.

        Returns:
            The answers, by slot.

        Raises:
            TypeError, ValueError: the responder answered with something else than it may.
        """
        ended = [slot for slot in slots.tolist() if self._turn_ends(episodes, slot, reasons.get(slot))]
        answers = self._answers(episodes, [slot for slot in ended if not self._last(episodes, slot)])
        for slot in ended:
            if reasons.get(slot) is not FinishReason.EOS:
                reasons[slot] = FinishReason.STOP  # of a turn string that is not answered
        for slot, answer in answers.items():
            del reasons[slot]
            if answer.finish_reason is not FinishReason.FAILED:
                episodes.reply(slot, answer.token_ids, answer.text, answer.reward)
            if answer.finish_reason is not None:
                reasons[slot] = answer.finish_reason
            elif episodes.response_lengths[slot] >= self.max_new_tokens:
                reasons[slot] = FinishReason.LENGTH
        return answers

    def _turn_ends(self, episodes: Episodes, slot: int, reason: FinishReason | None) -> bool:
        """Whether the agent's turn ends with the token just appended, so that the environment comes next."""
        if slot in self._waiting:  # it has answered already, perhaps a turn that is being written again
            return self._waiting[slot][0] in (None, episodes.present_turn(slot)[1])
        if reason is FinishReason.EOS:  # which a stop string may name
            return not (self.stop_strings and self.stop_strings.reached(*episodes.present_turn(slot)))
        if reason is FinishReason.STOP or not self.turn_strings:
            return False
        return self.turn_strings.reached(*episodes.present_turn(slot))

    def _last(self, episodes: Episodes, slot: int) -> bool:
        """Whether the agent's present turn is its last, whose end is that of the episode."""
        return slot not in self._waiting and episodes.turns_taken(slot) + 1 >= self.max_turns

    def _answers(self, episodes: Episodes, slots: Sequence[int]) -> dict[int, Answer]:
        """What the environment answers to turns that have just ended; where it says None, nothing."""
        asked = [slot for slot in slots if slot not in self._waiting]
        wrong: list[Exception] = []
        for slot, reply in zip(asked, self._ask(episodes, asked), strict=True):
            try:
                answer = self._answer(episodes, slot, reply)
            except (TypeError, ValueError, OverflowError) as error:
                wrong.append(error)
            else:
                self._waiting[slot] = episodes.present_turn(slot)[1], answer
        if wrong:
            raise wrong[0]
        return {slot: answer for slot in slots if (answer := self._waiting[slot][1]) is not None}

    def done(self, slots: Iterable[int]) -> None:
        """The step that ended turns or episodes of these slots has succeeded."""
        for slot in slots:
            self._waiting.pop(slot, None)

    def failed_to_begin(self, slot: int) -> bool:
        """Whether the environment had no opening for this episode, which therefore ends with its first token."""
        return slot in self._waiting and self._waiting[slot][0] is None

    def _ask(self, episodes: Episodes, slots: list[int]) -> Sequence[Any]:
        if not slots:
            return []
        texts = [self.model.token_text.continuation(*episodes.present_turn(slot)) for slot in slots]
        try:
            replies = self.responder.respond(slots, texts)
        except Exception as error:
            return [error] * len(slots)
        return self._one_each("respond", slots, replies)

    def _one_each(self, method: str, slots: Sequence[int], answers: Any) -> Sequence[Any]:
        if isinstance(answers, (str, bytes, Mapping)) or not isinstance(answers, Sequence):
            raise TypeError(f"responder: {method} returned {shown(answers)}; it must be a list, one entry per slot")
        if len(answers) != len(slots):
            raise ValueError(f"responder: {method} returned {len(answers)} entries for {len(slots)} slots: {slots}")
        return answers

    def _answer(self, episodes: Episodes, slot: int, reply: Any) -> Answer | None:
        if reply is None:
            return None
        if isinstance(reply, Exception):
            return self._failed(slot, reply)
        prompt = episodes.prompts[slot]
        assert prompt is not None  # the slot is playing
        reply = checked(reply, slot)
        try:
            return self.encoder(reply, prompt, episodes.present_turn(slot)[1])
        except ValueError as error:  # a token that the model has no row for
            return self._failed(slot, error)

    def _failed(self, slot: int, error: Exception) -> Answer:
        told = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warn_user(
                f"the environment failed in slot {slot}: {told}. The episode is truncated with "
                "finish_reason='failed' and not scored (said once for an environment)"
            )
        return Answer(finish_reason=FinishReason.FAILED, info={"error": told})

    # --- keeping ------------------------------------------------------------------------------------------------------

    @property
    def failed_openings(self) -> dict[str, str]:
        """By slot, as JSON has it: the errors of environments that failed to begin, until the slot is stepped."""
        failed = {slot: answer for slot, (turn, answer) in self._waiting.items() if turn is None}
        return {str(slot): answer.info["error"] for slot, answer in failed.items() if answer is not None}

    @failed_openings.setter
    def failed_openings(self, errors: Mapping[str, str]) -> None:
        failed = {slot: Answer(finish_reason=FinishReason.FAILED, info={"error": errors[slot]}) for slot in errors}
        self._waiting = {int(slot): (None, answer) for slot, answer in failed.items()}

    @property
    def name(self) -> str:
        """Of the responder, for errors."""
        return type(self.responder).__name__

    def state_dict(self) -> Any:
        """What the responder keeps, as JSON values; None if it does not say."""
        return self.responder.state_dict() if hasattr(self.responder, "state_dict") else None

    def load_state_dict(self, state: Any) -> None:
        """Hand the responder what it kept."""
        self.responder.load_state_dict(state)  # type: ignore[attr-defined]

    def clone_state(self, slot: int) -> Any:
        """What the responder knows of a slot's episode; None of a function, which knows nothing.

        Raises:
            TypeError: the responder does not say.
            RuntimeError: its last answer has not been taken up by a step.
        """
        if slot in self._waiting:
            raise RuntimeError(
                f"slot {slot} has an answer of the environment that no step has taken up yet: take the step again, "
                "or reset it, before branching"
            )
        if hasattr(self.responder, "clone_state"):
            return self.responder.clone_state(slot)
        if isinstance(self.responder, PerText) and not self.responder.state_dict():
            return None
        raise TypeError(
            f"responder={shown(self.responder)} has no clone_state, so that its episodes cannot branch: implement "
            "clone_state(slot) and restore_state(slot, state)"
        )

    def restore_state(self, slot: int, state: Any) -> None:
        """Hand the responder what `clone_state` returned, for the episode that now goes on in a slot."""
        if hasattr(self.responder, "restore_state"):
            self.responder.restore_state(slot, state)
        self._waiting.pop(slot, None)

    def check_saving(self, playing: bool) -> None:
        """Check that a state holds all there is to go on from.

        Raises:
            TypeError: the responder does not say what it keeps while an episode is playing.
            RuntimeError: an answer has not been taken up by a step.
        """
        if answered := sorted(slot for slot, (turn, _) in self._waiting.items() if turn is not None):
            raise RuntimeError(
                f"slots {answered} have an answer of the environment that no step has taken up yet: take the step "
                "again, or reset them, before saving"
            )
        if playing and self.state_dict() is None:
            raise TypeError(
                f"responder={shown(self.responder)} has no state_dict, so that a running episode cannot be saved: "
                "implement state_dict() and load_state_dict(state), or save between episodes"
            )
