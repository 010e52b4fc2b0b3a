"""Stop strings: where they are found, and what is left of the text, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from test_token_text import byte_tokens, make, play
from tiny_models import random_model
from tokenizer_kinds import byte_level, sentencepiece
from tokenizers import AddedToken

from textgen_env import LanguageModel, TextGenEnv


def test_at_the_start_of_a_response() -> None:
    info = play(make(sentencepiece(), "I like", stop_strings=[" cats"]), "▁cats", "▁and")
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", "", 1)


def test_none_begins_in_the_prompt() -> None:
    env = make(byte_level(), "one a", stop_strings=["aa", "a a"])
    info = play(env, "a", "Ġ", "b", "a", "a")
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", "a b", 5)


def test_a_character_in_several_tokens_completes_one() -> None:
    info = play(make(sentencepiece(), "I like", stop_strings=["s🙂"]), "▁cats", *byte_tokens("🙂"), "a")
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", " cat", 5)


def test_special_tokens_between_do_not_count() -> None:
    info = play(make(byte_level(), "x", stop_strings=["ab"]), "b", "a", *["<pad>"] * 12, "b", "a")
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", "b", 15)


def test_special_token_of_the_embedded_model() -> None:
    env = TextGenEnv(prompts=["I like"], scorer=lambda texts, **_: [0.0] * len(texts), stop_strings=["<bos>"])
    env.reset()
    _, _, terminated, _, info = env.step(1)
    assert terminated
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", "", 1)


@pytest.mark.parametrize(
    ("stop", "tokens", "text", "length"),
    [
        ("<bos>", ["a", "b", "<bos>", "c"], "ab", 3),
        ("b<bos>", ["a", "<bos>", "b", "<bos>", "c"], "a", 4),
        ("<bos>c", ["<bos>", "a", "<bos>", "c", "a"], "a", 4),
        ("<bos><pad>d", ["a", "<pad>", "<bos>", "<pad>", "d"], "a", 5),
        ("<bos>", ["a", "<", "b", "o", "s", ">"], "a", 6),  # spelt out, it is text and a stop string all the same
    ],
)
def test_special_tokens_in_stop_strings(stop: str, tokens: list[str], text: str, length: int) -> None:
    info = play(make(byte_level(), "x", stop_strings=[stop]), *tokens)
    assert (info["finish_reason"], info["text"], info["response_length"]) == ("stop", text, length)


def test_a_piece_of_a_special_tokens_name_is_no_match() -> None:
    info = play(make(byte_level(), "x", stop_strings=["bos", "<"]), "a", "<bos>", "<pad>", "<eos>")
    assert (info["finish_reason"], info["text"]) == ("eos", "a")


def test_eos_comes_before_a_stop_string_of_its_name() -> None:
    info = play(make(byte_level(), "x", stop_strings=["<eos>"]), "a", "<eos>")
    assert (info["finish_reason"], info["text"]) == ("eos", "a")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("argument", ["stop_strings", "forbidden_tokens"])
def test_tokens_without_a_row(argument: str, special: bool) -> None:
    tokenizer = byte_level()
    rows = len(tokenizer)  # 263 of the tokenizer and no padding
    model = random_model("llama", rows - 5)
    tokenizer.add_tokens([AddedToken("<new>", special=special)])
    with pytest.raises(ValueError, match=f"{argument}: '<new>' is .*263"):
        TextGenEnv(
            model=LanguageModel.from_modules(model, tokenizer),
            prompts=["x"],
            scorer=lambda texts, **_: [0.0] * len(texts),
            **{argument: ["<new>"]},
        )


@pytest.mark.parametrize("bad", [1.5, True, None])
def test_forbidden_tokens_are_ids_or_texts(bad: Any) -> None:
    with pytest.raises(TypeError, match=rf"forbidden_tokens\[0\]={bad} must be a token id or a token"):
        make(byte_level(), "x", forbidden_tokens=[bad])
