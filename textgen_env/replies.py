"""Replies of an environment as tokens: plain text, and what a chat template puts around it.

Whose turn it is, and what is answered, is `turns.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textgen_env.episode import FinishReason, Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.messages import Tools, turn_frame
from textgen_env.responders import Reply

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


class ReplyEncoder:
    """Makes answers of replies.

    Args:
        model: whose tokens.
        max_reply_tokens: of a reply, with what is put around it.
        role: whose messages replies are where the prompt is a conversation.
        tools: JSON schemas of functions that the chat template tells the model of.
    """

    def __init__(self, model: LanguageModel, max_reply_tokens: int, role: str, tools: Tools) -> None:
        self.model, self.max_reply_tokens, self.role, self.tools = model, max_reply_tokens, role, tools

    def __call__(self, reply: Reply, prompt: Prompt, turn: Sequence[int]) -> Answer:
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
