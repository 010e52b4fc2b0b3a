"""Every argument of the environments against values that are none: the error names the argument and shows the value."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from compare import assert_same
from gymnasium.error import ResetNeeded

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.notices import shown

EOS = 2
NAN, INF, HUGE = float("nan"), float("inf"), 10**9


def count_letters(completions, **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def arguments(byte_model: str) -> dict[str, Any]:
    return {"model": byte_model, "prompts": ["one", "two"], "scorer": count_letters, "max_new_tokens": 6}


@pytest.fixture(params=[TextGenEnv, TextGenVectorEnv])
def make(request: pytest.FixtureRequest, arguments: dict[str, Any]) -> Any:
    return lambda **more: request.param(**arguments | more)


CONSTRUCTOR: dict[str, tuple[list[Any], list[Any]]] = {
    # argument: values that give a TypeError, values that give a ValueError
    "model": ([None, 5, True, b"tiny", ["tiny"], {}, torch.nn.Linear(2, 2), LanguageModel], ["", " "]),
    "reference": ([5, b"tiny", ["tiny"]], [""]),
    "prompts": ([5, 1.5, None], []),
    "scorer": ([None], []),
    "kl_coef": (["0.1", None, True, [0.1], 1j, np.array([0.1])], [NAN, INF, -0.1, 10**400]),
    "kl_estimator": ([None, 1, ["k1"], b"k1"], ["K1", "", "k4"]),
    "max_prompt_tokens": (["64", None, True, 8.0, NAN, [8], np.bool_(True)], [0, -1, HUGE, 10**30]),
    "max_new_tokens": (["64", None, True, 8.0, NAN, [8], torch.tensor([1, 2])], [0, -1, HUGE, 10**30]),
    "min_new_tokens": (["1", None, True, 1.0, [1]], [-1, 7, HUGE]),
    "stop_strings": (
        [5, "END", b"END", {"a"}, {"a": 1}, None, (x for x in "ab"), [1], [None], [b"a"], [["a"]]],
        [[""], ["\ud800"]],
    ),
    "forbidden_tokens": (
        [5, "<pad>", b"ab", {1}, {1: 2}, None, iter([1]), [1.5], [1.0], [True], [None], [[1]], [b"a"], np.array([1.5])],
        [[-1], [259], [HUGE], ["<nope>"], [""], range(259)],
    ),
    "reference_top_p": (["0.5", None, True, [0.5]], [0, -0.1, 1.5, NAN, INF]),
    "reference_top_k": (["5", None, True, [5], 5.0], [-1]),
    "length_limit": ([None, 5, ["terminate"], b"truncate"], ["stop", ""]),
    "truncation": ([None, 5, ["left"], b"left"], ["right", ""]),
    "temperature": (["1", None, True, [1.0], 1j], [0, -1, NAN, INF, 1e-39, 1e39, 10**400]),
    "device": ([None, 0, True, ["cpu"]], ["abacus", "", "meta"]),
    "dtype": ([None, 32, ["float32"], np.float32], ["float8", "", torch.int64]),
    "render_mode": ([5, True, ["ansi"], b"ansi", np.array(["ansi"])], ["ascii", ""]),
}
VECTOR: dict[str, tuple[list[Any], list[Any]]] = {
    "num_envs": ([], [0, -2, 1.5, True, "2", None, [2], HUGE, 10**30]),
    "autoreset_mode": ([None, 5, ["SameStep"], True], ["always", ""]),
}
BAD = [
    pytest.param(name, value, error, id=f"{name}-{type(value).__name__}-{index}")
    for name, groups in CONSTRUCTOR.items()
    for error, values in zip((TypeError, ValueError), groups, strict=True)
    for index, value in enumerate(values)
]
BAD_VECTOR = [
    pytest.param(name, value, error, id=f"{name}-{type(value).__name__}-{index}")
    for name, groups in VECTOR.items()
    for error, values in zip((TypeError, ValueError), groups, strict=True)
    for index, value in enumerate(values)
]


def check_refusal(make: Any, name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        make(**{name: value})
    assert type(caught.value) is error
    message = str(caught.value)
    assert name in message
    listed = [*value[:1], list(value)] if isinstance(value, (list, range, np.ndarray)) else []
    assert any(show in message for one in [value, *listed] for show in (shown(one), str(one))), message
    assert len(message) < 700


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_constructor(make: Any, name: str, value: Any, error: type[Exception]) -> None:
    if value is None and name in ("prompts", "scorer"):
        with pytest.raises(TypeError, match=f"needs {name}: "):
            make(**{name: None})
    else:
        check_refusal(make, name, value, error)


@pytest.mark.parametrize(("name", "value", "error"), BAD_VECTOR)
def test_constructor_of_the_vector_env(
    arguments: dict[str, Any], name: str, value: Any, error: type[Exception]
) -> None:
    check_refusal(lambda **more: TextGenVectorEnv(**arguments | more), name, value, error)


def test_unusual_values_that_are_right(make: Any) -> None:
    env = make(
        kl_coef=Fraction(1, 4),
        temperature=np.float32(0.5),
        max_new_tokens=np.int64(4),
        forbidden_tokens=np.array([0, 1]),
        stop_strings=("a", "b"),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert (env.kl_coef, env.temperature, env.max_new_tokens) == (0.25, 0.5, 4)
    assert np.flatnonzero(~np.atleast_2d(env.action_masks())[0]).tolist() == [0, 1]
    env.reset(seed=np.int64(3))


def test_too_large_says_what_would_fit(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens=1000000000 .* GiB .*reads at most 256 tokens"):
        TextGenEnv(**arguments | {"max_new_tokens": HUGE})
    with pytest.raises(ValueError, match=r"num_envs=1000000000 .* at most \d+ slots would fit"):
        TextGenVectorEnv(HUGE, **arguments)


def test_errors_of_the_reference_speak_of_the_reference(arguments: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError, match="reference: unknown name 'nope'") as caught:
        TextGenEnv(**arguments, reference="nope")
    assert "model" not in str(caught.value).split("known:")[0]
    with pytest.raises(FileNotFoundError, match="model: .*'/nowhere'"):
        TextGenEnv(**arguments | {"model": "/nowhere"})
    with pytest.raises(TypeError, match="LanguageModel.from_modules"):
        TextGenEnv(**arguments | {"model": torch.nn.Linear(2, 2)})


# --- reset ------------------------------------------------------------------------------------------------------------

SEEDS = [("x", TypeError), (1.0, TypeError), (True, TypeError), (NAN, TypeError), (-1, ValueError), ({}, TypeError)]
OPTIONS = [
    (5, TypeError, "options=5"),
    ("prompt", TypeError, "options='prompt'"),
    (["prompt"], TypeError, "options="),
    ({"promt": "a"}, ValueError, "'promt'"),
    ({1: 2, "x": 3}, ValueError, "'1', 'x'"),
    ({"prompt": ""}, ValueError, r"options\['prompt'\]"),
    ({"prompt": "  "}, ValueError, r"options\['prompt'\]"),
    ({"prompt": 1.0}, TypeError, r"options\['prompt'\]=1.0"),
    ({"prompt": True}, TypeError, r"options\['prompt'\]=True"),
    ({"prompt": b"a"}, TypeError, r"options\['prompt'\]=b'a'"),
    ({"prompt": 2}, IndexError, r"options\['prompt'\]=2"),
    ({"prompt": -1}, IndexError, r"options\['prompt'\]=-1"),
    ({"prompt": {}}, ValueError, r"options\['prompt'\]"),
    ({"prompt": {"prompt": 5}}, TypeError, r"options\['prompt'\] .*5"),
    ({"prompt": {"prompt": "a", "references": 5}}, TypeError, r"options\['prompt'\] .*5"),
    ({"prompt": {"prompt": "a", "references": [5]}}, TypeError, r"options\['prompt'\] .*5"),
]


@pytest.mark.parametrize(("seed", "error"), SEEDS)
def test_reset_with_a_bad_seed(make: Any, seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seed="):
        make().reset(seed=seed)


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_reset_with_bad_options_changes_nothing(make: Any, options: Any, error: type[Exception], message: str) -> None:
    env, other = make(), make()
    for one in (env, other):
        one.reset(seed=0)
    before = copy.deepcopy(env.state_dict())
    with pytest.raises(error, match=message):
        env.reset(seed=5, options=options)
    assert_same(env.state_dict(), before)
    assert_same(env.reset(seed=None), other.reset(seed=None))


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        ([1], ValueError, r"seed=\[1\] must be one integer, or one for each"),
        ([1, 2.5], TypeError, r"seed\[1\]=2.5"),
        ([1, True], TypeError, r"seed\[1\]=True"),
        ([-1, 2], ValueError, r"seed\[0\]=-1"),
        (np.array([1.5, 2]), TypeError, r"seed\[0\]="),
    ],
)
def test_reset_with_a_bad_list_of_seeds(
    arguments: dict[str, Any], seed: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TextGenVectorEnv(2, **arguments).reset(seed=seed)


@pytest.mark.parametrize("mask", [True, [True, False], None, 5, np.array([1, 0]), np.ones(3, bool), np.zeros(2, bool)])
def test_bad_reset_mask(arguments: dict[str, Any], mask: Any) -> None:
    with pytest.raises(ValueError, match=r"options\['reset_mask'\]"):
        TextGenVectorEnv(2, **arguments).reset(options={"reset_mask": mask})


# --- step -------------------------------------------------------------------------------------------------------------

ACTIONS = [
    (3.0, TypeError),
    (3.7, TypeError),
    (NAN, TypeError),
    (None, TypeError),
    (True, TypeError),
    ("3", TypeError),
    (b"3", TypeError),
    (1j, TypeError),
    ({}, TypeError),
    (np.float64(3), TypeError),
    (-2, ValueError),
    (259, ValueError),
    (2**40, ValueError),
    (2**64 - 1, ValueError),
    (2**80, ValueError),
    (np.uint64(2**63 + 5), ValueError),
]


@pytest.mark.parametrize(("action", "error"), ACTIONS)
def test_bad_action_moves_nothing(arguments: dict[str, Any], action: Any, error: type[Exception]) -> None:
    single, several = TextGenEnv(**arguments), TextGenVectorEnv(2, **arguments)
    for env, given in ((single, action), (several, [action, action])):
        env.reset(seed=0)
        before = copy.deepcopy(env.state_dict())
        with pytest.raises(error, match="action") as caught:
            env.step(given)
        assert shown(action) in str(caught.value) or str(action) in str(caught.value)
        assert_same(env.state_dict(), before)


@pytest.mark.parametrize("action", [[3], np.array([3]), (), [[3], [1, 2]], "abc"[:0] or [3, 4]])
def test_action_of_another_shape(arguments: dict[str, Any], action: Any) -> None:
    env = TextGenEnv(**arguments)
    env.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match="action="):
        env.step(action)


@pytest.mark.parametrize(
    "actions", [3, [3], [3, 4, 5], [[3, 4]], [[3], [4, 5]], None, "34", {3, 4}, [3, None], [3, 4.5]]
)
def test_actions_of_another_shape_or_type(arguments: dict[str, Any], actions: Any) -> None:
    env = TextGenVectorEnv(2, **arguments)
    env.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match="actions"):
        env.step(actions)


def test_actions_of_every_integer_kind(arguments: dict[str, Any]) -> None:
    env = TextGenEnv(**arguments | {"max_new_tokens": 8})
    env.reset(seed=0)
    for action in (80, np.int64(80), np.uint8(80), np.array(80), torch.tensor(80)):
        assert env.step(action)[0]["response_mask"].sum() > 0


def test_before_reset_and_after_close(make: Any) -> None:
    env = make(render_mode="ansi")
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(80 if isinstance(env, TextGenEnv) else [80])
    assert env.render() is not None
    env.close()
    env.close()
    env.reset(seed=0)


# --- policies and β ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0.1", None, True, NAN, INF, -1, [0.1], 10**400])
def test_coefficient_set_to_a_bad_value(make: Any, value: Any) -> None:
    env = make(kl_coef=0.25)
    with pytest.raises((TypeError, ValueError), match="kl_coef="):
        env.kl_coef = value
    assert env.kl_coef == 0.25


@pytest.mark.parametrize("policy", [5, "tiny", [1], {}, 0.5, True])
def test_binding_what_is_no_policy(make: Any, policy: Any) -> None:
    with pytest.raises(TypeError, match="policy="):
        make(kl_coef=0.1).bind_policy(policy)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "logits",
        {},
        [None],
        (1, "a"),
        1.0,
        [],
        np.zeros(5),
        torch.zeros(3, 259),
        torch.zeros(259, dtype=torch.bool),
    ]
    + [
        torch.zeros(259, dtype=torch.complex64),
        np.array(["a"] * 259),
        [[0.0], [0.0, 1.0]],
        object(),
        torch.full((259,), NAN),
    ],
)
def test_policy_that_answers_no_logits(make: Any, answer: Any) -> None:
    env = make(kl_coef=0.1)
    env.reset(seed=0)
    before = copy.deepcopy(env.state_dict())
    env.bind_policy(lambda observation: answer)
    with pytest.raises((TypeError, ValueError), match="the bound policy returned"):
        env.step(80 if isinstance(env, TextGenEnv) else [80])
    assert_same(env.state_dict(), before)


def test_policy_may_answer_in_many_forms(arguments: dict[str, Any]) -> None:
    logits = torch.linspace(-1, 1, 264)
    answers = [logits, logits.numpy(), logits.tolist(), logits.double(), logits.clone().requires_grad_()]
    rewards = []
    for answer in answers:
        env = TextGenEnv(**arguments | {"kl_coef": 0.1})
        env.bind_policy(lambda observation, answer=answer: answer)
        env.reset(seed=0)
        rewards.append(env.step(80)[1])
    assert rewards == pytest.approx([rewards[0]] * len(answers))


def test_binding_a_model_of_another_vocabulary(make: Any) -> None:
    with pytest.raises(ValueError, match="policy='tiny' has another vocabulary"):
        make(kl_coef=0.1).bind_policy(LanguageModel("tiny"))


# --- saved states -----------------------------------------------------------------------------------------------------


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry of a state, but into the generators' own and what tells environments apart."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if path[-1:] in (("generators",), ("made_with",), ("prompt",), ("scorer",)):
        inside = ()
    return [found for key, one in inside for found in [(*path, key), *paths(one, (*path, key))]]


def changed(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return state


def without(state: Any, path: tuple[Any, ...]) -> Any:
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return state


@pytest.fixture
def played(make: Any) -> Any:
    env = make(kl_coef=0.25)
    env.reset(seed=0)
    env.step(80 if isinstance(env, TextGenEnv) else [80])
    return env


def test_state_with_a_missing_entry_is_refused_whole(played: Any, make: Any) -> None:
    state = json.loads(json.dumps(played.state_dict()))
    env = make()
    env.reset(seed=1)
    before = copy.deepcopy(env.state_dict())
    optional = ("made_with", "scorer")
    for path in paths(state):
        if isinstance(path[-1], str) and path[-1] not in optional and "made_with" not in path:
            with pytest.raises(ValueError, match=f"'?{path[-1]}'?"):
                env.load_state_dict(without(state, path))
            assert_same(env.state_dict(), before)


def test_state_with_a_wrong_value_is_refused_whole(played: Any, make: Any) -> None:
    state = json.loads(json.dumps(played.state_dict()))
    env = make()
    env.reset(seed=1)
    before = copy.deepcopy(env.state_dict())
    for path in paths(state):
        for value in (None, "x", -5, 10**9, [], {}, True, 1.5):
            if "made_with" in path[:-1] or harmless(state, path, value):
                continue
            with pytest.raises((TypeError, ValueError)) as caught:
                env.load_state_dict(changed(state, path, value))
            told = str(caught.value)
            assert str(path[-1]) in told or "fit the rest" in told or "booleans" in told, (path, value)
            assert_same(env.state_dict(), before)


def harmless(state: Any, path: tuple[Any, ...], value: Any) -> bool:
    """What a state may well hold at this place."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if path[-1] == "kl_coef":
        return number and value >= 0
    if path[-2:-1] in (("terminated",), ("truncated",)):
        return value is True
    if number and isinstance(path[-1], int) and ("tokens" in path or "potentials" in path):
        return True
    for key in path:
        state = state[key]
    return path[-1] == "scorer" or (type(state), state) == (type(value), value)  # this scorer keeps nothing


@pytest.mark.parametrize("state", [None, 5, "state", [], {}, {"engine": {}}, {"engine": None, "generators": [None]}])
def test_what_is_no_state(make: Any, state: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="state"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    "more",
    [
        {"max_new_tokens": 5},
        {"max_prompt_tokens": 8},
        {"model": "tiny"},
        {"scorer": {"sum": {"a": "distinct", "b": "repetition"}}},
    ],
)
def test_state_of_another_environment(make: Any, played: Any, more: dict[str, Any]) -> None:
    env = make(**more)
    env.reset(seed=1)
    before = copy.deepcopy(env.state_dict())
    with pytest.raises(ValueError, match="made_with"):
        env.load_state_dict(played.state_dict())
    assert_same(env.state_dict(), before)


def test_state_before_the_first_reset_clears_the_slots(make: Any) -> None:
    fresh, env = make(), make()
    env.reset(seed=0)
    state = fresh.state_dict()
    env.load_state_dict(state)
    assert not env.engine.episodes.playing.any()
    assert_same(env.state_dict()["engine"], state["engine"])


def test_scorer_that_refuses_its_state_keeps_what_it_had(make: Any) -> None:
    class Counting:
        seen = 3

        def __call__(self, completions, **_: Any) -> list[float]:
            return [0.0] * len(completions)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = -1
            self.seen = int(state["seen"])

    env = make(scorer=Counting())
    env.reset(seed=0)
    before = copy.deepcopy(env.state_dict())
    for bad in ({}, {"seen": "many"}):
        with pytest.raises(ValueError, match=r"state\['engine'\]\['scorer'\]=.*Counting"):
            env.load_state_dict(changed(before, ("engine", "scorer"), bad))
        assert_same(env.state_dict(), before)
    assert math.isfinite(env.kl_coef)
