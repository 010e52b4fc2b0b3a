"""Whose turn it is: when the agent's ends, what the environment is asked, and how its replies become tokens.

The engine appends the agent's tokens, scores and ends episodes; what environments there are stands in `responders/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgen_env.config import EnvConfig
from textgen_env.episode import Episodes, FinishReason, Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.messages import turn_frame
from textgen_env.notices import shown, warn_user
from textgen_env.responders import Reply, Responder, as_responder
from textgen_env.responders.base import PerText, checked
from textgen_env.stop_strings import StopStrings

CHARACTERS_PER_TOKEN = 64  # of a reply so many are read at most: 100 MB must not be tokenised to keep a few tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, checked and as tokens.

    Attributes:
        text: what is appended, for scorers and people.
        token_ids: the same as the model reads it; of a conversation, with what its template puts around it.
        reward: what the environment pays.
        finish_reason: why the episode ends with it; None where it goes on.
        info: what it adds to the `info` of the step.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    reward: float = 0.0
    finish_reason: FinishReason | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


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
        role: whose messages its replies are in a conversation.
        tools: JSON schemas of the functions that it offers, for the chat template.

    Raises:
        TypeError, ValueError, ImportError: no responder; see `as_responder`.
    """

    def __init__(self, config: EnvConfig, model: LanguageModel, stop_strings: StopStrings) -> None:
        self.responder: Responder = as_responder(config.responder)
        self.role: str = getattr(self.responder, "role", "user")
        self.tools: Sequence[Mapping[str, Any]] = getattr(self.responder, "tool_schemas", ())
        self.max_turns, self.max_reply_tokens = config.max_turns, config.max_reply_tokens
        self.max_new_tokens, self.stop_strings = config.max_new_tokens, stop_strings
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
        return self._as_answer(Reply(text), prompt, ())

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
            return self._as_answer(reply, prompt, episodes.present_turn(slot)[1])
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

    # --- replies as tokens --------------------------------------------------------------------------------------------

    def _as_answer(self, reply: Reply, prompt: Prompt, turn: Sequence[int]) -> Answer:
        """The tokens of a reply to a turn; what is beyond `max_reply_tokens` is cut, and `info` says so."""
        head, space, tail = self._frame(prompt, turn) if turn else ((), "", ())
        room, most = self.max_reply_tokens - len(head) - len(tail), self.max_reply_tokens * CHARACTERS_PER_TOKEN
        text = reply.text[:most].encode(errors="replace").decode()  # a lone surrogate is no text
        token_ids = self.model.encode_plain(space + text)
        cut = len(reply.text) > most or len(token_ids) > room
        if cut:
            token_ids = token_ids[:room]
            text = self.model.decode(token_ids).removeprefix(space)
        info: dict[str, Any] = ({"reply": text} if turn else {}) | ({"reply_cut": True} if cut else {})
        info |= {"reply_info": dict(reply.info)} if reply.info else {}
        reason = FinishReason.ENVIRONMENT if reply.terminated else FinishReason.HORIZON if reply.truncated else None
        return Answer(text, (*head, *token_ids, *tail), float(reply.reward), reason, info)

    def _frame(self, prompt: Prompt, turn: Sequence[int]) -> tuple[Sequence[int], str, Sequence[int]]:
        """What a chat template puts before and behind a reply to this turn; nothing where the prompt is a text.

        A space right before the reply comes as text: most tokenizers make one token of it and the first word.
        """
        if prompt.messages is None:
            return (), "", ()
        before, behind = turn_frame(self.model.tokenizer, prompt.messages, self.role, self.tools)
        stripped = before.rstrip(" ")
        head, tail = self.model.encode_as_is(stripped), self.model.encode_as_is(behind)
        if head and head[0] == turn[-1]:  # the agent has closed its turn itself
            head = head[1:]
        return head, before[len(stripped) :], tail

    def check_prompt(self, prompt: Prompt) -> None:
        """Check that replies to this conversation have room for what its chat template puts around them.

        Raises:
            ValueError: they have not, or the template rewrites what was said before.
        """
        head, space, tail = self._frame(prompt, (-1,))
        around = len(head) + len(self.model.encode_plain(space)) + len(tail)
        if around >= self.max_reply_tokens:
            raise ValueError(
                f"max_reply_tokens={self.max_reply_tokens} leave no room for a reply beside the {around} tokens that "
                "the chat template puts around it"
            )

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
