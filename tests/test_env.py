"""The single environment: what an episode is, what a step pays and tells, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from compare import assert_same
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import textgen_env
from textgen_env.config import EnvConfig
from textgen_env.scorers import ScorerError

EOS = 2


def count_letters(completions, **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def tokens(text: str) -> list[int]:
    """Byte tokens of the test model; the alphabet of byte-level BPE in sorted order, after three special tokens."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [3 + alphabet.index(character) for piece, _ in split for character in piece]


@pytest.fixture
def make(byte_model: str):
    def make_env(**arguments: Any) -> gym.Env:
        arguments = {
            "model": byte_model,
            "prompts": ["one", "two!"],
            "scorer": count_letters,
            "max_new_tokens": 6,
        } | arguments
        return gym.make("textgen/TextGen-v0", **arguments)

    return make_env


def play(env: gym.Env, text: str, eos: bool = False) -> list[tuple]:
    return [env.step(action) for action in tokens(text) + [EOS] * eos]


def test_importing_registers_every_task() -> None:
    assert set(textgen_env.TASKS) == {
        f"textgen/{name}-v0"
        for name in (
            "TextGen",
            "Sentiment",
            "Summarize",
            "Translate",
            "Describe",
            "Calculate",
            "Lookup",
            "Browse",
            "Dialogue",
        )
    }
    assert all(gym.spec(task).vector_entry_point for task in textgen_env.TASKS)


def test_signatures_spell_out_every_argument() -> None:
    settings = {field.name: field for field in dataclasses.fields(EnvConfig)}
    for kind, own in (
        (textgen_env.TextGenEnv, ["render_mode"]),
        (textgen_env.TextGenVectorEnv, ["num_envs", "autoreset_mode", "render_mode"]),
    ):
        parameters = inspect.signature(kind).parameters
        assert [name for name in parameters if name not in own] == list(settings)
        for name, field in settings.items():
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            assert (parameters[name].default, parameters[name].annotation) == (default, field.type)
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def test_dir_names_what_loads_late() -> None:
    assert set(textgen_env.__all__) <= set(dir(textgen_env))


@pytest.mark.parametrize("kind", [textgen_env.TextGenEnv, textgen_env.TextGenVectorEnv])
def test_unknown_argument_is_told_in_pythons_words(kind: Any) -> None:
    """TorchRL offers `frameskip` and waits for these very words before it does without."""
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'frameskip'"):
        kind(prompts=["p"], scorer=count_letters, frameskip=4)
    with pytest.raises(TypeError, match="no argument kl_coeff, other: .* Did you mean kl_coef. It takes model, "):
        kind(prompts=["p"], scorer=count_letters, kl_coeff=0.1, other=1)
    with pytest.raises(TypeError, match="argument 'max_episode_steps'. Did you mean max_new_tokens?"):
        kind(prompts=["p"], scorer=count_letters, max_episode_steps=4)


def test_missing_argument_is_explained_alone() -> None:
    with pytest.raises(TypeError, match=r"needs scorer: what a response is worth") as caught:
        textgen_env.TextGenEnv(prompts=["p"])
    assert "prompts" not in str(caught.value)
    with pytest.raises(TypeError, match="needs prompts: the texts to continue .*, and scorer: what"):
        textgen_env.TextGenEnv()


def test_observation_is_the_prefix(make) -> None:
    env = make(max_prompt_tokens=8)
    obs, info = env.reset(options={"prompt": "hi"})
    assert info == {"prompt": "hi"}
    np.testing.assert_array_equal(obs["input_ids"], [1, *tokens("hi"), *[0] * 11])
    obs = env.step(tokens("x")[0])[0]
    np.testing.assert_array_equal(obs["input_ids"][:5], [1, *tokens("hi"), *tokens("x"), 0])
    np.testing.assert_array_equal(obs["attention_mask"], [1, 1, 1, 1, *[0] * 10])
    np.testing.assert_array_equal(obs["response_mask"], [0, 0, 0, 1, *[0] * 10])
    assert {name: array.dtype for name, array in obs.items()} == {
        "input_ids": np.int64,
        "attention_mask": np.int8,
        "response_mask": np.int8,
    }
    assert obs in env.observation_space


def test_actions_are_the_real_tokens(make) -> None:
    env = make()
    assert env.unwrapped.language_model.config.vocab_size == 264  # padded
    assert env.action_space == gym.spaces.Discrete(259)


def test_eos_ends_and_pays(make) -> None:
    env = make()
    env.reset(seed=0)
    *before, last = play(env, "abc", eos=True)
    assert all((reward, ended, cut) == (0.0, False, False) for _, reward, ended, cut, _ in before)
    _, reward, terminated, truncated, info = last
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert type(reward) is float
    assert type(terminated) is bool
    assert info["text"] == "abc"
    assert (info["finish_reason"], info["score"], info["response_length"]) == ("eos", 3.0, 4)
    assert info["reward_parts"] == {"score": 3.0}


@pytest.mark.parametrize(("limit", "flags"), [("terminate", (True, False)), ("truncate", (False, True))])
def test_length_limit_pays_the_score(make, limit: str, flags: tuple[bool, bool]) -> None:
    env = make(length_limit=limit)
    env.reset(seed=0)
    *_, (_, reward, terminated, truncated, info) = play(env, "abcdef")
    assert (reward, (terminated, truncated), info["finish_reason"]) == (6.0, flags, "length")


def test_eos_at_the_limit_is_an_eos(make) -> None:
    env = make(length_limit="truncate")
    env.reset(seed=0)
    *_, (_, _, terminated, truncated, info) = play(env, "abcde", eos=True)
    assert (terminated, truncated, info["finish_reason"]) == (True, False, "eos")


def test_stop_string_ends_and_is_cut_off(make) -> None:
    env = make(stop_strings=["zz", "END"], max_new_tokens=20)
    env.reset(seed=0)
    *before, (_, reward, terminated, _, info) = play(env, "a é END")
    assert not any(step[2] for step in before)
    assert (terminated, info["finish_reason"], info["text"], reward) == (True, "stop", "a é ", 4.0)
    assert info["response_length"] == len("a é END".encode())


def test_prompt_options(make) -> None:
    env = make(prompts=["p0", {"prompt": "p1", "references": ["r"]}])
    assert env.reset(options={"prompt": 1})[1]["prompt"] == "p1"
    assert env.reset(options={"prompt": {"prompt": "own", "references": ["r"]}})[1]["prompt"] == "own"
    with pytest.raises(IndexError, match=r"options\['prompt'\]=2 is not an index of the 2 prompts"):
        env.reset(options={"prompt": 2})
    with pytest.raises(ValueError, match=r"options\['prompt'\] is empty"):
        env.reset(options={"prompt": ""})
    with pytest.raises(ValueError, match="prompts.*unknown to reset"):
        env.reset(options={"prompts": "x"})


def test_seed_makes_prompts_reproducible_and_leaves_global_generators_alone(make) -> None:
    env = make(prompts=[f"prompt {i}" for i in range(50)])
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    runs = []
    for _ in range(2):
        first = env.reset(seed=3)[1]["prompt"]
        runs.append([first] + [env.reset()[1]["prompt"] for _ in range(20)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 10
    assert np.random.rand() == expected


def test_scorer_sees_references_columns_and_tokens(make) -> None:
    seen: dict[str, Any] = {}

    def spy(completions, *, prompts, references, **extra):
        seen.update(extra, completions=completions, prompts=prompts, references=references)
        return [0.5]

    env = make(prompts=[{"prompt": "q", "references": ["r1", "r2"], "label": 7}], scorer=spy)
    env.reset(seed=0)
    play(env, "no", eos=True)
    assert seen == {
        "completions": ["no"],
        "prompts": ["q"],
        "references": [["r1", "r2"]],
        "label": [7],
        "completion_ids": [[*tokens("no"), EOS]],
        "finish_reasons": ["eos"],
    }


def test_dense_scorer_pays_its_growth(make) -> None:
    def potential(completions, **_):
        return [len(text) ** 2 for text in completions]

    potential.dense = True
    env = make(scorer=potential)
    env.reset(seed=0)
    assert [step[1] for step in play(env, "abc", eos=True)] == [1.0, 3.0, 5.0, 0.0]
    env.reset(seed=0)
    assert env.step(EOS)[1] == 0.0  # the potential starts anew


def test_parts_add_up_exactly(make) -> None:
    class Thirds:
        part_names = ("a", "b", "c")

        def parts(self, completions, **_):
            return {"a": [0.1] * len(completions), "b": [0.2] * len(completions), "c": [1 / 3] * len(completions)}

        def __call__(self, completions, **_):
            return [0.1 + 0.2 + 1 / 3] * len(completions)

    env = make(scorer=Thirds(), kl_coef=0.1)
    env.reset(seed=0)
    for _, reward, *_, info in play(env, "ab", eos=True):
        assert sum(info["reward_parts"].values()) == reward
        assert list(info["reward_parts"]) == ["a", "b", "c", "kl"]


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_on_demand(make) -> None:
    env = make(forbidden_tokens=["<pad>", 1], min_new_tokens=2)
    env.reset(seed=0)
    assert np.flatnonzero(~env.unwrapped.action_masks()).tolist() == [0, 1, EOS]
    play(env, "ab")
    assert np.flatnonzero(~env.unwrapped.action_masks()).tolist() == [0, 1]


def test_masked_action_is_refused_and_nothing_moves(make) -> None:
    env = make(forbidden_tokens=[1], min_new_tokens=2)
    env.reset(seed=0)
    for action in (1, EOS):
        with pytest.raises(ValueError, match=f"action {action} is masked here"):
            env.step(action)
    assert env.unwrapped.engine.episodes.response_lengths[0] == 0
    play(env, "ab", eos=True)


def test_reference_top_p_masks_the_tail(make) -> None:
    env = make(reference_top_p=0.5, temperature=0.7)
    env.reset(options={"prompt": "q"})
    model = env.unwrapped.reference.model
    import torch

    with torch.no_grad():
        probs = (model(torch.tensor([[1, *tokens("q")]])).logits[0, -1, :259] / 0.7).softmax(-1)
    kept = env.unwrapped.action_masks()
    order = probs.argsort(descending=True).tolist()
    size = next(k for k in range(1, 260) if sum(probs[order[i]].item() for i in range(k)) >= 0.5)
    assert set(np.flatnonzero(kept)) == set(order[:size])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": []}, ValueError, "holds no prompt"),
        ({"prompts": None}, TypeError, "TextGenEnv needs prompts"),
        ({"scorer": None}, TypeError, "TextGenEnv needs scorer"),
        ({"scorer": "blue"}, ValueError, "blue.*bleu"),
        ({"model": "no-such-model"}, FileNotFoundError, "no-such-model"),
        ({"model": "/nowhere/at/all"}, FileNotFoundError, "/nowhere/at/all"),
        ({"kl_coef": -1}, ValueError, "kl_coef=-1 must be a finite number ≥ 0"),
        ({"kl_coef": float("nan")}, ValueError, "kl_coef=nan"),
        ({"kl_coef": "big"}, TypeError, "kl_coef='big'"),
        ({"kl_estimator": "k9"}, ValueError, "kl_estimator='k9' is unknown; choose one of k1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0 must be at least 1"),
        ({"max_prompt_tokens": -3}, ValueError, "max_prompt_tokens=-3 must be at least 1"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens=2.5 must be an integer"),
        ({"min_new_tokens": 7}, ValueError, "min_new_tokens=7 must not exceed max_new_tokens=6"),
        ({"temperature": 0}, ValueError, "temperature=0 must be a finite number > 0"),
        ({"reference_top_p": 1.5}, ValueError, "reference_top_p=1.5"),
        ({"length_limit": "stop"}, ValueError, "length_limit='stop' must be one of terminate, truncate"),
        ({"stop_strings": "END"}, TypeError, "stop_strings='END' must be a list"),
        ({"stop_strings": [""]}, ValueError, "not empty"),
        ({"forbidden_tokens": ["<nope>"]}, ValueError, "'<nope>' is not one of the 259 tokens"),
        ({"forbidden_tokens": list(range(259))}, ValueError, "leave no token"),
        ({"render_mode": "ascii"}, ValueError, "render_mode='ascii'"),
        ({"dtype": "float8"}, ValueError, "float8"),
        ({"device": "abacus"}, ValueError, "abacus"),
        ({"max_tokens": 3}, TypeError, "TextGenEnv has no argument max_tokens.*Did you mean max_new_tokens?"),
    ],
)
def test_bad_arguments(byte_model: str, arguments: dict, error: type[Exception], message: str) -> None:
    given = {"model": byte_model, "prompts": ["p"], "scorer": count_letters, "max_new_tokens": 6} | arguments
    with pytest.raises(error, match=message):
        textgen_env.TextGenEnv(**given)


def test_reference_with_another_vocabulary(byte_model: str, tmp_path) -> None:
    from tiny_models import byte_tokenizer, random_model

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    random_model("llama", len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"another vocabulary \(260 actions\).*<extra>"):
        textgen_env.TextGenEnv(model=byte_model, reference=str(tmp_path), prompts=["p"], scorer=count_letters)


def test_reference_must_be_able_to_read_the_longest_text(make) -> None:
    make(max_prompt_tokens=250, max_new_tokens=6, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"max_prompt_tokens=251 \+ max_new_tokens=6 exceed the 256 positions"):
        make(max_prompt_tokens=251, max_new_tokens=6, kl_coef=0.1)


def test_long_prompt_is_cut_on_the_left_with_a_warning(make) -> None:
    env = make(max_prompt_tokens=4)
    with pytest.warns(UserWarning, match="a prompt of 7 tokens was cut on the left to max_prompt_tokens=4: 'abcdef'"):
        obs, _ = env.reset(options={"prompt": "abcdef"})
    np.testing.assert_array_equal(obs["input_ids"][:5], [1, *tokens("def"), 0])


@pytest.mark.parametrize("action", [-1, 259, 10**6])
def test_action_out_of_range(make, action: int) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"action {action} is not in Discrete\(259\)"):
        env.unwrapped.step(action)


def test_action_of_another_type_or_shape(make) -> None:
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(TypeError, match="must be integers"):
        env.step(1.5)
    with pytest.raises(ValueError, match="must be one integer"):
        env.step(np.array([1]))


def test_step_before_reset_and_after_the_end(make) -> None:
    env = make()
    with pytest.raises(ResetNeeded):
        env.step(5)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.unwrapped.step(5)
    env.reset(seed=0)
    env.step(EOS)
    with pytest.raises(ResetNeeded, match="no episode running"):
        env.unwrapped.step(5)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "returned 2 scores for 1 texts"),
        ([float("nan")], "finite"),
        (["good"], "good"),
        (ZeroDivisionError("by nought"), "ZeroDivisionError: by nought"),
    ],
)
def test_failing_scorer_names_the_text_and_loses_nothing(make, result: Any, message: str) -> None:
    answers = [result, [1.5]]

    def moody(completions, **_):
        if isinstance(answers[0], Exception):
            raise answers.pop(0)
        return answers.pop(0)

    env = make(scorer=moody)
    env.reset(options={"prompt": "the prompt"})
    play(env, "ab")
    with pytest.raises(ScorerError, match=message) as caught:
        env.step(EOS)
    assert all(name in str(caught.value) for name in ("moody", "the prompt", "ab"))
    assert env.step(EOS)[1] == 1.5  # the same step again: the episode stood where it was


# --- Gymnasium's own contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", sorted(textgen_env.TASKS))
def test_check_env_without_a_warning(task: str) -> None:
    arguments = (
        {"prompts": ["one", "two"], "scorer": {"name": "length", "target": 5}} if task.endswith("TextGen-v0") else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(task, **arguments).unwrapped)


@pytest.mark.parametrize("task", sorted(textgen_env.TASKS))
def test_stable_baselines3_check_env(task: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    arguments = (
        {"prompts": ["one", "two"], "scorer": {"name": "length", "target": 5}} if task.endswith("TextGen-v0") else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.check_env(gym.make(task, **arguments))


def test_spec_goes_through_json() -> None:
    env = gym.make("textgen/TextGen-v0", prompts=["a", "b"], scorer={"name": "length", "target": 3}, max_new_tokens=5)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    assert json.loads(again.spec.to_json()) == json.loads(env.spec.to_json())
    assert again.reset(seed=5)[1] == env.reset(seed=5)[1]


def test_pickle_keeps_the_episode(make) -> None:
    env = make(kl_coef=0.1)
    env.reset(seed=0)
    play(env, "ab")
    copy = pickle.loads(pickle.dumps(env))
    assert not copy.unwrapped.language_model.weights_loaded
    for ours, theirs in zip(play(env, "c", eos=True), play(copy, "c", eos=True), strict=True):
        assert_same(ours, theirs)
    assert env.reset()[1] == copy.reset()[1]


def test_state_dict_goes_on_where_it_was_taken(make) -> None:
    env, other = make(kl_coef=0.1), make(kl_coef=0.2)
    env.reset(seed=0)
    play(env, "ab")
    other.unwrapped.load_state_dict(json.loads(json.dumps(env.unwrapped.state_dict())))
    for ours, theirs in zip(
        play(env, "c", eos=True), (other.unwrapped.step(a) for a in [*tokens("c"), EOS]), strict=True
    ):
        assert_same(ours, theirs)
    assert [env.reset()[1] for _ in range(5)] == [other.reset()[1] for _ in range(5)]


def test_without_kl_no_weights_are_loaded(make) -> None:
    env = make(max_new_tokens=3)
    env.reset(seed=0)
    _, _, terminated, _, info = play(env, "abc")[-1]
    assert terminated
    assert "ref_logprob" not in info
    assert not env.unwrapped.language_model.weights_loaded


def test_close_twice(make) -> None:
    env = make(kl_coef=0.1)
    env.reset(seed=0)
    env.step(5)
    env.close()
    env.close()


@pytest.mark.parametrize("mode", ["ansi", "rgb_array", "human"])
def test_render(make, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode=mode)
    env.reset(options={"prompt": "prompt"})
    play(env, "abc", eos=True)
    frame = env.render()
    if mode == "rgb_array":
        assert frame.dtype == np.uint8
        assert frame.ndim == 3
        assert frame.shape[2] == 3
        assert len(np.unique(frame)) > 2
    else:
        text = frame if mode == "ansi" else capsys.readouterr().out
        assert "prompt" in text
        assert "eos" in text
