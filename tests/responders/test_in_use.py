"""Dialogues as everybody else meets them: exact KL, caches, advantages, drawings, wrappers, vector environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from compare import assert_same
from dialogues import EOS, Saving, ids, letters, play
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.agents.advantages import gae
from textgen_env.agents.policy import ActorCritic, PolicyConfig
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.agents.rollout import collect
from textgen_env.render import Frame, render_html, render_rgb, summary
from textgen_env.responders import Reply
from textgen_env.wrappers import LMFeatures, ScoredCutsEnd, TopKActions, UniformInfo, VectorTopKActions

VOCAB = 259
ECHO = {"name": "echo", "template": " I heard {text}."}


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["p", "longer prompt"],
        "scorer": letters,
        "responder": ECHO,
        "turn_strings": ["e"],
        "max_new_tokens": 12,
        "max_turns": 3,
        "max_reply_tokens": 24,
        "max_prompt_tokens": 16,
    }


def plain_log_probs(model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """(T, V) of one sequence by a forward pass of transformers, from which the next token is drawn in each row."""
    with torch.no_grad():
        return model.model(torch.tensor([tokens])).logits[0, :, :VOCAB].double().log_softmax(-1)


def test_kl_and_log_probs_of_the_agents_tokens_alone(arguments: dict[str, Any]) -> None:
    """Against one teacher-forced forward of each model over the whole dialogue."""
    env = TextGenEnv(**arguments, kl_coef=0.5, kl_estimator="full")
    policy = LanguageModel(arguments["model"])
    env.bind_policy(policy)
    env.reset(seed=0)
    steps = play(env, "yes$nook$")
    observation, *_, last = steps[-1]
    length = int(observation["attention_mask"].sum())
    tokens = observation["input_ids"][:length].tolist()
    columns = np.flatnonzero(observation["response_mask"])
    assert len(columns) == len(steps) < columns[-1] - columns[0]  # with gaps
    ours, theirs = plain_log_probs(policy, tokens), plain_log_probs(LanguageModel(arguments["reference"]), tokens)
    kls = (ours.exp() * (ours - theirs)).sum(-1)
    for column, (*_, info) in zip(columns, steps, strict=True):
        assert info["ref_logprob"] == pytest.approx(theirs[column - 1, tokens[column]].item(), abs=1e-4)
        assert info["reward_parts"]["kl"] == pytest.approx(-0.5 * kls[column - 1].item(), abs=1e-4)
    assert last["kl_sum"] == pytest.approx(sum(kls[c - 1].item() for c in columns), abs=1e-3)
    expected = sum(theirs[c - 1, tokens[c]].item() for c in columns)
    assert last["ref_logprob_sum"] == pytest.approx(expected, abs=1e-3)


def test_the_cache_reads_replies(arguments: dict[str, Any]) -> None:
    """Logits after each step, of slots that hear replies at different times, against plain forwards of each prefix."""
    envs = TextGenVectorEnv(3, autoreset_mode="Disabled", **arguments)
    reference = LanguageModel(arguments["reference"])
    envs.reset(seed=0)
    replies = 0
    for texts in ("aee", "bc$", "$dd", "xyz"):
        *_, infos = envs.step(np.array([ids(envs, one)[0] for one in texts]))
        replies += sum(infos.get("_reply", []))
        slots = np.flatnonzero(envs.engine.episodes.playing)
        logits = envs.engine.kl.ref_logits(envs.engine.episodes, slots)
        for slot, row in zip(slots, logits, strict=True):
            tokens = envs.engine.episodes.input_ids[slot, : envs.engine.episodes.lengths[slot]].tolist()
            expected = plain_log_probs(reference, tokens)[-1]
            torch.testing.assert_close(row.double().log_softmax(-1), expected, atol=1e-4, rtol=0)
    assert replies == 4


def chatty(arguments: dict[str, Any], slots: int) -> gym.vector.VectorEnv:
    """About every third token of a random policy ends a turn."""
    arguments |= {"turn_strings": [chr(code) for code in range(33, 127)]}
    return gym.make_vec("textgen/TextGen-v0", num_envs=slots, autoreset_mode="Disabled", **arguments)


def test_advantages_skip_what_the_environment_wrote(arguments: dict[str, Any]) -> None:
    envs = chatty(arguments, 3)
    envs.unwrapped.delegate_kl(report_ref_logprob=False)
    envs.reset(seed=0)
    rollout = collect(envs, LanguageModel(arguments["model"]), 9, generator=torch.Generator().manual_seed(0))
    mask = rollout.response_mask.bool()
    assert (mask[:, 1:] & ~mask[:, :-1]).sum() > 9, "no row has a gap"
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    advantages, _ = gae(rollout.rewards, values, rollout.response_mask, gamma=0.9, lam=0.8)
    for row in range(9):
        rewards, own = rollout.rewards[row][mask[row]].tolist(), [*values[row][mask[row]].tolist(), 0.0]
        deltas = [r + 0.9 * own[t + 1] - own[t] for t, r in enumerate(rewards)]
        expected = [sum((0.9 * 0.8) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
        assert advantages[row][mask[row]].tolist() == pytest.approx(expected, abs=1e-5)
    assert not advantages[~mask].any()
    assert rollout.lengths.tolist() == mask.sum(dim=1).tolist()
    assert not rollout.rewards[~mask].any()


@pytest.mark.filterwarnings("ignore:the environment failed")
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("extra", [{}, {"kl_coef": 0.1}, {"length_limit": "truncate", "stop_strings": ["f"]}])
def test_same_as_sync_vector_env(arguments: dict[str, Any], mode: AutoresetMode, extra: dict[str, Any]) -> None:
    arguments |= extra | {"responder": "dialogues:answering"}
    ours = gym.make_vec("textgen/TextGen-v0", num_envs=3, autoreset_mode=mode, **arguments)
    theirs = SyncVectorEnv([lambda: gym.make("textgen/TextGen-v0", **arguments)] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(seed=11), theirs.reset(seed=11), "reset")
    rng = np.random.default_rng(0)
    letters_of = np.array(ids(ours, "abcdef!.?") + [EOS])
    reasons: set[str] = set()
    for step in range(120):
        actions = rng.choice(letters_of, size=3)
        results = ours.step(actions), theirs.step(actions)
        assert_same(*results, f"step {step}")
        infos = results[0][-1]
        for info in (infos, infos.get("final_info", {})):
            reasons |= {reason for reason in info.get("finish_reason", ()) if reason}
        ended = results[0][2] | results[0][3]
        if mode is AutoresetMode.DISABLED and ended.any():
            options = {"reset_mask": ended}
            assert_same(ours.reset(options=options), theirs.reset(options=options), f"reset {step}")
    assert {"eos", "length", "environment", "horizon", "failed"} <= reasons


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_the_environments_words_look_different(arguments: dict[str, Any]) -> None:
    responder = Saving(Reply("<b>&\nyes", reward=1.0), Reply(" bye", reward=-4.0, terminated=True), opening="hello")
    env = TextGenEnv(**arguments | {"responder": responder, "reference": None}, render_mode="ansi")
    env.reset(seed=0, options={"prompt": "p"})
    play(env, "ab$")
    start = "\x1b[2mp\x1b[0m\x1b[2;3mhello\x1b[0mab"
    said = "\x1b[2;3m<b>&\x1b[0m\n\x1b[2;3myes\x1b[0m"
    blue = "\x1b[38;2;255;255;255;48;2;33;102;172m<eos>\x1b[0m"
    assert env.render() == f"{start}{blue}{said}\n\nrunning · 3 tokens · return 1"
    play(env, "c$")  # earns 3 − 4: as much as the first turn, with the other sign
    red, faint = blue.replace("33;102;172", "178;24;43"), "\x1b[2;3m bye\x1b[0m"
    summary = "score 0 (score 3, environment -3) · finish environment · 5 tokens · return 0"
    assert env.render() == f"{start}{blue}{said}c{red}{faint}\n\n{summary}"


def test_drawings_of_replies(arguments: dict[str, Any]) -> None:
    frame = Frame("p", ["a", "<said>", "b"], [0.5, 9.0, -1.0], kls=[0.25, 9.0, 0.5], by_agent=[True, False, True])
    page = render_html([frame])
    assert '<q class="reply">&lt;said&gt;</q>' in page
    assert page.count("<b style") == 2
    assert 'data-tip="token 2&#10;' in page
    assert "--reward:-1.00" in page  # scaled by the agent's tokens alone
    assert summary(frame) == "running · 2 tokens · return -0.5 · KL 0.75"
    grey = (render_rgb(frame) == 120).all(axis=-1)
    without = Frame("p", ["a", "b"], [0.5, -1.0], kls=[0.25, 0.5])
    assert grey.sum() > (render_rgb(without) == 120).all(axis=-1).sum()
    with pytest.raises(ValueError, match="by_agent has 1 entries; expected 2"):
        Frame("p", ["a", "b"], [0.0, 0.0], by_agent=[True])


# --- wrappers ---------------------------------------------------------------------------------------------------------


def test_ranks_and_features_follow_the_dialogue(arguments: dict[str, Any]) -> None:
    """The same tokens, chosen by rank, lead to the same observations and rewards; features are those of the prefix."""
    env = TextGenEnv(**arguments, kl_coef=0.1)
    by_rank = LMFeatures(TopKActions(TextGenEnv(**arguments, kl_coef=0.1, reference_top_k=0), VOCAB))
    model = LanguageModel(arguments["reference"])
    env.reset(seed=0), by_rank.reset(seed=0)
    for token in ids(env, "ae$b$"):
        prefix = env.engine.episodes.observation(0)
        tokens = prefix["input_ids"][: prefix["attention_mask"].sum()].tolist()
        order = plain_log_probs(model, tokens)[-1].argsort(descending=True).tolist()
        observation, *results, info = env.step(token)
        features, *others, _ = by_rank.step(order.index(token))
        assert_same(tuple(results), tuple(others))
        tokens = observation["input_ids"][: observation["attention_mask"].sum()].tolist()
        with torch.no_grad():
            hidden = model.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(features[:-1], hidden.numpy(), atol=1e-4)
        assert features[-1] == pytest.approx(1 - observation["response_mask"].sum() / 12)
        if results[1]:
            break
    assert info["finish_reason"] == "eos"


def test_ranks_of_several_slots(arguments: dict[str, Any]) -> None:
    """The likeliest token at each prefix, of slots that were answered at different times."""
    envs = VectorTopKActions(TextGenVectorEnv(3, autoreset_mode="Disabled", **arguments), VOCAB)
    reference, episodes = LanguageModel(arguments["reference"]), envs.unwrapped.engine.episodes
    envs.reset(seed=0)
    for texts in ("ae$", "$bc"):
        ranks = []
        for slot, character in enumerate(texts):
            prefix = episodes.input_ids[slot, : episodes.lengths[slot]].tolist()
            order = plain_log_probs(reference, prefix)[-1].argsort(descending=True).tolist()
            ranks.append(order.index(ids(envs.unwrapped, character)[0]))
        lengths = episodes.lengths.copy()
        envs.step(np.array(ranks))
        assert [episodes.input_ids[slot, lengths[slot]] for slot in range(3)] == [
            ids(envs.unwrapped, c)[0] for c in texts
        ]
    assert [episodes.turns_taken(slot) for slot in range(3)] == [1, 1, 1]


def test_infos_stay_uniform_and_a_failure_is_no_scored_cut(arguments: dict[str, Any]) -> None:
    env = UniformInfo(ScoredCutsEnd(TextGenEnv(**arguments | {"responder": "dialogues:answering"})))
    _, first = env.reset(seed=0)
    with pytest.warns(UserWarning, match="the environment failed"):
        steps = [env.step(token) for token in ids(env.unwrapped, "a!$")]
    assert all(info.keys() == first.keys() for *_, info in steps)
    assert set(first["reward_parts"]) == {"score", "environment", "kl"}
    assert steps[-1][2:4] == (False, True)


def test_stable_baselines_reads_each_turn_once(arguments: dict[str, Any]) -> None:
    """The transitions of a dialogue lie in one text per turn, each behind its own prefix."""
    pytest.importorskip("stable_baselines3")
    from textgen_env.integrations.sb3_policy import share_forwards

    env = TextGenEnv(**arguments)
    env.reset(seed=0)
    actions, prefixes = ids(env, "yes$no e"), []
    for action in actions:
        prefixes.append(env.engine.episodes.input_ids[0, : env.engine.episodes.lengths[0]].tolist())
        env.step(action)
    padded = torch.tensor([[*prefix, *[0] * (80 - len(prefix))] for prefix in prefixes])
    shared = share_forwards(padded, torch.tensor([len(prefix) for prefix in prefixes]), torch.tensor(actions))
    found = [
        (text[:column].tolist(), text[column].item())
        for text, mask in zip(shared.input_ids, shared.response_mask, strict=True)
        for column in mask.nonzero().flatten()
    ]
    assert found == list(zip(prefixes, actions, strict=True))
    assert len(shared.input_ids) == 3


def test_trl_is_refused(arguments: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    from textgen_env.integrations.trl import config_arguments

    with pytest.raises(ValueError, match="responder=.* answers in between"):
        config_arguments(TextGenEnv(**arguments))


# --- a trainer --------------------------------------------------------------------------------------------------------


def test_ppo_takes_dialogues_as_they_come(arguments: dict[str, Any]) -> None:
    """Two updates on the agent's tokens alone: before the first step of each, no ratio differs from 1."""
    venv = chatty(arguments, 4)
    policy = ActorCritic(LanguageModel(arguments["model"]), PolicyConfig(lora_rank=0))
    config = PPOConfig(episodes=12, epochs=2, minibatch_size=4, micro_batch_size=4, lr=1e-3)
    ppo = PPO(venv, policy, config)
    for _ in range(2):
        rollout = ppo.collect()
        mask = rollout.response_mask
        assert (mask[:, 1:] > mask[:, :-1]).sum() > 12, "no row has a gap"
        metrics = ppo.update(ppo.advantages(rollout))
        assert metrics["first_ratio_error"] == 0
        assert np.isfinite(list(metrics.values())).all()
