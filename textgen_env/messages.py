"""Prompts that are conversations: lists of `{"role": …, "content": …}`, written out by a tokenizer's chat template.

Reading, checking and rendering alone; when that happens is for `prompts.py` and the engine to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Message: TypeAlias = Mapping[str, Any]
Tools: TypeAlias = Sequence[Mapping[str, Any]]


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, as opposed to a list of prompts."""
    value = _as_list(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def _as_list(value: Any) -> Any:
    """A list for an array, as tables of pandas hold lists; anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def as_messages(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Check a conversation and give every message its content as one text.

    A content of parts `{"type": "text", "text": …}` is joined; other parts (images) are refused. An assistant's message
    may leave its content out where it calls tools. Further keys of messages go to the template; those that are None,
    as the `datasets` library fills them in, are dropped.

    Args:
        value: a list of messages.
        where: what to call it in an error.

    Raises:
        TypeError: it is no list of mappings, or a role or content is no text.
        ValueError: no messages, a message without role or content, a part that is no text, or the last message is the
            assistant's, whose turn would be over.
    """
    value = _as_list(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f'{where} must be a list of messages {{"role", "content"}}, not {type(value).__name__}')
    if not value:
        raise ValueError(f"{where} is a conversation without messages")
    messages = tuple(_as_message(message, f"{where}, message {number}") for number, message in enumerate(value))
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{where} ends with a message of the assistant, who is to write the next one; leave it out, or make it a "
            "reference (to let a response go on where that message ends, write the prompt as a text)"
        )
    return messages


def _as_message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f'{where} must be a mapping with "role" and "content", not {type(value).__name__}')
    if not isinstance(value.get("role"), str):
        raise TypeError(f"{where} has the role {value.get('role')!r}; it must be a text, such as 'user'")
    content = _as_list(value.get("content"))
    if content is None and value.get("tool_calls"):
        content = ""
    elif isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "".join(_text_of_part(part, where) for part in content)
    if content is None:
        raise ValueError(f"{where} ({value['role']}) has no content; it must be a text")
    if not isinstance(content, str):
        raise TypeError(f"{where} ({value['role']}) has a content of type {type(content).__name__}; it must be a text")
    return {str(key): item for key, item in value.items() if item is not None} | {"content": content}


def _text_of_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"{where} has a part of type {kind!r} in its content; only texts can be read")
    return str(part["text"])


def readable(messages: Sequence[Message]) -> str:
    """A conversation as one text for scorers and people: what the user said last, else the last message."""
    users = [message for message in messages if message["role"] == "user"]
    return str((users or messages)[-1]["content"])


def turn_frame(tokenizer: Any, messages: Sequence[Message], role: str = "user", tools: Tools = ()) -> tuple[str, str]:
    """What a chat template writes around the next message: behind the assistant's text, and up to its next.

    Args:
        tokenizer: with the template.
        messages: the conversation so far, which the assistant answers.
        role: of the next message.
        tools: see `render_chat`.

    Raises:
        ValueError: with two more messages the template writes the earlier ones otherwise (some drop what assistants
            thought), so that what was generated would not be what is read; or it refuses them.
    """
    before, reply = render_chat(tokenizer, messages, tools), "REPLY"
    for said in ("<think>why</think>so", " <think>why</think>so"):  # some put a space before what the assistant says
        more = [{"role": "assistant", "content": said}, {"role": role, "content": reply}]
        whole = render_chat(tokenizer, [*messages, *more], tools)
        head, found, tail = whole.removeprefix(before + said).rpartition(reply)
        if whole.startswith(before + said) and found:
            return head, tail
    raise ValueError(
        "the chat template rewrites earlier messages when a conversation goes on (instead of "
        f"{before + said!r:.300} it then has {whole!r:.300}), so that no environment can answer back: take a "
        "template that keeps them, or write the prompt as a text"
    )


def render_chat(tokenizer: Any, messages: Sequence[Message], tools: Tools = ()) -> str:
    """A conversation as the model reads it, special tokens included, up to where the assistant begins to write.

    Args:
        tokenizer: with the chat template.
        messages: the conversation.
        tools: JSON schemas of the functions that the assistant may call, which many templates put in front.

    Raises:
        ValueError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "a prompt is a conversation, but the tokenizer has no chat template: take an instruct model, set "
            "tokenizer.chat_template, or write the prompt as a text"
        )
    try:
        chat = [dict(message) for message in messages]
        options = {"tools": [dict(tool) for tool in tools]} if tools else {}
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options))
    except Exception as error:  # a template may raise anything; most raise jinja2's TemplateError on purpose
        raise ValueError(f"the chat template refuses the prompt {list(messages)!r:.300}: {error}") from error
