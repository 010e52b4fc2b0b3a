"""Random dialogues against a model of the MDP in plain Python."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from dialogues import BOS, EOS, Scripted, ids, letters, row
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.responders import Reply


class Plain:
    """The same MDP in plain Python: one character per token, "$" for EOS, `rules` as the environment's arguments."""

    def __init__(self, script: list[Any], rules: dict[str, Any]) -> None:
        self.script, self.rules = list(script), rules
        self.text, self.mask = "p", [0, 0]
        self.turn, self.answered, self.paid = "", 0, 0.0
        self.said: list[str] = []

    def write(self, text: str, by_agent: int) -> None:
        self.text += text
        self.mask += [by_agent] * len(text)

    def step(self, character: str) -> tuple[float, str | None]:
        """The reward and why the episode ends, if it does."""
        self.write(character, 1)
        eos = character == "$"
        self.turn += "" if eos else character
        stopped = self.rules["stop"] in self.turn
        at_limit = sum(self.mask) >= self.rules["max_new_tokens"]
        reason = "eos" if eos else "stop" if stopped else "length" if at_limit else None
        reward = 0.0
        if not stopped and (eos or self.rules["turn"] in self.turn):
            reason = "eos" if eos else "stop"
            if self.answered + 1 < self.rules["max_turns"]:
                self.answered += 1
                reward, reason = self.answer(self.script[self.answered - 1], reason, at_limit)
        if reason and reason != "failed":
            words = "".join(self.said) + self.turn
            if self.rules["stop"] in self.turn:
                words = "".join(self.said) + self.turn[: self.turn.index(self.rules["stop"])]
            reward += len(words)
        return reward, reason

    def answer(self, reply: Any, reason: str, at_limit: bool) -> tuple[float, str | None]:
        if reply is None:
            return 0.0, reason
        if isinstance(reply, Exception):
            return 0.0, "failed"
        self.write(reply.text[: self.rules["max_reply_tokens"]], 0)
        self.said.append(self.turn)
        self.turn = ""
        self.paid += reply.reward
        ends = "environment" if reply.terminated else "horizon" if reply.truncated else "length" if at_limit else None
        return reply.reward, ends


def random_reply(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.2:
        return None if kind < 0.1 else TimeoutError("late")
    text = "".join(rng.choices("ab?#", k=rng.randrange(7)))
    return Reply(text, rng.choice([0.0, 0.5, -1.0]), terminated=kind > 0.95, truncated=0.9 < kind <= 0.95)


@pytest.fixture(scope="module")
def dialogue(byte_model: str) -> TextGenVectorEnv:
    """Three slots, whose scripts the test sets."""
    return TextGenVectorEnv(
        3,
        model=byte_model,
        prompts=["p"],
        scorer=letters,
        responder=Scripted(),
        autoreset_mode="Disabled",
        max_new_tokens=9,
        max_turns=4,
        max_reply_tokens=4,
        stop_strings=["ab"],
        turn_strings=["?"],
    )


@pytest.mark.filterwarnings("ignore:the environment failed")
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_dialogues_against_the_plain_model(dialogue: TextGenVectorEnv, seed: int) -> None:
    rng = random.Random(seed)
    rules = {"max_new_tokens": 9, "max_turns": 4, "max_reply_tokens": 4, "stop": "ab", "turn": "?"}
    scripts = [[random_reply(rng) for _ in range(4)] for _ in range(3)]
    responder = dialogue.engine.turns.responder
    responder.respond = lambda slots, texts: [scripts[s][plain[s].answered] for s in slots]
    plain = [Plain(script, rules) for script in scripts]
    dialogue.reset(seed=0)
    running = np.ones(3, dtype=bool)
    while running.any():
        chosen = rng.choices("abc#$?", k=3)
        moving = running & np.array([rng.random() < 0.7 for _ in range(3)])
        actions = np.where(moving, [ids(dialogue, one)[0] for one in chosen], -1)
        observations, rewards, terminated, truncated, infos = dialogue.step(actions)
        for slot in np.flatnonzero(moving):
            reward, reason = plain[slot].step(chosen[slot])
            assert row({key: value[slot] for key, value in observations.items()}) == (
                [BOS, *ids(dialogue, plain[slot].text)],
                plain[slot].mask,
            )
            assert rewards[slot] == reward
            assert terminated[slot] == (reason not in (None, "horizon", "failed"))
            assert truncated[slot] == (reason in ("horizon", "failed"))
            assert bool(infos.get("_finish_reason", [False] * 3)[slot]) == (reason is not None)
            assert bool(infos.get("_score", [False] * 3)[slot]) == (reason not in (None, "failed"))
            if reason is not None:
                assert infos["finish_reason"][slot] == reason
                assert infos["response_length"][slot] == sum(plain[slot].mask)
                running[slot] = False
        assert not rewards[~moving].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), replies=st.lists(st.text(max_size=12), min_size=5, max_size=5))
def test_ids_are_appended_and_never_encoded_again(byte_model: str, seed: int, replies: list[str]) -> None:
    """Random bytes of the agent's, whole characters or not, between random texts: every id stays as it was."""
    rng, left = random.Random(seed), list(replies)
    arguments: dict[str, Any] = {"model": byte_model, "prompts": ["p"], "scorer": letters}
    limits: dict[str, Any] = {"max_new_tokens": 25, "max_turns": 6, "max_reply_tokens": 20}
    env = TextGenEnv(responder=lambda text: left.pop(0), **arguments, **limits)
    observation, _ = env.reset(seed=0)
    tokens, mask = row(observation)
    ended = False
    while not ended:
        action = EOS if rng.random() < 0.25 else rng.randrange(3, 259)
        waiting = len(left)
        observation, _, ended, *_, info = env.step(action)
        tokens, mask = [*tokens, action], [*mask, 1]
        if len(left) < waiting:  # a byte of UTF-8 per token; the tokenizer's alphabet is ByteLevel's
            said = env.tokenizer.encode(replies[-waiting], add_special_tokens=False)[:20]
            assert len(said) == min(len(replies[-waiting].encode()), 20)
            tokens, mask = [*tokens, *said], [*mask, *[0] * len(said)]
        assert row(observation) == (tokens, mask)
    assert info["response_length"] == sum(mask)


def answer(text: str) -> Any:
    """In all ways, as the text says."""
    rng = random.Random(text)
    return random_reply(rng) if rng.random() < 0.3 else "".join(rng.choices("ab?é🙂\x00", k=rng.randrange(8)))


@pytest.mark.filterwarnings("ignore:the environment failed")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kl_coef=st.sampled_from([0.0, 0.1]))
def test_saved_in_the_middle_of_a_turn_and_read_as_a_whole(byte_model: str, seed: int, kl_coef: float) -> None:
    """A dialogue that was saved anywhere goes on to the same bits, and log π_ref is that of the final sequence."""
    rng = random.Random(seed)
    limits: dict[str, Any] = {"max_new_tokens": 30, "max_turns": 5, "max_reply_tokens": 20, "turn_strings": ["?"]}
    arguments: dict[str, Any] = {"model": byte_model, "prompts": ["p", "qu"], "scorer": letters, "responder": answer}
    env, other = (TextGenEnv(**arguments, **limits, kl_coef=kl_coef) for _ in range(2))
    observation, _ = env.reset(seed=seed)
    cut, ref_log_probs, ended = rng.randrange(30), [], False
    for step in range(31):
        if step == cut:
            other.load_state_dict(json.loads(json.dumps(env.state_dict())))
        action = EOS if rng.random() < 0.2 else rng.randrange(3, 259)
        result = env.step(action)
        observation, _, terminated, truncated, info = result
        ref_log_probs += [info["ref_logprob"]] if kl_coef else []
        if step >= cut:
            again = other.step(action)
            assert row(again[0]) == row(observation)
            assert again[1:4] == pytest.approx(result[1:4], abs=1e-4) if kl_coef else again[1:4] == result[1:4]
            assert again[4].keys() == info.keys()
        if ended := terminated or truncated:
            break
    assert ended
    if kl_coef:
        tokens, mask = row(observation)
        with torch.no_grad():
            logits = env.language_model.model(torch.tensor([tokens])).logits[0, :, :259].double()
        places = [place for place, own in enumerate(mask) if own]
        expected = [logits.log_softmax(-1)[place - 1, tokens[place]].item() for place in places]
        assert ref_log_probs == pytest.approx(expected, abs=1e-4)
