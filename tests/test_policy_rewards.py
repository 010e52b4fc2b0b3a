"""Rewards that see π: exact probabilities of what could follow, of the policy that plays, with the weights it has."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from tiny_models import byte_tokenizer, random_model
from tokenizer_kinds import byte_level, sentencepiece

import textgen_env
from textgen_env import LanguageModel
from textgen_env.agents.evaluate import EvaluateSettings, Judgement
from textgen_env.agents.optimum import exact_optimum, sample_reference
from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.training.evaluate import play
from textgen_env.scorers import call_scorer, get_scorer
from textgen_env.scorers.policy_view import PolicyView

EOS = 2
LIKELY = {"name": "answer_likelihood", "output": "log_probability"}
ANSWERS = {"Is it?": " yes", "Or": " no", "1+": "2"}
PROMPTS = [{"prompt": text, "references": [answer]} for text, answer in ANSWERS.items()]
TASK: dict[str, Any] = {"prompts": PROMPTS, "scorer": LIKELY, "max_prompt_tokens": 16, "max_new_tokens": 4}


def log_prob(model: Any, texts: Sequence[list[int]], tails: Sequence[list[int]], temperature: float = 1.0) -> list[Any]:
    """(T,) log π of each tail behind its text, by one left-padded batch through the library's own forward."""
    whole = [[*text, *tail] for text, tail in zip(texts, tails, strict=True)]
    width = max(map(len, whole))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in whole])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in whole])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    vocabulary = len(byte_tokenizer())
    log_probs = (logits[..., :vocabulary].double() / temperature).log_softmax(-1)
    return [
        torch.stack([log_probs[row, width - len(tail) + t - 1, tail[t]] for t in range(len(tail))])
        for row, tail in enumerate(tails)
    ]


def made(byte_model: str, **arguments: Any) -> Any:
    return gym.make("textgen/TextGen-v0", model=byte_model, **{**TASK, **arguments}).unwrapped


def make_vec(byte_model: str, **arguments: Any) -> Any:
    task = {"num_envs": 2, "autoreset_mode": AutoresetMode.DISABLED, **TASK, **arguments}
    return gym.make_vec("textgen/TextGen-v0", model=byte_model, **task)


TEXTS = [[1, 40, 41, 42, 43, 44, 45, EOS], [1, 50], [1, 60, 61, 62]]
ENDED = [True, False, False]
OPTIONS: list[list[Any]] = [["ab", "ac", [7]], [[9, 9, 9, 9, 9, 9], "x"], [[5], [6], [7], [5]]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("suffix", "keep_end", "temperature"), [("", False, 1.0), ("? ", True, 0.7)])
def test_probabilities_are_the_plain_forwards(kind: str, suffix: str, keep_end: bool, temperature: float) -> None:
    model, tokenizer = random_model(kind, len(byte_tokenizer())), byte_tokenizer()
    view = PolicyView(LanguageModel.from_modules(model, tokenizer), TEXTS, ENDED, temperature)
    found = view.log_probs(OPTIONS, suffix=suffix, keep_end=keep_end)
    between = tokenizer.encode(suffix, add_special_tokens=False)
    before = [*([TEXTS[0]] if keep_end else [TEXTS[0][:-1]]), *TEXTS[1:]]
    for row, several in enumerate(OPTIONS):
        tails = [tokenizer.encode(o, add_special_tokens=False) if isinstance(o, str) else o for o in several]
        assert [list(one.token_ids) for one in found[row]] == tails
        wanted = log_prob(model, [before[row] + between] * len(tails), tails, temperature)
        for one, values in zip(found[row], wanted, strict=True):
            assert list(one.log_probs) == pytest.approx(values.tolist(), abs=1e-5)
            assert one.log_prob == pytest.approx(float(values.sum()), abs=1e-5)


def test_single_tokens_are_read_together() -> None:
    """Four options of one token of each of two texts: two rows of one forward pass, not eight."""
    model = random_model("llama", len(byte_tokenizer()))
    view = PolicyView(LanguageModel.from_modules(model, byte_tokenizer()), TEXTS[1:], ENDED[1:])
    view.log_probs([["a"], ["a"]])  # the model has been looked at now
    rows: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    view.log_probs([["a", "b", "c", "d"]] * 2)
    assert rows == [2]


@pytest.mark.parametrize("kind", [sentencepiece, byte_level])
@pytest.mark.parametrize("text", [" a.s", "bb", "s"])
def test_a_continuation_reads_on_as_it_stands(kind: Any, text: str) -> None:
    tokenizer = kind()
    model = LanguageModel.from_modules(random_model("llama", len(tokenizer)), tokenizer)
    before = model.encode("a b")
    ((found,),) = PolicyView(model, [before], [False]).log_probs([[text]])
    assert model.continuation(before, found.token_ids) == text


def test_what_could_not_follow_is_refused(byte_model: str) -> None:
    view = PolicyView(LanguageModel(byte_model), [[1, 5]], [False])
    with pytest.raises(ValueError, match="continuations: 2 lists for 1 texts"):
        view.log_probs([["a"], ["b"]])
    with pytest.raises(ValueError, match=r"continuations\[0\]\[1\]='' has no tokens"):
        view.log_probs([["a", ""]])
    with pytest.raises(ValueError, match=r"\[999\] must hold tokens from 0 to 258"):
        view.log_probs([[[999]]])
    with pytest.raises(ValueError, match="text 0 has 302 tokens with suffix and continuation, and .* 256 positions"):
        view.log_probs([["x" * 300]])


# --- in an environment ------------------------------------------------------------------------------------------------


def play_one(env: Any, prompt: int, tokens: Sequence[int]) -> tuple[dict[str, Any], float]:
    env.reset(options={"prompt": prompt})
    for token in tokens:
        observation, reward, terminated, truncated, _ = env.step(token)
    assert terminated or truncated
    return observation, reward


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_score_is_that_of_the_very_tokens(byte_model: str, other_model: str, temperature: float) -> None:
    """Of another model than the environment's; the EOS that ended a response is left out, half a character is not."""
    policy, env = LanguageModel(other_model), made(byte_model, temperature=temperature)
    env.bind_policy(policy)
    for prompt, response in [(0, [200, 77, EOS]), (1, [70, 71, 72, 73]), (2, [EOS])]:
        observation, reward = play_one(env, prompt, response)
        text = observation["input_ids"][: observation["attention_mask"].sum()].tolist()
        text = text[:-1] if response[-1] == EOS else text
        answer = policy.encode_plain(PROMPTS[prompt]["references"][0])
        (wanted,) = log_prob(policy.model, [text], [answer], temperature)
        assert reward == pytest.approx(float(wanted.sum()), abs=1e-5)


def test_the_vector_environment_pays_the_same(byte_model: str) -> None:
    policy, env, envs = LanguageModel(byte_model), made(byte_model), make_vec(byte_model, num_envs=3)
    env.bind_policy(policy)
    envs.unwrapped.bind_policy(policy)
    responses = [[70, 71, 72, 73], [80, EOS], [90, 91, EOS]]
    alone = [play_one(env, prompt, tokens)[1] for prompt, tokens in enumerate(responses)]
    envs.reset(options={"prompt": [0, 1, 2]})
    paid = np.zeros(3)
    for t in range(4):
        actions = np.array([tokens[t] if t < len(tokens) else -1 for tokens in responses])
        paid += envs.step(actions)[1]
    assert paid.tolist() == pytest.approx(alone, abs=1e-5)


def test_weights_are_those_of_the_moment(byte_model: str) -> None:
    policy, env = LanguageModel(byte_model), made(byte_model)
    env.bind_policy(policy)
    before = play_one(env, 0, [70, EOS])[1]
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight *= 1.1
    observation, after = play_one(env, 0, [70, EOS])
    text = observation["input_ids"][: observation["attention_mask"].sum() - 1].tolist()
    (wanted,) = log_prob(policy.model, [text], [policy.encode_plain(" yes")])
    assert after == pytest.approx(float(wanted.sum()), abs=1e-5)
    assert abs(after - before) > 0.01


def test_replies_are_part_of_what_is_seen(byte_model: str) -> None:
    env = made(byte_model, responder=lambda text: "ok", max_turns=2, max_reply_tokens=4)
    env.bind_policy(policy := LanguageModel(byte_model))
    observation, reward = play_one(env, 0, [70, EOS, 71, EOS])
    text = observation["input_ids"][: observation["attention_mask"].sum()].tolist()
    assert policy.decode(text) == "Is it?" + policy.decode([70]) + "ok" + policy.decode([71])
    (wanted,) = log_prob(policy.model, [text[:-1]], [policy.encode_plain(" yes")])
    assert reward == pytest.approx(float(wanted.sum()), abs=1e-5)


def test_decoding_is_left_alone(byte_model: str) -> None:
    """The policy's memory of prefixes holds what it held, and no generator has moved."""
    policy, envs = LanguageModel(byte_model), make_vec(byte_model)
    envs.unwrapped.bind_policy(policy)
    observation, _ = envs.reset(seed=1)
    asked = observation["input_ids"], observation["attention_mask"].sum(axis=1), np.arange(2)
    cache = policy.prefix_cache(2)
    logits, generator, other = cache.next_logits(*asked), torch.get_rng_state(), str(np.random.get_state())
    reads: list[int] = []
    policy.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: reads.append(len(args[0])))
    envs.step(np.array([EOS, 70]))
    assert reads[-1] == 1  # the first slot was scored
    before = list(reads)
    assert torch.equal(cache.next_logits(*asked), logits)
    assert reads == before  # it is all still there
    assert torch.equal(torch.get_rng_state(), generator)
    assert str(np.random.get_state()) == other


# --- whose policy it is -----------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_begins(byte_model: str) -> None:
    env, envs = made(byte_model), make_vec(byte_model)
    for one in (env, envs):
        with pytest.raises(
            RuntimeError, match=r"'answer_likelihood' sees the policy, and none is bound.*bind_policy\("
        ):
            one.reset(seed=0)
    env.bind_policy(LanguageModel(byte_model))
    env.reset(seed=0)
    env.bind_policy(None)
    with pytest.raises(RuntimeError, match="none is bound"):
        env.step(EOS)
    env.bind_policy(LanguageModel(byte_model))
    assert env.step(EOS)[2]  # the episode stood where it was


def test_what_can_not_be_seen_is_refused(byte_model: str) -> None:
    env = made(byte_model)
    with pytest.raises(
        TypeError, match="policy=.* must be a LanguageModel: scorer 'answer_likelihood' asks it for texts"
    ):
        env.bind_policy(lambda observation: np.zeros(259))
    other = LanguageModel.from_modules(random_model("llama", len(byte_level())), byte_level())
    with pytest.raises(ValueError, match="policy='custom' has another vocabulary"):
        env.bind_policy(other)
    made(byte_model, scorer="distinct").bind_policy(lambda observation: np.zeros(259))  # which sees nothing
    with pytest.raises(ValueError, match="column 'policy'"):
        made(byte_model, prompts=[{"prompt": "a", "policy": 1, "references": ["b"]}])


def make_single(byte_model: str) -> Any:
    return textgen_env.TextGenEnv(model=byte_model, **TASK)


def test_other_processes_have_no_policy(byte_model: str) -> None:
    """Neither unbound, nor bound to a copy of the weights, which would not learn."""
    envs = AsyncVectorEnv([lambda: make_single(byte_model)], context="fork")
    try:
        with pytest.raises(RuntimeError, match="none is bound.*not AsyncVectorEnv"):
            envs.reset()
    finally:
        envs.close(terminate=True)
    envs = AsyncVectorEnv([lambda: make_single(byte_model)], context="fork")
    try:
        with pytest.raises(RuntimeError, match="in a worker process its weights are a copy that does not learn"):
            envs.call("bind_policy", LanguageModel(byte_model))
    finally:
        envs.close(terminate=True)


def test_copies_share_the_policy_and_pickles_leave_it(byte_model: str) -> None:
    env = made(byte_model)
    env.bind_policy(policy := LanguageModel(byte_model))
    assert copy.deepcopy(env).engine.reward.policy.language_model is policy
    again = pickle.loads(pickle.dumps(env))
    with pytest.raises(RuntimeError, match="none is bound"):
        again.reset(seed=0)


def test_who_plays_is_who_is_seen(byte_model: str, other_model: str) -> None:
    """Two policies in one environment, each by its own weights; afterwards nobody is bound."""
    envs = make_vec(byte_model)
    for source in (byte_model, other_model):
        policy = ActorCritic(LanguageModel(source), ActorConfig())
        played = play(envs, policy, policy.reference(), samples=2)
        answers = [policy.language_model.encode_plain(p["references"][0]) for p in PROMPTS for _ in range(2)]
        assert played.rollout.scores.tolist() == pytest.approx(scores(policy.actor, played.rollout, answers), abs=1e-5)
    with pytest.raises(RuntimeError, match="none is bound"):
        envs.reset()


def scores(model: Any, rollout: Any, answers: Sequence[list[int]]) -> list[float]:
    """log π of an answer behind each response of a rollout."""
    texts = []
    for ids, mask, reason in zip(rollout.input_ids, rollout.attention_mask, rollout.finish_reasons, strict=True):
        text = ids[mask.bool()].tolist()
        texts.append(text[:-1] if reason == "eos" else text)
    return [float(values.sum()) for values in log_prob(model, texts, answers)]


def test_training_goes_by_the_present_weights(byte_model: str) -> None:
    envs = make_vec(byte_model)
    policy = ActorCritic(LanguageModel(byte_model), PolicyConfig())
    sizes = {"episodes": 6, "minibatch_size": 6, "micro_batch_size": 6}
    trainer = PPO(envs, policy, PPOConfig(**sizes, lr=1e-2, kl_coef=0.1))
    told = []
    for _ in range(2):
        weights = copy.deepcopy(policy.actor)
        metrics, rollout = trainer.iterate()
        by_prompt = {p["prompt"]: policy.language_model.encode_plain(p["references"][0]) for p in PROMPTS}
        answers = [by_prompt[prompt] for prompt in rollout.prompts]
        assert rollout.scores.tolist() == pytest.approx(scores(weights, rollout, answers), abs=1e-5)
        moved = zip(scores(policy.actor, rollout, answers), rollout.scores.tolist(), strict=True)
        told.append(max(abs(after - before) for after, before in moved))
        assert np.isfinite(metrics["score"])
    assert min(told) > 1e-3  # the update has moved what the same responses would be paid


def test_no_optimum_is_known(byte_model: str) -> None:
    with pytest.raises(ValueError, match="the scorer sees the policy"):
        sample_reference(make_vec(byte_model), samples=1)
    with pytest.raises(ValueError, match="the scorer sees the policy"):
        exact_optimum(made(byte_model), 0.1, 0)


def test_a_judge_of_two_policies_is_none_of_them() -> None:
    settings = EvaluateSettings(env="textgen/Sentiment-v0", judge="verdict")
    with pytest.raises(ValueError, match="judge='verdict' sees the policy: one judge must judge both; name its model"):
        Judgement(settings)


# --- through other scorers --------------------------------------------------------------------------------------------


def likely(completions: Any, *, policy: PolicyView, letter: str = "x", **_: Any) -> list[float]:
    """A scorer of one's own."""
    return [one.log_prob for (one,) in policy.log_probs([[letter]] * len(completions))]


likely.needs_policy = True  # type: ignore[attr-defined]


def each_token(completions: Any, *, policy: PolicyView, completion_ids: Any, **_: Any) -> list[list[float]]:
    values = likely(completions, policy=policy)
    return [[value / len(ids)] * len(ids) for value, ids in zip(values, completion_ids, strict=True)]


each_token.needs_policy = True  # type: ignore[attr-defined]

AROUND: list[Any] = [
    likely,
    {"name": f"{__name__}:likely", "letter": "x"},
    {"sum": {"a": [0.5, likely], "b": [0.5, likely]}},
    {"name": "affine", "scorer": likely},
    {"name": "clip", "scorer": likely, "low": -100.0},
    {"name": "last_turn", "scorer": likely},
    {"name": "eos_penalty", "scorer": likely, "penalty": 0.0},
    {"name": "dense", "scorer": likely},
    {"name": "token_rewards", "function": each_token},
    {"name": "patient", "scorer": likely, "workers": 2, "batch_size": 1},
]


@pytest.mark.parametrize("spec", AROUND)  # by number: a function, as text, has its address in it
def test_what_is_around_hands_the_policy_on(spec: Any, byte_model: str) -> None:
    env = made(byte_model, scorer=spec)
    assert env.scorer_needs_policy
    env.bind_policy(policy := LanguageModel(byte_model))
    env.reset(options={"prompt": 0})
    total = sum(env.step(token)[1] for token in (70, EOS))
    text = policy.encode("Is it?") + [70]
    (wanted,) = log_prob(policy.model, [text], [policy.encode_plain("x")])
    assert total == pytest.approx(float(wanted), abs=1e-5)


def test_a_mistake_is_found_with_the_policy_of_its_row(byte_model: str) -> None:
    def fails(completions: Any, *, policy: PolicyView, **_: Any) -> list[float]:
        assert len(policy) == len(completions)
        assert all(list(ids) != [1, 8] for ids in policy.token_ids)
        return [0.0] * len(completions)

    fails.needs_policy = True  # type: ignore[attr-defined]
    view = PolicyView(LanguageModel(byte_model), [[1, 7], [1, 8], [1, 9]], [False] * 3)
    with pytest.raises(textgen_env.scorers.ScorerError, match="row 1, prompt 'q'"):
        call_scorer(fails, ["a", "b", "c"], prompts=["p", "q", "r"], policy=view)


def test_scores_that_would_be_stale_are_refused() -> None:
    with pytest.raises(ValueError, match="cached: scorer 'choice' sees the policy, and its scores change"):
        get_scorer({"name": "cached", "scorer": {"sum": {"a": "choice", "b": "bleu"}}["sum"]["a"]})
    with pytest.raises(ValueError, match="cached: scorer 'sum' sees the policy"):
        get_scorer({"name": "cached", "scorer": {"sum": {"a": "choice", "b": "bleu"}}})
    with pytest.raises(ValueError, match="patient: process=True with scorer 'verdict', which sees the policy"):
        get_scorer({"name": "patient", "scorer": "verdict", "process": True})
    get_scorer({"name": "cached", "scorer": {"name": "verdict", "model": "tiny"}})  # a judge stays as it is
