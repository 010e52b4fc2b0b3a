"""How replies become tokens: hostile ones, long ones, and those within a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dialogues import BOS, EOS, Scripted, ids, letters, play, row

from textgen_env import LanguageModel, TextGenEnv


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("123456", "1234"),
        ("x" * 10_000_000, "xxxx"),
        ("<eos>", "<eos"),
        ("\x1b[31m", "\x1b[31"),
        ("\ud800!", "?!"),
        ("\x00", "\x00"),
        ("日本", None),  # three bytes each: the second is cut within
    ],
)
def test_hostile_replies_are_text_and_cut(make: Any, text: str, kept: str | None) -> None:
    env = make(Scripted(text), max_reply_tokens=4, max_turns=2)
    env.reset(seed=0)
    observation, *_, info = play(env, "a$")[-1]
    written, mask = row(observation)
    reply = written[4:]
    assert len(reply) <= 4
    assert mask[4:] == [0] * len(reply)
    assert not set(reply) & {0, BOS, EOS}
    assert info.get("reply_cut", False) == (len(text.encode(errors="replace")) > 4)
    if kept is not None:
        assert (info["reply"], env.tokenizer.decode(reply)) == (kept, kept)
    assert json.loads(json.dumps(info)) == info
    assert play(env, "b$")[-1][2]


def test_an_opening_is_cut_too(make: Any) -> None:
    env = make(Scripted(opening="123456"), max_reply_tokens=4)
    observation, info = env.reset(seed=0)
    assert info == {"prompt": "p", "opening": "1234"}
    assert row(observation)[0] == [BOS, *ids(env, "p1234")]


CHAT = "{% for m in messages %}<bos>{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}<bos>a:"
FORGETFUL = CHAT.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[-2:] }}")


def test_replies_in_a_conversation_are_messages_of_its_template(make: Any, byte_model: str) -> None:
    """What is read is what the template writes of the whole conversation, whoever closes the agent's turn."""
    model = LanguageModel(byte_model)
    model.tokenizer.chat_template = CHAT
    prompts = [[{"role": "user", "content": "q"}]]
    env = make(lambda text: "<eos>" + text, model=model, prompts=prompts, turn_strings=["?"], max_turns=3)
    env.reset(seed=0)
    steps = play(env, "x$y?")
    plain = whole(env, "<bos>u:q<eos><bos>a:x<eos><bos>u:") + ids(env, "<eos>x")
    plain += whole(env, "<eos><bos>a:y?<eos><bos>u:") + ids(env, "<eos>y?") + whole(env, "<eos><bos>a:")
    assert plain == row(steps[-1][0])[0]
    assert [info.get("reply") for *_, info in steps] == [None, "<eos>x", None, "<eos>y?"]
    assert play(env, "z$")[-1][-1]["transcript"] == "x<eos>xy?<eos>y?z"


def whole(env: Any, text: str) -> list[int]:
    """As the tokenizer reads it, special tokens too."""
    return env.tokenizer.encode(text, add_special_tokens=False)


def test_conversations_that_cannot_go_on_are_refused_at_the_door(byte_model: str) -> None:
    model = LanguageModel(byte_model)
    arguments: dict[str, Any] = {"model": model, "scorer": letters, "responder": "echo"}
    prompts = [[{"role": "user", "content": "question"}]]
    model.tokenizer.chat_template = FORGETFUL
    with pytest.raises(ValueError, match=r"prompts\[0\]: the chat template rewrites earlier messages"):
        TextGenEnv(prompts=prompts, **arguments)
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        TextGenEnv(prompts=["text"], **arguments).reset(options={"prompt": prompts[0]})
    model.tokenizer.chat_template = CHAT
    with pytest.raises(ValueError, match="max_reply_tokens=8 leave no room .* 8 tokens"):
        TextGenEnv(prompts=prompts, **arguments, max_reply_tokens=8)
    env = TextGenEnv(prompts=prompts, **arguments | {"responder": Scripted(opening="hi")})
    with pytest.raises(ValueError, match="reset returned 'hi' for slot 0, whose prompt is a conversation"):
        env.reset(seed=0)
