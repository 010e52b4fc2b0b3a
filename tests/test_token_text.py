"""The text of a continuation: hand-written cases of every kind of tokenizer, and decode(whole) as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_model
from tokenizer_kinds import KINDS, byte_level, sentencepiece, word_ends, word_piece

from textgen_env import LanguageModel, TextGenEnv
from textgen_env.frames import frame_of
from textgen_env.lm.token_text import CONTEXT, TokenText

MADE: dict[str, Any] = {name: TokenText(kind()) for name, kind in KINDS.items()}


def ids_of(text: TokenText, *tokens: str) -> list[int]:
    ids = text.tokenizer.convert_tokens_to_ids(list(tokens))
    assert None not in ids
    return list(ids)


def byte_tokens(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


def latin(*tokens: str) -> list[str]:
    """How a byte-level vocabulary spells these bytes of 🙂."""
    return [{"f0": "ð", "9f": "Ł", "99": "Ļ", "82": "Ĥ"}[token] for token in tokens]


HAND: list[tuple[Any, list[str], list[str], str]] = [
    (sentencepiece, ["<bos>", "▁I", "▁like"], ["▁cats", "▁and", "▁dogs."], " cats and dogs."),
    (sentencepiece, ["▁I", "▁like"] * 9, ["▁cats", "s", "<eos>"], " catss"),
    (sentencepiece, ["<bos>"], ["▁cats"], "cats"),  # nothing precedes it: the space is no part of the whole text
    (sentencepiece, ["<bos>", "▁"], ["▁cats"], " cats"),
    (sentencepiece, ["▁I", *byte_tokens("🙂")[:3]], byte_tokens("🙂")[3:], "🙂"),
    (sentencepiece, ["▁I", *byte_tokens("🙂")[:3]], ["▁and"], " and"),
    (sentencepiece, ["▁I", "é", *["▁"] * 6], ["a"], "a"),
    (word_piece, ["<bos>", "I", "like", "cat"], ["##s", "and", "dog", "##s", "."], "s and dogs."),
    (word_ends, ["I</w>", "like</w>"], ["cat", "s</w>", ".</w>"], " cats ."),
    (byte_level, ["a", *latin("f0", "9f")], latin("99", "82"), "🙂"),
    (byte_level, ["a", *latin("f0")], ["a"], "a"),  # the broken character stays the prompt's
    (byte_level, ["aÃ"], ["©", "Ġa"], "é a"),
    (byte_level, ["a"], ["a", "<pad>", *latin("f0", "9f")], "a\ufffd"),
]


@pytest.mark.parametrize(("kind", "before", "after", "text"), HAND)
def test_by_hand(kind: Any, before: list[str], after: list[str], text: str) -> None:
    decoder = MADE[kind.__name__]
    assert decoder.continuation(ids_of(decoder, *before), ids_of(decoder, *after)) == text


@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_an_emoji_over_four_tokens_is_one_piece(kind: Any) -> None:
    decoder = MADE[kind.__name__]
    emoji = ["ð", "Ł", "Ļ", "Ĥ"] if kind is byte_level else byte_tokens("🙂")
    before, after = ids_of(decoder, "a", *emoji[:1]), ids_of(decoder, *emoji[1:], "a", *emoji, "<eos>")
    assert decoder.pieces(before, after) == ["", "", "🙂", "a", "", "", "", "🙂", ""]
    assert decoder.shown_pieces(before, after)[-1] == "<eos>"


def test_a_run_of_bytes_that_turns_out_wrong() -> None:
    """SentencePiece decodes a run of bytes as one: a wrong byte takes back what was a character before."""
    decoder = MADE["sentencepiece"]
    after = ids_of(decoder, "b", *byte_tokens("é"), "<0xFF>")
    assert decoder.continuation(ids_of(decoder, "a"), after) == "b\ufffd\ufffd\ufffd"
    assert "".join(decoder.pieces(ids_of(decoder, "a"), after)) == "b\ufffd\ufffd\ufffd"


@st.composite
def splits(draw: st.DrawFn) -> tuple[str, list[int], list[int]]:
    name = draw(st.sampled_from(sorted(MADE)))
    decoder = MADE[name]
    emoji = {"byte_level": latin("f0", "9f", "99", "82") + ["Ã", "©"], "sentencepiece": byte_tokens("🙂é")}.get(
        name, []
    )
    token = st.integers(0, len(decoder.tokenizer) - 1)
    if emoji:
        token |= st.sampled_from(ids_of(decoder, *emoji, "a"))
    tokens = st.lists(token, max_size=3 * CONTEXT)
    return name, draw(tokens), draw(tokens)


@settings(max_examples=600, deadline=None)
@given(splits())
def test_prompt_and_continuation_are_the_whole(case: tuple[str, list[int], list[int]]) -> None:
    """From the definition, with no window: decode(whole) without what it has in common with decode(before)."""
    name, before, after = case
    decode = MADE[name].decode
    shared, whole = decode(before), decode(before + after)
    text = MADE[name].continuation(before, after)
    assert whole.endswith(text)
    kept = whole[: len(whole) - len(text)]
    assert kept == shared or (shared.startswith(kept) and whole[len(kept) :][:1] != shared[len(kept) :][:1])
    pieces = MADE[name].pieces(before, after)
    assert "".join(pieces) == text
    assert len(pieces) == len(after)


def test_a_long_prompt_is_not_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = TokenText(sentencepiece())
    before, lengths, decode = ids_of(decoder, "▁I", "▁like") * 500, [], decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    assert decoder.continuation(before, ids_of(decoder, "▁cats")) == " cats"
    assert max(lengths) <= CONTEXT + 1


def test_a_tokenizer_with_a_decoder_of_its_own_decodes_the_whole() -> None:
    class Reversing(type(byte_level())):  # type: ignore[misc]
        def _decode(self, token_ids: Any, **kwargs: Any) -> str:
            return super()._decode(token_ids, **kwargs)[::-1]

    tokenizer = byte_level()
    tokenizer.__class__ = Reversing
    assert not TokenText(tokenizer).is_local


# --- encoding behind a prefix -----------------------------------------------------------------------------------------

ENCODERS = {
    kind.__name__: LanguageModel.from_modules(random_model("llama", len(kind())), kind())
    for kind in (byte_level, sentencepiece)
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=100, deadline=None)
@given(before=st.sampled_from(["a", "I like", "é.", "b\n"]), text=st.text("ab é.🙂\nI", max_size=8))
def test_a_text_behind_a_prefix_is_written_as_it_is(name: str, before: str, text: str) -> None:
    """Decode(whole) is the two texts joined, also where the tokenizer puts a space in front of texts."""
    model = ENCODERS[name]
    prefix = model.encode(before)
    assert model.decode(prefix + model.encode_behind(prefix, text)) == before + text


# --- in the environment -----------------------------------------------------------------------------------------------


def make(tokenizer: Any, prompt: str, **more: Any) -> TextGenEnv:
    model = LanguageModel.from_modules(random_model("llama", len(tokenizer)), tokenizer)
    arguments = {"prompts": [prompt], "scorer": lambda completions, **_: [0.0] * len(completions), **more}
    return TextGenEnv(model=model, **arguments)


def play(env: TextGenEnv, *tokens: str) -> dict[str, Any]:
    env.reset()
    for token in env.language_model.tokenizer.convert_tokens_to_ids(list(tokens)):
        _, _, terminated, truncated, info = env.step(token)
        if terminated or truncated:
            return info
    return info


def test_the_scorer_gets_the_space_that_joins_prompt_and_response() -> None:
    seen: list[str] = []

    def joined(completions: Any, *, prompts: Any, **_: Any) -> list[float]:
        seen.extend(prompt + text for prompt, text in zip(prompts, completions, strict=True))
        return [0.0] * len(completions)

    joined.dense = True  # type: ignore[attr-defined]
    env = make(sentencepiece(), "I like", scorer=joined)
    assert play(env, "▁cats", "▁and", "▁dogs.", "<eos>")["text"] == " cats and dogs."
    assert seen == ["I like cats", "I like cats and", "I like cats and dogs.", "I like cats and dogs."]


def test_frames_show_the_text() -> None:
    env = make(sentencepiece(), "I like", render_mode="ansi")
    play(env, "▁cats", *byte_tokens("🙂"), "▁and", "<eos>")
    assert list(frame_of(env.engine, 0).pieces) == [" cats", "", "", "", "🙂", " and", "<eos>"]
    assert " cats🙂 and" in env.render()
