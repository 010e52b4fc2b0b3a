"""The state of n episodes: who wrote what, taking steps back whole, and states that earlier releases saved."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from compare import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.episode import Episodes, FinishReason, Prompt, mask_of

PAD, WIDTH = 9, 12


def one(slot: int) -> np.ndarray:
    return np.array([slot])


@pytest.fixture
def episodes() -> Episodes:
    """Slot 0: prompt 1 2, opening 3, turn 4 5, reply 6 7, turn 8; slot 1: prompt 1 alone."""
    episodes = Episodes(2, WIDTH, PAD, parts=2)
    episodes.start(0, Prompt("p"), [1, 2], [3], "three")
    episodes.start(1, Prompt("q"), [1])
    for token in (4, 5):
        episodes.append(one(0), one(token), by_agent=True)
    episodes.reply(0, [6, 7], "six seven", 0.5)
    episodes.append(one(0), one(8), by_agent=True)
    return episodes


def test_who_wrote_which_token(episodes: Episodes) -> None:
    assert episodes.input_ids[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, PAD, PAD, PAD, PAD]
    assert episodes.attention_mask[0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert episodes.response_mask[0].tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert episodes.response_lengths.tolist() == [3, 0]
    assert episodes.response(0).tolist() == [4, 5, 8]
    assert episodes.handovers == [[2, 3, 5, 7], [1, 1]]
    assert episodes.environment_texts == [["three", "six seven"], [""]]
    assert episodes.turns(0) == [(3, 5), (7, 8)]
    assert episodes.turns_taken(0) == 1
    assert episodes.present_turn(0) == ([1, 2, 3, 4, 5, 6, 7], [8])
    assert episodes.present_turn(1) == ([1], [])
    assert episodes.environment_rewards.tolist() == [0.5, 0.0]


def test_several_tokens_for_each_of_several_slots(episodes: Episodes) -> None:
    episodes.append(np.array([1, 0]), [[5, 6, 7], [4]], by_agent=False)
    assert episodes.input_ids[1, :4].tolist() == [1, 5, 6, 7]
    assert episodes.lengths.tolist() == [9, 4]
    assert episodes.response_mask[:, 8:].sum() == episodes.response_mask[1].sum() == 0


def test_a_new_episode_leaves_nothing_of_the_old(episodes: Episodes) -> None:
    episodes.potentials[0], episodes.token_rewards[0, 3] = 2.0, 1.5
    episodes.end(0, FinishReason.EOS)
    episodes.start(0, Prompt("new"), [5])
    fresh = Episodes(2, WIDTH, PAD, parts=2)
    fresh.start(0, Prompt("new"), [5])
    fresh.start(1, Prompt("q"), [1])
    assert json.dumps(vars(episodes), default=plainly) == json.dumps(vars(fresh), default=plainly)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_restore_takes_back_whatever_happened(data: st.DataObject) -> None:
    """A random past, a snapshot, a random step of some slots: all is as it was, in every array and list."""
    numbers = st.integers(0, 8)
    texts = st.lists(numbers, max_size=2)
    episodes = Episodes(3, 24, PAD, parts=2)
    for slot in range(3):
        episodes.start(slot, Prompt("p"), data.draw(st.lists(numbers, min_size=1, max_size=3)), data.draw(texts), "o")
        for _ in range(data.draw(st.integers(0, 3))):
            act(episodes, slot, data)
    slots = np.array(data.draw(st.lists(st.integers(0, 2), unique=True, min_size=1)))
    before = json.dumps(vars(episodes), default=plainly)
    snapshot = episodes.snapshot(slots)
    for slot in slots.tolist():
        act(episodes, slot, data)
        if data.draw(st.booleans()):
            episodes.end(slot, FinishReason.STOP)
    assert json.dumps(vars(episodes), default=plainly) != before
    episodes.restore(slots, snapshot)
    assert json.dumps(vars(episodes), default=plainly) == before


def act(episodes: Episodes, slot: int, data: st.DataObject) -> None:
    """A token of the agent's, what it earns, and perhaps a reply."""
    column = episodes.lengths[slot]
    episodes.append(one(slot), one(data.draw(st.integers(0, 8))), by_agent=True)
    for values in episodes.token_columns:
        values[slot, column] = data.draw(st.floats(-1, 1))
    episodes.potentials[slot] += data.draw(st.floats(-1, 1))
    if data.draw(st.booleans()):
        episodes.reply(slot, data.draw(st.lists(st.integers(0, 8), max_size=2)), "reply", data.draw(st.floats(-1, 1)))


def plainly(value: Any) -> Any:
    return (
        value.tolist() if isinstance(value, np.ndarray) else vars(value) if not hasattr(value, "text") else value.text
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_mask_of_handovers(steps: list[int]) -> None:
    """Against tokens that are written one by one, by turns, after the prompt and the opening."""
    steps = [1, *steps] if len(steps) % 2 else steps
    handovers, mask, agent = [], [], False
    for at, step in enumerate(steps):
        mask += [int(agent)] * step
        handovers.append(len(mask))
        agent = at % 2 == 1  # the first two are the prompt and the opening
    assert mask_of(handovers, len(mask) + 2) == [*mask, 1, 1]


FORMER = {
    "prompt": {"prompt": "p", "references": []},
    "token_ids": [1, 82, 80, 90],
    "response_length": 2,
    "playing": True,
    "finish_reason": None,
    "potentials": [0.0],
    "tokens": [[0.0, 0.0], [float("nan")] * 2, [float("nan")] * 2],
}
"""A slot as the release before saved it, in which all that followed the prompt was the agent's."""


def test_a_state_of_the_former_release_goes_on(byte_model: str) -> None:
    arguments = {"model": byte_model, "prompts": ["p"], "scorer": lambda texts, **_: [float(len(t)) for t in texts]}
    played, resumed = TextGenEnv(**arguments, max_new_tokens=4), TextGenEnv(**arguments, max_new_tokens=4)
    played.reset(seed=0)
    assert played.engine.episodes.input_ids[0, :2].tolist() == FORMER["token_ids"][:2]
    for action in FORMER["token_ids"][2:]:
        played.step(action)
    state = played.state_dict()
    state["engine"]["slots"] = [FORMER]
    resumed.load_state_dict(state)
    assert json.dumps(resumed.state_dict()) == json.dumps(played.state_dict())
    for action in (91, 92):
        assert_same(resumed.step(action), played.step(action))


@pytest.mark.parametrize("length", [-1, 5, 4, 10**9])
def test_a_former_state_that_does_not_fit_is_refused(byte_model: str, length: int) -> None:
    env = TextGenEnv(model=byte_model, prompts=["p"], scorer="distinct", max_new_tokens=4)
    env.reset(seed=0)
    state = env.state_dict()
    before = json.dumps(state)
    state["engine"]["slots"] = [FORMER | {"response_length": length}]
    with pytest.raises(ValueError, match="fit"):
        env.load_state_dict(state)
    assert json.dumps(env.state_dict()) == before


def test_an_abandoned_episode_can_be_saved(byte_model: str) -> None:
    """One that a wrapper cut has ended without a reason of ours."""
    arguments: dict[str, Any] = {
        "model": byte_model,
        "prompts": ["p"],
        "scorer": "distinct",
        "autoreset_mode": "Disabled",
    }
    env, other = TextGenVectorEnv(2, **arguments), TextGenVectorEnv(2, **arguments)
    env.reset(seed=0)
    env.step(np.array([80, 81]))
    env.abandon(np.array([1]))
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    assert json.dumps(other.state_dict()) == json.dumps(env.state_dict())
