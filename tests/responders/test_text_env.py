"""Environments of Gymnasium as responders: the same play as without language model, failures, states by replay."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from dialogues import play
from rooms import Moody, Rooms, spoken, understood
from tiny_models import byte_tokenizer, random_model

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.episode import Prompt
from textgen_env.responders import as_responder
from textgen_env.responders.text_env import TextEnvResponder
from textgen_env.testing import ResponderContract

PLAYED: dict[str, Any] = {"turn_strings": ["\n"], "max_new_tokens": 60, "max_turns": 8, "max_reply_tokens": 64}


class TestRooms(ResponderContract):
    texts = ("left", "?", "right", " left\n", "right")

    def make_responder(self) -> Any:
        return {"name": "text_env", "env": "rooms:Rooms", "act": {"left": "left", "right": "right"}, "penalty": 0.5}


class TestNumbers(ResponderContract):
    texts = ("0", "1", "two", "", "0")

    def make_responder(self) -> Any:
        return {"name": "text_env", "env": "rooms:NumberedRooms", "template": "\n{text}\n"}


class TestToyText(ResponderContract):
    """An environment of Gymnasium's own: the seed decides where one slips."""

    texts = ("0", "1", "2", "3", "1", "1", "2", "2")

    def make_responder(self) -> Any:
        arguments = {"is_slippery": True, "map_name": "4x4"}
        return {"name": "text_env", "env": "FrozenLake-v1", "arguments": arguments, "info": ["prob"]}


def direct(env: gym.Env, seed: int, actions: Any) -> tuple[str, list[tuple[Any, ...]]]:
    """The same environment without anything of this package."""
    first, _ = env.reset(seed=seed)
    return first, [env.step(action)[:4] for action in actions]


def test_it_is_played_as_it_is_played_directly(make: Any) -> None:
    env = make(TextEnvResponder(Rooms, arguments={"treasure": 5.0}), scorer=None, **PLAYED)
    for seed in range(6):
        _, info = env.reset(seed=seed)
        responder = env.engine.turns.responder
        commands = ["right"] * responder._envs[0].hidden
        opening, steps = direct(Rooms(treasure=5.0), responder._played[0].seed, commands)
        assert info["opening"] == opening
        for command, (observation, reward, terminated, _) in zip(commands, steps, strict=True):
            last = play(env, f" {command}\n")[-1]
            assert (last[4]["reply"], last[1], last[2]) == (observation, reward, terminated)
        assert last[2]
        assert last[4]["finish_reason"] == "environment"
        assert last[4]["score"] == 5.0 - 0.125 * len(commands)


def test_every_slot_has_an_environment_of_its_own(byte_model: str) -> None:
    venv = TextGenVectorEnv(
        8, model=byte_model, prompts=["p"], scorer=None, responder={"name": "text_env", "env": "rooms:Rooms"}, **PLAYED
    )
    _, infos = venv.reset(seed=0)
    assert len({*infos["opening"]}) > 3
    assert len({id(env) for env in venv.engine.turns.responder._envs.values()}) == 8


def test_a_horizon_is_a_truncation(make: Any) -> None:
    env = make(TextEnvResponder(Rooms, act=lambda text: text or None), scorer=None, **PLAYED | {"max_turns": 9})
    env.reset(seed=0)
    hidden = env.engine.turns.responder._envs[0].hidden
    there_and_back = ["right", "left"] if hidden == 3 else ["left", "right"]
    for turn in range(6):
        *_, truncated, info = play(env, f"{there_and_back[turn % 2]}\n")[-1]
    assert truncated
    assert info["finish_reason"] == "horizon"
    assert info["score"] == -0.75


@pytest.mark.parametrize(
    ("act", "said", "told"),
    [
        ({"left": "left"}, "up", "There is no action 'up'. There are: left."),
        (understood, "jump", "There is no action 'jump'."),
        ("rooms:understood", "jump", "There is no action 'jump'."),
        (lambda text: {"l": "left"}[text], "x", "'x'"),
    ],
)
def test_what_is_no_action_is_told_and_costs(make: Any, act: Any, said: str, told: str) -> None:
    env = make(TextEnvResponder(Rooms, act=act, penalty=0.25, template="<{text}>"), scorer=None, **PLAYED)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = play(env, f"{said}\n")[-1]
    assert (info["reply"], reward, terminated or truncated) == (f"<{told}>", -0.25, False)
    assert env.engine.turns.responder._envs[0].steps == 0


def test_numbers_and_observations_that_are_no_texts(make: Any) -> None:
    env = make({"name": "text_env", "env": "rooms:NumberedRooms", "observe": "rooms:spoken"}, scorer=None, **PLAYED)
    assert env.reset(seed=0)[1]["opening"] == " [0]"
    assert play(env, "1\n")[-1][4]["reply"] == " [1]"
    assert play(env, "7\n")[-1][4]["reply"] == "There is no action '7'."
    assert play(env, "right\n")[-1][4]["reply"] == "'right' is no number."
    assert spoken(3) == " [3]"


def test_an_environment_that_fails_is_no_score_and_is_replaced(make: Any) -> None:
    responder = TextEnvResponder(Rooms)
    env = make(responder, scorer=None, **PLAYED)
    env.reset(seed=0)
    broken = responder._envs[0]
    with pytest.warns(UserWarning, match="the environment failed in slot 0: RuntimeError: nobody can fly"):
        _, _, _, truncated, info = play(env, "fly\n")[-1]
    assert truncated
    assert (info["finish_reason"], "score" in info) == ("failed", False)
    env.reset(seed=0)
    assert responder._envs[0] is not broken
    assert play(env, "left\n")[-1][4]["reply"].startswith(" Room 3")
    paying = make(TextEnvResponder(Rooms, arguments={"treasure": float("nan")}), scorer=None, **PLAYED)
    paying.reset(seed=0)
    assert "paid nan" in play(paying, "left\n")[-1][4]["error"]


def test_behind_a_conversation_nothing_is_said_first() -> None:
    """Without `opening=False` the environment could not begin."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = LanguageModel.from_modules(random_model("llama", len(tokenizer)), tokenizer)
    chat = [{"role": "user", "content": "You are in room 0."}]
    arguments: dict[str, Any] = {"model": model, "prompts": [chat], "scorer": None, "max_new_tokens": 16}
    with pytest.raises(ValueError, match="make the opening a message of the prompt"):
        TextGenEnv(responder=TextEnvResponder(Rooms), **arguments).reset(seed=0)
    env = TextGenEnv(responder=TextEnvResponder(Rooms, opening=False), **arguments)
    assert env.reset(seed=0)[1]["opening"] == ""
    *_, info = env.step_tokens([*env.language_model.encode_plain("left"), env.language_model.end_token_id])
    assert info["reply"].startswith(" Room 3")


def test_a_prompts_column_has_the_options_of_reset(make: Any) -> None:
    env = make(
        TextEnvResponder(Rooms, options="start", info=["exits", "unknown"]),
        prompts=[{"prompt": "p", "start": {"room": 2}}],
        scorer=None,
        **PLAYED,
    )
    assert env.reset(seed=0)[1]["opening"].startswith(" Room 2")
    assert env.engine.turns.responder.info(0) == {"exits": ["left", "right"]}
    assert play(env, "left\n")[-1][4]["reply_info"] == {"exits": ["left", "right"]}


# --- states -----------------------------------------------------------------------------------------------------------


def test_episodes_are_saved_branched_copied_and_pickled(make: Any) -> None:
    """From the same place on, every way of going on hears the same."""
    arguments: dict[str, Any] = {"scorer": None, **PLAYED}
    env, other = (make(TextEnvResponder(Rooms, act=understood), **arguments) for _ in range(2))
    for seed in range(99):
        env.reset(seed=seed)
        if env.engine.turns.responder._envs[0].hidden == 1:  # not where we go
            break
    play(env, "go left\njump\ngo")
    state, branch = json.loads(json.dumps(env.state_dict())), json.loads(json.dumps(env.clone_state()))
    copied, unpickled = copy.deepcopy(env), pickle.loads(pickle.dumps(env.engine.turns.responder))
    expected = [step[1:] for step in play(env, " left\ngo right")]
    other.load_state_dict(state)
    assert [step[1:] for step in play(other, " left\ngo right")] == expected
    other.restore_state(branch)
    assert [step[1:] for step in play(other, " left\ngo right")] == expected
    assert [step[1:] for step in play(copied, " left\ngo right")] == expected
    (reply,) = unpickled.respond([0], ["go left\n"])
    assert (reply.text, reply.reward) == (expected[5][-1]["reply"], expected[5][0])


def test_an_environment_that_is_not_deterministic_is_found_out(make: Any) -> None:
    responder = TextEnvResponder(Moody)
    env = make(responder, scorer=None, **PLAYED)
    env.reset(seed=0)
    play(env, "left\n")
    state, playing = env.clone_state(), responder._envs[0]
    with pytest.raises(ValueError, match="answered otherwise when the same was played again"):
        env.restore_state(state)
    assert responder._envs[0] is playing
    with pytest.raises(ValueError, match="answered otherwise"):
        env.load_state_dict(env.state_dict())


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"seed": "1"}, TypeError), ({"texts": [3]}, TypeError), ({"options": 3}, TypeError), ({"more": 1}, ValueError)],
)
def test_states_that_are_none(change: dict[str, Any], kind: type) -> None:
    responder = TextEnvResponder(Rooms)
    responder.reset([0], [Prompt("p")], [1])
    before = responder.state_dict()
    for attempt in (
        lambda: responder.restore_state(0, before["0"] | change),
        lambda: responder.load_state_dict({"0": before["0"] | change}),
    ):
        with pytest.raises(kind, match="text_env"):
            attempt()
    assert responder.state_dict() == before


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"env": Rooms()}, TypeError, "what makes one, not a live environment"),
        ({"env": "rooms:Nothing"}, ValueError, "rooms has no 'Nothing'"),
        ({"env": "no_such_module:Env"}, ImportError, "cannot import no_such_module"),
        ({"env": "NoSuch-v0"}, gym.error.NameNotFound, "NoSuch"),
        ({"env": dict}, TypeError, "which is no environment of Gymnasium's kind"),
        ({"env": "CartPole-v1"}, None, ""),
        ({"env": "Pendulum-v1"}, TypeError, r"act= must say what action of Box"),
        ({"env": Rooms, "act": 3}, TypeError, "act=3 must be a function"),
        ({"env": Rooms, "observe": "text"}, ValueError, "observe='text' must be a function, or its place"),
        ({"env": Rooms, "penalty": -1}, ValueError, "penalty=-1 must be a finite number"),
        ({"env": Rooms, "template": "x"}, ValueError, "must be a text with '{text}' in it"),
        ({"env": Rooms, "opening": 1}, TypeError, "opening=1 must be True or False"),
        ({"env": Rooms, "info": "exits"}, TypeError, "info='exits' must be a list"),
    ],
)
def test_arguments_that_are_none(wrong: dict[str, Any], kind: Any, message: str) -> None:
    if kind is None:
        as_responder({"name": "text_env", **wrong})
        return
    with pytest.raises(kind, match=message):
        as_responder({"name": "text_env", **wrong})


def test_environments_are_closed() -> None:
    closed: list[int] = []

    class Closing(Rooms):
        def close(self) -> None:
            closed.append(1)
            raise RuntimeError("already gone")

    responder = TextEnvResponder(Closing)
    responder.reset([0, 1], [Prompt("p")] * 2, [1, 2])
    responder.close()
    assert closed == [1, 1]


# --- a real peer ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_textworld_is_played_as_it_is_played_directly(make: Any, tmp_path: Path) -> None:
    """A generated game by its walkthrough, and a command that nobody understands on the way."""
    textworld = pytest.importorskip("textworld")
    from textworld.generator import compile_game, make_game

    options = textworld.GameOptions()
    options.nb_rooms, options.nb_objects, options.quest_length, options.seeds = 2, 3, 3, 1234
    options.path = str(tmp_path / "game.z8")
    game = make_game(options)
    commands = ["dance wildly", *game.metadata["walkthrough"]]
    wanted = textworld.EnvInfos(feedback=True, admissible_commands=True)
    peer = textworld.start(compile_game(game, options), request_infos=wanted)
    transcript, scores, admitted = [peer.reset().feedback], [0], []
    for command in commands:
        state, score, done = peer.step(command)
        transcript.append(state.feedback)
        scores.append(score)
        admitted.append(list(state.admissible_commands))
    assert done
    described = {"env": "textgen_env.integrations.textworld:TextWorldEnv", "arguments": {"game": options.path}}
    env = make(
        {"name": "text_env", **described, "info": ["admissible_commands"]},
        scorer=None,
        **PLAYED | {"max_reply_tokens": 4000, "max_new_tokens": 400},
    )
    heard, paid, told = [env.reset(seed=0)[1]["opening"]], [], []
    for number, command in enumerate(commands):
        if number == 2:  # on another copy of the game
            env.restore_state(json.loads(json.dumps(env.clone_state())))
        _, reward, terminated, _, info = play(env, f"{command}\n")[-1]
        heard.append(info["reply"])
        paid.append(reward)
        told.append(info["reply_info"]["admissible_commands"])
    assert heard == transcript
    assert paid == [after - before for before, after in pairwise(scores)]
    assert told == admitted
    assert (terminated, info["score"]) == (True, scores[-1])
