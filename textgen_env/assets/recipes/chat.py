"""How the embedded models read a conversation: the chat template, and the same written out in Python.

The conversations themselves are in dialogues.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# One turn a line; only the assistant's turns end with EOS, since that is what the model writes at the end of its turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message.role | capitalize }}: {{ message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
EOS = "<eos>"


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation up to where the assistant begins to write, without BOS, which the tokenizer puts in front."""
    lines = [
        f"{message['role'].capitalize()}: {message['content'].strip()}{EOS if message['role'] == 'assistant' else ''}"
        for message in messages
    ]
    return "\n".join([*lines, "Assistant:"])
