"""Environments that answer back: turns, replies, ends, failures, and a plain-Python model of it all.

What trainers, wrappers and plug-ins make of such episodes is tested in ``test_responders_in_use.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from compare import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.responders import Reply, as_responder, register_responder, responder_names
from textgen_env.scorers import ScorerError

BOS, EOS = 1, 2


@pytest.fixture
def make(byte_model: str) -> Callable[..., TextGenEnv]:
    def made(responder: Any, **more: Any) -> TextGenEnv:
        arguments: dict[str, Any] = {"model": byte_model, "prompts": ["p"], "scorer": letters, "max_new_tokens": 12}
        return TextGenEnv(responder=responder, **arguments | more)

    return made


def letters(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def ids(env: Any, text: str) -> list[int]:
    """Tokens of a text; "$" is EOS."""
    tokens = [[EOS] if one == "$" else env.tokenizer.encode(one, add_special_tokens=False) for one in text]
    return [token for several in tokens for token in several]


def play(env: Any, text: str) -> list[tuple[Any, ...]]:
    """What each step returned; the episode must not end before the text does."""
    return [env.step(token) for token in ids(env, text)]


def row(observation: dict[str, Any]) -> tuple[list[int], list[int]]:
    length = observation["attention_mask"].sum()
    return observation["input_ids"][:length].tolist(), observation["response_mask"][:length].tolist()


class Scripted:
    """Answers from a list, the same for every slot; notes what it was asked."""

    def __init__(self, *replies: Any, opening: str = "") -> None:
        self.replies, self.opening = list(replies), opening
        self.asked: list[tuple[int, str]] = []
        self.begun: list[tuple[int, str, int]] = []
        self.turn: dict[int, int] = {}

    def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
        self.begun += [(slot, prompt.text, seed) for slot, prompt, seed in zip(slots, prompts, seeds, strict=True)]
        self.turn |= dict.fromkeys(slots, 0)
        return [self.opening] * len(slots)

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        self.asked += zip(slots, texts, strict=True)
        for slot in slots:
            self.turn[slot] += 1
        return [self.replies[self.turn[slot] - 1] for slot in slots]


class Saving(Scripted):
    """The same, with a state that can be kept."""

    def state_dict(self) -> dict[str, Any]:
        return {"turn": {str(slot): turn for slot, turn in self.turn.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.turn = {int(slot): turn for slot, turn in state["turn"].items()}


# --- turns ------------------------------------------------------------------------------------------------------------


def test_every_token_by_hand(make: Any) -> None:
    responder = Scripted("no", Reply("yes!", reward=0.5, info={"n": 1}), opening="hi")
    seen: list[Any] = []

    def scorer(completions: Any, **columns: Any) -> list[float]:
        seen.append((completions, columns["completion_ids"], columns["turns"]))
        return [2.0]

    env = make(responder, scorer=scorer, turn_strings=["?"], max_turns=3, max_reply_tokens=4)
    assert env.observation_space["input_ids"].shape == (64 + 12 + 3 * 4,)
    observation, info = env.reset(seed=0)
    assert row(observation) == ([BOS, *ids(env, "phi")], [0] * 4)
    assert info == {"prompt": "p", "opening": "hi"}

    steps = play(env, "a?b$c$")
    infos = [step[-1] for step in steps]
    expected = "phia?nob$yes!c$"
    assert row(steps[-1][0]) == ([BOS, *ids(env, expected)], [0] + [int(c) for c in "000110011000011"])
    assert [step[1] for step in steps] == [0, 0, 0, 0.5, 0, 2]
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert not any(step[3] for step in steps)
    assert [info.get("reply") for info in infos] == [None, "no", None, "yes!", None, None]
    assert [info.get("reply_info") for info in infos] == [None, None, None, {"n": 1}, None, None]
    assert infos[3]["reward_parts"] == {"score": 0.0, "environment": 0.5}
    assert responder.asked == [(0, "a?"), (0, "b")]
    turns = [("environment", "hi"), ("assistant", "a?"), ("environment", "no"), ("assistant", "b")]
    turns += [("environment", "yes!"), ("assistant", "c")]
    assert seen == [(["a?bc"], [ids(env, "a?b$c$")], [[{"role": role, "content": text} for role, text in turns]])]
    assert infos[-1] == {
        "reward_parts": {"score": 2.0, "environment": 0.0},
        "text": "a?bc",
        "transcript": "hia?nobyes!c",
        "prompt": "p",
        "finish_reason": "eos",
        "score": 2.5,
        "response_length": 6,
    }


def test_nothing_changes_without_a_responder(make: Any, byte_model: str) -> None:
    """The generator draws the prompt and nothing else, and no key is new."""
    env, generator = make(None), np.random.default_rng(np.random.SeedSequence(5))
    observation, info = env.reset(seed=5)
    generator.integers(1)
    assert env.np_random.bit_generator.state == generator.bit_generator.state
    assert observation["input_ids"].shape == (64 + 12,)
    assert info == {"prompt": "p"}
    last = play(env, "a$")[-1][-1]
    assert set(last) == {"reward_parts", "text", "prompt", "finish_reason", "score", "response_length"}
    assert set(last["reward_parts"]) == {"score"}
    assert "responder" not in env.state_dict()["engine"]


def test_seeds_come_from_the_slots_own_generator(make: Any) -> None:
    begun = []
    for seed in (3, 3, 4):
        responder = Scripted()
        make(responder, prompts=["p", "q"]).reset(seed=seed)
        begun.append(responder.begun[0])
    assert begun[0] == begun[1]
    assert begun[0][2] != begun[2][2]
    assert 0 <= begun[0][2] < 2**63


def test_strings_are_looked_for_in_the_present_turn_alone(make: Any) -> None:
    env = make(Scripted("b", "xy", "y"), stop_strings=["ab", "xyz"], turn_strings=["yz"], max_turns=4)
    env.reset(seed=0)
    steps = play(env, "a$")  # the reply would complete "ab"
    assert not steps[-1][2]
    steps = play(env, "$z")  # the agent's "z" would complete "xyz" and "yz"
    assert not steps[-1][2]
    assert "reply" not in steps[-1][-1]
    last = play(env, "ab")[-1]
    assert (last[2], last[-1]["finish_reason"], last[-1]["text"]) == (True, "stop", "az")


def test_a_stop_string_ends_the_episode_unanswered(make: Any) -> None:
    responder = Scripted("never")
    env = make(responder, stop_strings=["stop", "<eos>"], turn_strings=["p"])
    for text, reason in (("stop", "stop"), ("a$", "eos")):
        env.reset(seed=0)
        assert play(env, text)[-1][-1]["finish_reason"] == reason
    assert responder.asked == []


@pytest.mark.parametrize(
    ("reply", "text", "reason", "terminated"),
    [
        (None, "a$", "eos", True),
        (None, "a?", "stop", True),
        (Reply("bye", terminated=True), "a$", "environment", True),
        (Reply("", truncated=True), "a?", "horizon", False),
    ],
)
def test_the_environment_ends_it(make: Any, reply: Any, text: str, reason: str, terminated: bool) -> None:
    env = make(Scripted(reply), turn_strings=["?"])
    env.reset(seed=0)
    observation, reward, *flags, info = play(env, text)[-1]
    said = reply.text if reply else ""
    assert flags == [terminated, not terminated]
    assert (info["finish_reason"], info["transcript"]) == (reason, text.removesuffix("$") + said)
    assert reward == info["score"] == len(text.removesuffix("$"))  # every such end is scored
    assert row(observation)[1] == [0, 0, 1, 1] + [0] * len(said)
    with pytest.raises(Exception, match="no episode running"):
        env.step(5)


def test_the_last_turn_is_not_answered(make: Any) -> None:
    responder = Scripted("r", "r", "r")
    env = make(responder, max_turns=2, turn_strings=["?"])
    env.reset(seed=0)
    assert not play(env, "a$")[-1][2]
    assert play(env, "b?")[-1][-1]["finish_reason"] == "stop"
    assert len(responder.asked) == 1


@pytest.mark.parametrize("limit", ["terminate", "truncate"])
def test_the_length_limit_counts_the_agents_tokens(make: Any, limit: str) -> None:
    env = make(Scripted("long reply", "another"), max_new_tokens=4, max_turns=4, length_limit=limit)
    env.reset(seed=0)
    assert not any(step[2] or step[3] for step in play(env, "ab$"))
    *_, terminated, truncated, info = play(env, "c")[-1]
    assert (terminated, truncated) == (limit == "terminate", limit == "truncate")
    assert (info["finish_reason"], info["response_length"], info["text"]) == ("length", 4, "abc")


@pytest.mark.parametrize(("reply", "reason"), [("r", "length"), (None, "eos"), (Reply(terminated=True), "environment")])
def test_a_turn_that_ends_with_the_last_token_is_answered(make: Any, reply: Any, reason: str) -> None:
    env = make(Scripted(reply), max_new_tokens=3)
    env.reset(seed=0)
    assert play(env, "ab$")[-1][-1]["finish_reason"] == reason


def test_minimum_of_tokens_counts_the_agents(make: Any) -> None:
    env = make(Scripted("a long reply"), min_new_tokens=3, turn_strings=["?"])
    env.reset(seed=0)
    play(env, "a?")
    assert not env.action_masks()[EOS]
    play(env, "b")
    assert env.action_masks()[EOS]


def test_an_environment_that_pays_needs_no_scorer(make: Any) -> None:
    env = make(Scripted(Reply("a", reward=1.5), Reply("b", reward=-0.5, terminated=True)), scorer=None)
    env.reset(seed=0)
    steps = play(env, "x$y$")
    assert [step[1] for step in steps] == [0, 1.5, 0, -0.5]
    assert steps[-1][-1]["score"] == 1.0
    assert steps[-1][-1]["reward_parts"] == {"score": 0.0, "environment": -0.5}
    with pytest.raises(TypeError, match="needs scorer"):
        make(None, scorer=None)


# --- replies as tokens ------------------------------------------------------------------------------------------------


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


# --- failures ---------------------------------------------------------------------------------------------------------


def failing(text: str) -> str:
    if "!" in text:
        raise TimeoutError("no answer in 5 s")
    return "fine"


def two(make: Any, responder: Any, **more: Any) -> TextGenVectorEnv:
    single = make(responder, **more)
    arguments = {"model": single.language_model, "prompts": ["p"], "scorer": letters, "max_new_tokens": 12}
    return TextGenVectorEnv(2, autoreset_mode="Disabled", responder=responder, **arguments | more)


class Batched(Scripted):
    """Hands on a failure as it is told to: raised for all, or returned in the slot's place."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises

    def respond(self, slots: Any, texts: Any) -> list[Any]:
        if self.raises:
            raise TimeoutError("no answer in 5 s")
        return [TimeoutError("no answer in 5 s") if "!" in text else "fine" for text in texts]


@pytest.mark.parametrize(
    ("responder", "alone"), [(failing, True), (Batched(raises=False), True), (Batched(raises=True), False)]
)
def test_a_failure_is_no_score(make: Any, responder: Any, alone: bool) -> None:
    envs = two(make, responder, scorer=letters)
    envs.reset(seed=0)
    for a, b in zip(ids(envs, "x!"), ids(envs, "xy"), strict=True):
        envs.step(np.array([a, b]))
    with pytest.warns(UserWarning, match="the environment failed in slot 0: TimeoutError: no answer in 5 s"):
        _, rewards, terminated, truncated, infos = envs.step(np.array([EOS, EOS]))
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.tolist() == [False, False]
    assert truncated.tolist() == [True, not alone]
    assert (infos["finish_reason"][0], infos["error"][0]) == ("failed", "TimeoutError: no answer in 5 s")
    assert "score" not in infos
    assert infos["text"][0] == "x!"
    if alone:  # the other goes on, and is scored
        assert infos["reply"][1] == "fine"
        *_, infos = [envs.step(np.array([-1, token])) for token in ids(envs, "z")][-1]
        assert "finish_reason" not in infos


def test_a_dense_scorer_is_not_asked_about_a_failure(make: Any) -> None:
    asked: list[list[str]] = []

    def dense(completions: Any, **_: Any) -> list[float]:
        asked.append(list(completions))
        return letters(completions)

    dense.dense = True  # type: ignore[attr-defined]
    env = make(failing, scorer=dense)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="failed"):
        steps = play(env, "a!$")
    assert asked == [["a"], ["a!"]]
    assert [step[1] for step in steps] == [1.0, 1.0, 0.0]
    assert "score" not in steps[-1][-1]


def test_an_environment_that_fails_to_begin(make: Any) -> None:
    class Broken(Scripted):
        def reset(self, slots: Any, prompts: Any, seeds: Any) -> list[str]:
            raise ConnectionError("refused")

    env = make(Broken(), stop_strings=["a"])
    with pytest.warns(UserWarning, match="failed in slot 0: ConnectionError: refused"):
        _, info = env.reset(seed=0)
    assert info == {"prompt": "p", "opening": ""}
    _, reward, terminated, truncated, info = play(env, "a")[-1]
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["finish_reason"], info["error"]) == ("failed", "ConnectionError: refused")
    assert "score" not in info
    env.unwrapped.engine.turns.responder = as_responder("echo")
    env.reset(seed=0)
    assert not play(env, "b$")[-1][3]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (5, TypeError, "respond returned 5; it must be a list"),
        ("no", TypeError, "respond returned 'no'; it must be a list"),
        (["a"] * 3, ValueError, r"respond returned 3 entries for 1 slots: \[0\]"),
        ([5], TypeError, "respond returned 5 for slot 0; it must be a Reply, a text, None"),
        ([Reply(5)], TypeError, "text=5 is of the wrong type, int"),
        ([Reply("a", reward=float("nan"))], ValueError, "reward=nan must be a finite number"),
        ([Reply("a", reward="1")], TypeError, "reward='1' is of the wrong type, str"),
        ([Reply("a", terminated=1)], TypeError, "terminated=1 is of the wrong type, int"),
        ([Reply("a", terminated=True, truncated=True)], ValueError, "both True"),
        ([Reply("a", info=[1])], TypeError, "info=.* is of the wrong type, list"),
    ],
)
def test_what_is_no_reply_moves_no_slot(make: Any, answers: Any, error: Any, message: str) -> None:
    class Wrong(Saving):
        def respond(self, slots: Any, texts: Any) -> Any:
            return answers

    env = make(Wrong())
    env.reset(seed=0)
    play(env, "a")
    before = json.dumps(env.state_dict())
    for _ in range(2):
        with pytest.raises(error, match=message):
            env.step(EOS)
        assert json.dumps(env.state_dict()) == before
    assert play(env, "b")[-1][0]["response_mask"].sum() == 2  # another action is welcome: nobody has answered


@pytest.mark.parametrize(("openings", "message"), [([5], "reset returned 5 for slot 0"), (["a", "b"], "2 entries")])
def test_what_is_no_opening(make: Any, openings: Any, message: str) -> None:
    class Wrong(Scripted):
        def reset(self, slots: Any, prompts: Any, seeds: Any) -> Any:
            return openings

    with pytest.raises((TypeError, ValueError), match=message):
        make(Wrong()).reset(seed=0)


def test_a_turn_is_answered_once_however_often_the_step_is_taken(make: Any) -> None:
    """A scorer fails after the reply: no slot moves, the responder is not asked again, another action is refused."""
    broken = [True]

    def scorer(completions: Any, **_: Any) -> list[float]:
        if broken[0]:
            raise RuntimeError("down")
        return letters(completions)

    replies = [Reply("more", reward=0.25), Reply("end", reward=0.5, terminated=True)]
    responder, untroubled = Saving(*replies), Saving(*replies)
    envs, others = two(make, responder, scorer=scorer), two(make, untroubled, scorer=letters)
    envs.reset(seed=0), others.reset(seed=0)
    first = np.array([EOS, ids(envs, "a")[0]])
    for env in (envs, others):
        env.step(first)
    before, asked = envs.engine.episodes.observation(), list(responder.asked)
    ending = np.array([EOS, EOS])  # slot 0 ends with a score, slot 1 is answered and goes on
    for _ in range(3):
        with pytest.raises(ScorerError, match="down"):
            envs.step(ending)
        assert all((envs.engine.episodes.observation()[key] == before[key]).all() for key in before)
    assert responder.asked == [*asked, (0, ""), (1, "a")]
    with pytest.raises(ValueError, match=r"slot 1, action 80: the environment has already answered action 2"):
        envs.step(np.array([EOS, 80]))
    with pytest.raises(RuntimeError, match=r"slots \[0, 1\] have an answer .* no step has taken up"):
        envs.state_dict()
    broken[0] = False
    envs.step(np.array([-1, EOS]))  # one of them first
    result, expected = envs.step(np.array([EOS, 80])), others.step(ending)
    others.step(np.array([-1, 80]))
    assert responder.asked == untroubled.asked
    assert result[1][0] == expected[1][0] == 0.5
    assert json.dumps(envs.state_dict()) == json.dumps(others.state_dict())


def test_reset_drops_an_answer_that_no_step_took_up(make: Any) -> None:
    def scorer(completions: Any, **_: Any) -> list[float]:
        raise RuntimeError("down")

    responder = Saving(None, None)
    env = make(responder, scorer=scorer)
    env.reset(seed=0)
    with pytest.raises(ScorerError):
        env.step(EOS)
    env.reset(seed=0)
    play(env, "a")
    assert env.state_dict()["engine"]["responder"] == {"turn": {"0": 0}}


# --- saved states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_resume_in_the_middle_of_a_turn(make: Any, kl_coef: float) -> None:
    """To the last bit; with KL as well as a cache that is filled at once can tell the same log-probabilities."""
    arguments: dict[str, Any] = {"turn_strings": ["?"], "max_turns": 4, "max_reply_tokens": 8, "kl_coef": kl_coef}
    replies = ["one", Reply("", reward=0.5), Reply("three", reward=0.25), "never"]
    whole_text = "a?b$cd?ef$"
    for cut in range(len(whole_text)):
        env, other = make(Saving(*replies, opening="o"), **arguments), make(Saving(*replies), **arguments)
        env.reset(seed=0)
        play(env, whole_text[:cut])
        other.load_state_dict(json.loads(json.dumps(env.state_dict())))
        ours, theirs = play(env, whole_text[cut:]), play(other, whole_text[cut:])
        assert_same(tuple(ours), tuple(theirs))
        if not kl_coef:
            assert json.dumps(ours, default=np.ndarray.tolist) == json.dumps(theirs, default=np.ndarray.tolist)
            assert json.dumps(env.state_dict()) == json.dumps(other.state_dict())
        assert ours[-1][-1]["score"] == 0.75 + len("a?bcd?ef")


def test_an_environment_that_cannot_be_saved_says_so(make: Any) -> None:
    env = make(Scripted("a"))
    env.state_dict()
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"Scripted.*has no state_dict.*implement state_dict\(\) and load_state_dict"):
        env.state_dict()
    plain = make(lambda text: "a")  # a function of a text keeps nothing
    plain.reset(seed=0)
    plain.state_dict()


def test_a_state_that_the_responder_refuses_changes_nothing(make: Any) -> None:
    env = make(Saving("a", "b"))
    env.reset(seed=0)
    before = env.state_dict()
    state = json.loads(json.dumps(before))
    state["engine"]["responder"] = {"turn": "?"}
    with pytest.raises(ValueError, match=r"\['responder'\]=.* is refused by responder"):
        env.load_state_dict(state)
    assert json.dumps(env.state_dict()) == json.dumps(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handovers", [2, 2, 4]),
        ("handovers", [2, 2, 3, 5]),
        ("handovers", [2, 2, 4, 3]),
        ("response_mask", [0, 0, 1, 1, 1]),
        ("environment_texts", [""]),
        ("environment_texts", ["", 5]),
        ("environment_reward", float("inf")),
    ],
)
def test_a_state_that_does_not_fit_itself(make: Any, key: str, value: Any) -> None:
    env = make(Saving("r", "s"))
    env.reset(seed=0)
    play(env, "a$")
    before = json.dumps(env.state_dict())
    state = json.loads(before)
    state["engine"]["slots"][0][key] = value
    with pytest.raises((TypeError, ValueError), match=r"slots'\]\[0\]"):
        env.load_state_dict(state)
    assert json.dumps(env.state_dict()) == before


def test_states_of_other_limits_are_refused(make: Any) -> None:
    state = make("echo", max_turns=3).state_dict()
    for other in (make("echo", max_turns=4), make(None)):
        with pytest.raises(ValueError, match="made_with"):
            other.load_state_dict(state)


# --- the door ---------------------------------------------------------------------------------------------------------


def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark


shouting = as_responder(shout)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("echo", "a"),
        ({"name": "echo", "template": "<{text}>"}, "<a>"),
        (shout, "A!"),
        (shouting, "A!"),
        (f"{__name__}:shout", "A!"),
        ({"name": f"{__name__}:shout", "mark": "?"}, "A?"),
        (f"{__name__}:shouting", "A!"),
    ],
)
def test_the_ways_to_name_one(spec: Any, said: str) -> None:
    assert as_responder(spec).respond([0], ["a"]) == [said]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("ecko", ValueError, "'ecko' is unknown; it must be one of .*echo.*Did you mean 'echo'"),
        ({"template": "x"}, ValueError, 'must have a "name"'),
        ({"name": "echo", "volume": 3}, TypeError, "'echo' with .*volume"),
        ({"name": "echo", "template": "x"}, ValueError, "template='x' must be a text with '{text}'"),
        ("no_such_module:thing", ImportError, "cannot import no_such_module"),
        (f"{__name__}:nothing", ValueError, "has no 'nothing'"),
        ({"name": f"{__name__}:shouting", "mark": "?"}, TypeError, "takes no arguments"),
        (Scripted, TypeError, "is a class, which answers nothing"),
        (5, TypeError, "must be a name, a mapping, a function"),
    ],
)
def test_what_is_no_responder(make: Any, spec: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(spec)


def test_an_object_without_reset_is_told_what_to_add(make: Any) -> None:
    class Half:
        def respond(self, slots: Any, texts: Any) -> list[str]:
            return list(texts)

    with pytest.raises(TypeError, match=r"no reset\(slots, prompts, seeds\)"):
        make(Half())


def test_registered_names() -> None:
    register_responder("shout-test", f"{__name__}:shout")
    register_responder("shout-test", f"{__name__}:shout")
    assert "shout-test" in responder_names()
    assert as_responder("shout-test").respond([0], ["a"]) == ["A!"]
    for name, location, message in [
        ("echo", "a:b", "'echo' stands for"),
        ("a:b", "a:b", "without a colon"),
        ("new", "nowhere", "module:attribute"),
    ]:
        with pytest.raises(ValueError, match=message):
            register_responder(name, location)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"max_turns": 0}, ValueError, "max_turns=0 must be at least 1"),
        ({"max_turns": None}, TypeError, "max_turns=None must be an integer"),
        ({"max_reply_tokens": 0}, ValueError, "max_reply_tokens=0 must be at least 1"),
        ({"turn_strings": "?"}, TypeError, "turn_strings='.' must be a list of texts"),
        ({"turn_strings": [""]}, ValueError, "turn_strings.0.='' must be a text that is not empty"),
        ({"responder": None, "turn_strings": ["?"]}, ValueError, "turn_strings=.* but nobody answers"),
        ({"max_turns": 9, "kl_coef": 0.1}, ValueError, "576 for replies .* exceed the 256 positions"),
        ({"max_reply_tokens": 10**9}, ValueError, "max_turns=4, max_reply_tokens=1000000000 .* GiB"),
        ({"prompts": [{"prompt": "p", "turns": 3}]}, ValueError, "column 'turns'"),
    ],
)
def test_arguments_out_of_range(make: Any, more: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**{"responder": "echo", **more})


def test_a_scorer_with_a_part_of_that_name_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="part named 'environment'"):
        make("echo", scorer={"sum": {"environment": "distinct", "b": "repetition"}})


# --- a plain model of the whole ---------------------------------------------------------------------------------------


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
