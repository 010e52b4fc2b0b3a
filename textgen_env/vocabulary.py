"""Prompts in a model's vocabulary, and whether two models share one.

Allowed actions are in `action_masks.py`, the texts that stop an episode in `stop_strings.py`; both can be imported from
here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textgen_env.action_masks import ActionRules
from textgen_env.lm.position_switches import position_switches
from textgen_env.messages import Message, Tools, render_chat
from textgen_env.stop_strings import StopStrings

if TYPE_CHECKING:
    from textgen_env.episode import Prompt
    from textgen_env.lm.language_model import LanguageModel

__all__ = ["ActionRules", "StopStrings", "fits_positions", "same_vocabulary", "tokenize_prompt"]


def tokenize_prompt(
    model: LanguageModel, prompt: Prompt, max_tokens: int, *, truncation: str = "left", tools: Tools = ()
) -> tuple[list[int], int]:
    """The tokens of a prompt, at most `max_tokens`, and how many were cut off.

    A conversation is written out by the tokenizer's chat template, which writes its special tokens too. A longer prompt
    loses its left part, since the words next to the response matter most; a BOS token stays in front, without which
    many models are lost. With truncation="turns" a conversation loses its oldest messages instead, as many as must go;
    what the system says stays, and so does the last message of the user's. If that alone is too long, it is cut.

    Args:
        model: whose tokens.
        prompt: the prompt.
        max_tokens: of the prompt.
        truncation: "left" or "turns".
        tools: JSON schemas of functions that the chat template tells the model of.

    Raises:
        ValueError: the text has no tokens or one that the model has no row for; or there is no chat template.
    """
    if prompt.messages is None:
        token_ids = model.encode(prompt.text)
    else:
        token_ids = model.encode_as_is(render_chat(model.tokenizer, prompt.messages, tools))
        if truncation == "turns" and len(token_ids) > max_tokens:
            kept = _without_oldest_turns(model, prompt.messages, max_tokens, tools)
            return _cut(model, kept, max_tokens), len(token_ids) - min(max_tokens, len(kept))
    if not token_ids:
        raise ValueError(f"the prompt {prompt.text!r} has no tokens under the tokenizer of {model.source!r}")
    return _cut(model, token_ids, max_tokens), max(0, len(token_ids) - max_tokens)


def _cut(model: LanguageModel, token_ids: list[int], max_tokens: int) -> list[int]:
    """The last of these tokens, with the BOS in front."""
    excess = max(0, len(token_ids) - max_tokens)
    has_bos = token_ids[0] == model.bos_token_id and max_tokens > 1
    return token_ids[:1] + token_ids[1 + excess :] if has_bos else token_ids[excess:]


def _without_oldest_turns(
    model: LanguageModel, messages: Sequence[Message], max_tokens: int, tools: Tools
) -> list[int]:
    """The tokens of a conversation from the user's earliest message on with which it fits, else from the last."""
    system = next((at for at, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
    users = [at for at, message in enumerate(messages) if message["role"] == "user" and at >= system]
    token_ids: list[int] = []
    for start in users or [system]:
        token_ids = model.encode_as_is(render_chat(model.tokenizer, [*messages[:system], *messages[start:]], tools))
        if len(token_ids) <= max_tokens:
            break
    return token_ids


def same_vocabulary(model: LanguageModel, reference: LanguageModel, role: str = "reference") -> None:
    """Check that two models give every token the same id; `role` is what the second one is to the environment.

    Raises:
        ValueError: they do not, so that log π and log π_ref would speak of different tokens.
    """
    if model is reference:
        return
    ours, theirs = model.tokenizer.get_vocab(), reference.tokenizer.get_vocab()
    if model.vocab_size == reference.vocab_size and ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise ValueError(
        f"{role}={reference.source!r} has another vocabulary ({reference.vocab_size} actions) than "
        f"model={model.source!r} ({model.vocab_size}); first differing tokens: {differing[:3]}. "
        "A KL penalty needs one vocabulary"
    )


def fits_positions(model: LanguageModel, max_prompt_tokens: int, max_new_tokens: int, reply_tokens: int = 0) -> None:
    """Check that a model can read the longest prefix there may be.

    Raises:
        ValueError: it has fewer positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    stretches = position_switches(model.config).every_after is not None
    if positions is not None and not stretches and max_prompt_tokens + max_new_tokens + reply_tokens > positions:
        replies = f" + {reply_tokens} for replies (max_turns × max_reply_tokens)" if reply_tokens else ""
        raise ValueError(
            f"max_prompt_tokens={max_prompt_tokens} + max_new_tokens={max_new_tokens}{replies} exceed the {positions} "
            f"positions of {model.source!r}, which has to read whole texts for the KL; shorten one of them"
        )
