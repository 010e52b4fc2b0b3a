"""Prompts that are conversations: read, checked, written out once by the template, and seen by scorers and people."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tiny_models import random_model
from tokenizer_kinds import byte_level

from textgen_env import LanguageModel, TextGenEnv
from textgen_env.messages import as_messages, is_conversation, render_chat
from textgen_env.prompts import as_prompt, load_prompts, prompt_as_dict
from textgen_env.vector_env import TextGenVectorEnv

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}<pad>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]
LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
]
BOS, PAD = 1, 0


def model(template: str | None = TEMPLATE) -> LanguageModel:
    tokenizer = byte_level("<bos> $A <eos>")
    tokenizer.chat_template = template
    return LanguageModel.from_modules(random_model("llama", len(tokenizer)), tokenizer)


class Recorder:
    """A scorer that remembers what it was given."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, completions: Any, **columns: Any) -> list[float]:
        self.seen = {"completions": completions, **columns}
        return [0.0] * len(completions)


def arguments(prompts: Any, **more: Any) -> dict[str, Any]:
    return {"model": model(), "prompts": prompts, "scorer": Recorder(), "max_new_tokens": 1, **more}


def prompt_tokens(env: Any, row: int | None = None) -> list[int]:
    prefixes = env.engine.episodes
    return prefixes.input_ids[row or 0, : prefixes.prompt_lengths[row or 0]].tolist()


class TestReading:
    @pytest.mark.parametrize(
        "value", [HI, tuple(HI), {"messages": HI}, {"prompt": HI}, np.array(HI), {"prompt": np.array(HI)}]
    )
    def test_forms(self, value: Any) -> None:
        prompt = as_prompt(value)
        assert prompt.messages == ({"role": "user", "content": "Hi"},)
        assert (prompt.text, prompt.references, prompt.extra) == ("Hi", (), {})

    def test_references_and_columns(self) -> None:
        prompt = as_prompt({"messages": LONG, "references": "2", "level": 3})
        assert (prompt.text, prompt.references, prompt.extra) == ("Two?", ("2",), {"level": 3})
        assert as_prompt(json.loads(json.dumps(prompt_as_dict(prompt)))) == prompt

    def test_text_and_messages_side_by_side(self) -> None:
        """Some data sets have the first turn as a text beside the whole conversation: the text is the prompt."""
        prompt = as_prompt({"prompt": "Hi", "messages": [*HI, {"role": "assistant", "content": "Hello"}]})
        assert prompt.messages is None
        assert list(prompt.extra) == ["messages"]

    def test_content_of_parts(self) -> None:
        parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
        assert as_prompt([{"role": "user", "content": parts}]).messages == ({"role": "user", "content": "Hi there"},)

    def test_tools(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
        answer = {"role": "tool", "content": "noon", "tool_call_id": None}
        prompt = as_prompt([*HI, call, answer])
        assert prompt.messages is not None
        assert prompt.messages[1:] == ({**call, "content": ""}, {"role": "tool", "content": "noon"})
        assert prompt.text == "Hi"

    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (
                [*HI, {"role": "assistant", "content": "Yes"}],
                ValueError,
                r"prompts\[0\] ends with a message of the ass",
            ),
            ([{"role": "user", "content": None}], ValueError, r"prompts\[0\], message 0 \(user\) has no content"),
            ([{"role": "user"}], ValueError, r"prompts\[0\], message 0 \(user\) has no content"),
            ([{"role": "user", "content": 3}], TypeError, r"message 0 \(user\) has a content of type int"),
            ([{"role": None, "content": "a"}], TypeError, "message 0 has the role None"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
                ValueError,
                r"message 0 has a part of type 'image_url'",
            ),
            ([{"role": "user", "content": "  "}], ValueError, r"prompts\[0\] is empty"),
            ([{"role": "user", "content": "\ud800"}], ValueError, "lone surrogate"),
            ({"messages": []}, ValueError, r"prompts\[0\] is a conversation without messages"),
            ({"messages": "Hi"}, TypeError, r"prompts\[0\] must be a list of messages"),
            ({"messages": ["Hi"]}, TypeError, r"prompts\[0\], message 0 must be a mapping"),
            ({"prompt": HI, "messages": HI}, ValueError, 'messages both as "prompt" and as "messages"'),
            ({"prompt": [{"content": "a"}]}, TypeError, "it must be a text or a list of messages"),
        ],
    )
    def test_refused(self, value: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            load_prompts([value])

    def test_a_conversation_is_no_set(self) -> None:
        with pytest.raises(ValueError, match=r"prompts is itself a conversation; put it into a list"):
            load_prompts(HI)
        with pytest.raises(ValueError, match=r"prompts\[1\] has no \"prompt\".* a conversation is a list of such"):
            load_prompts(["a", *HI])
        assert not is_conversation([HI])
        assert not is_conversation([])

    def test_lines_and_arrays_of_files(self, tmp_path: Any) -> None:
        rows = [HI, {"messages": LONG, "references": ["2"]}, "plain"]
        lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
        lines.write_text("\n".join(map(json.dumps, rows)))
        array.write_text(json.dumps(rows, indent=1))
        assert load_prompts(lines) == load_prompts(array) == load_prompts(rows)
        lines.write_text(json.dumps(HI))  # one line, one prompt
        assert load_prompts(lines) == load_prompts([HI])


class TestTemplate:
    def test_written_out_with_special_tokens_once(self) -> None:
        env = TextGenEnv(**arguments([LONG], max_prompt_tokens=99))
        env.reset()
        plain = byte_level(None)
        turns = ["[system]Be brief.", "[user]One?", "[assistant]1", "[user]Two?"]
        expected = [BOS, *(id_ for turn in turns for id_ in [*plain.encode(turn), PAD]), *plain.encode("[assistant]")]
        assert prompt_tokens(env) == expected

    def test_none(self) -> None:
        with pytest.raises(ValueError, match=r"prompts\[1\]: a prompt is a conversation, but the tok"):
            TextGenEnv(**arguments(["a", HI], model=model(None)))

    def test_that_refuses(self) -> None:
        late = [*HI, {"role": "system", "content": "late"}]
        with pytest.raises(ValueError, match=r"prompts\[1\]: the chat template refuses .*system comes first"):
            TextGenEnv(**arguments([HI, late]))
        env = TextGenEnv(**arguments([HI]))
        with pytest.raises(ValueError, match="system comes first"):
            env.reset(options={"prompt": late})

    def test_cut_keeps_bos(self) -> None:
        env = TextGenEnv(**arguments([HI], max_prompt_tokens=6))
        with pytest.warns(UserWarning, match="cut on the left"):
            env.reset()
        assert prompt_tokens(env) == [BOS, *byte_level(None).encode("tant]")]

    def test_a_message_cannot_change_the_set(self) -> None:
        """Templates get copies."""
        messages = as_messages(HI, "prompt")
        tokenizer = byte_level()
        tokenizer.chat_template = "{% for m in messages %}{% set _ = m.update({'content': 'x'}) %}{% endfor %}y"
        with pytest.raises(ValueError, match="refuses"):
            render_chat(tokenizer, messages)
        assert messages == as_messages(HI, "prompt")


class TestTruncation:
    """The template writes [role]content<pad> for each message, one token a byte."""

    TURNS = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Three?"},
    )
    SYSTEM = len("[system]Be brief.") + 1

    def written(self, *messages: Any) -> list[int]:
        parts = [byte_level(None).encode(f"[{message['role']}]{message['content']}") + [PAD] for message in messages]
        return [BOS, *(token for part in parts for token in part), *byte_level(None).encode("[assistant]")]

    @pytest.mark.parametrize("start", [1, 3, 5])
    def test_the_oldest_turns_go_and_the_system_stays(self, start: int) -> None:
        kept = self.written(self.TURNS[0], *self.TURNS[start:])
        for room in (len(kept), len(kept) + 1):
            env = TextGenEnv(**arguments([list(self.TURNS)], max_prompt_tokens=room, truncation="turns"))
            if start == 1:
                env.reset()
            else:
                excess = len(self.written(*self.TURNS))
                with pytest.warns(UserWarning, match=f"a prompt of {excess} tokens was cut by its oldest turns to"):
                    env.reset()
            assert prompt_tokens(env) == kept

    def test_what_is_too_long_by_itself_is_cut_on_the_left(self) -> None:
        whole = self.written(self.TURNS[0], self.TURNS[5])
        env = TextGenEnv(**arguments([list(self.TURNS)], max_prompt_tokens=len(whole) - 4, truncation="turns"))
        with pytest.warns(UserWarning, match="cut by its oldest turns"):
            env.reset()
        assert prompt_tokens(env) == [BOS, *whole[5:]]
        with pytest.warns(UserWarning, match="cut by its oldest turns"):
            TextGenEnv(**arguments(["a text that is too long"], max_prompt_tokens=6, truncation="turns")).reset()

    def test_or_none_may_be_too_long(self) -> None:
        with pytest.raises(ValueError, match=r"prompts\[1\]: a prompt of 21 tokens is longer than .*=20"):
            TextGenEnv(**arguments(["Hi", HI], truncation="error", max_prompt_tokens=20))
        env = TextGenEnv(**arguments(["Hi"], truncation="error", max_prompt_tokens=6))
        env.reset(seed=0)
        before = env.state_dict()
        with pytest.raises(ValueError, match="a prompt of 8 tokens is longer than max_prompt_tokens=6"):
            env.reset(seed=1, options={"prompt": "abcdefg"})
        assert env.state_dict() == before

    def test_a_policy_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="truncation='right' must be one of left, turns, error"):
            TextGenEnv(**arguments(["Hi"], truncation="right"))


class TestEnvironment:
    def test_what_scorer_and_info_see(self) -> None:
        env = TextGenEnv(**arguments([{"messages": LONG, "references": ["2"], "level": 3}], max_prompt_tokens=99))
        assert env.reset()[1]["prompt"] == "Two?"
        info = env.step(20)[-1]
        assert info["prompt"] == "Two?"
        seen = env.scorer.seen
        assert seen["prompts"] == ["Two?"]
        assert seen["messages"] == [LONG]
        assert seen["references"] == [["2"]]
        assert seen["level"] == [3]

    def test_beside_texts(self) -> None:
        rows = ["a", HI, {"prompt": "b", "messages": "a column"}]
        envs = TextGenVectorEnv(3, **arguments(rows))
        envs.reset(options={"prompt": [0, 1, 2]})
        envs.step(np.array([20, 20, 20]))
        assert envs.scorer.seen["prompts"] == ["a", "Hi", "b"]
        assert envs.scorer.seen["messages"] == [None, HI, "a column"]

    def test_no_column_where_all_are_texts(self) -> None:
        env = TextGenEnv(**arguments(["a"]))
        env.reset()
        env.step(20)
        assert "messages" not in env.scorer.seen

    @pytest.mark.parametrize("choice", [HI, tuple(HI), {"messages": HI}, {"prompt": HI}])
    def test_options_of_reset(self, choice: Any) -> None:
        env = TextGenEnv(**arguments(["a"]))
        assert env.reset(options={"prompt": choice})[1] == {"prompt": "Hi"}
        wanted = prompt_tokens(env)
        envs = TextGenVectorEnv(2, **arguments(["a"]))
        envs.reset(options={"prompt": choice})  # one for all, even where it has as many messages as there are slots
        assert prompt_tokens(envs, 0) == prompt_tokens(envs, 1) == wanted
        envs.reset(options={"prompt": [choice, 0]})
        assert prompt_tokens(envs, 0) == wanted
        assert prompt_tokens(envs, 1) != wanted

    def test_as_many_messages_as_slots(self) -> None:
        envs = TextGenVectorEnv(4, **arguments(["a"], max_prompt_tokens=99))
        _, infos = envs.reset(options={"prompt": LONG})
        assert list(infos["prompt"]) == ["Two?"] * 4

    def test_state_goes_through_json(self) -> None:
        env, other = (TextGenEnv(**arguments([LONG], max_prompt_tokens=99, max_new_tokens=2)) for _ in range(2))
        env.reset(seed=1)
        env.step(20)
        other.reset()
        other.load_state_dict(json.loads(json.dumps(env.state_dict())))
        assert other.engine.episodes.prompts == env.engine.episodes.prompts
        assert other.step(21)[-1] == env.step(21)[-1]
        assert other.scorer.seen == env.scorer.seen
