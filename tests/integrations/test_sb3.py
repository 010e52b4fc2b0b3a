"""Stable-Baselines3 and sb3-contrib, the real libraries, on tiny random models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_setup import EOS, VOCAB, make, ppo
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from textgen_env import TextGenEnv, TextGenVectorEnv
from textgen_env.integrations.sb3 import (
    EpisodeRolloutBuffer,
    KLPenaltyCallback,
    LMActorCriticPolicy,
    MaskableEpisodeRolloutBuffer,
    MaskableLMActorCriticPolicy,
    SB3VecEnv,
)
from textgen_env.wrappers import LMFeatures, TopKActions, VectorLMFeatures, VectorTopKActions

# --- the vectorised environment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_limit", ["terminate", "truncate"])
def test_equals_sb3s_own_vectorised_environment(arguments: dict[str, Any], length_limit: str) -> None:
    arguments |= {"kl_coef": 0.1, "length_limit": length_limit}
    ours, theirs = make(arguments, 3), DummyVecEnv([lambda: Monitor(TextGenEnv(**arguments))] * 3)
    for venv in (ours, theirs):
        venv.seed(5)
    np.testing.assert_equal(ours.reset(), theirs.reset())
    assert ours.reset_infos == theirs.reset_infos
    rng = np.random.default_rng(0)
    for step in range(20):
        actions = rng.integers(3, VOCAB, size=3)
        actions[step % 3] = EOS if step % 4 == 3 else actions[step % 3]
        left, right = ours.step(actions), theirs.step(actions)
        np.testing.assert_equal(left[0], right[0])
        np.testing.assert_allclose(left[1], right[1], atol=1e-5)
        assert left[1].dtype == np.float32
        np.testing.assert_equal(left[2], right[2])
        for one, other in zip(left[3], right[3], strict=True):
            same_info(one, other)


def same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """SB3's own says `TimeLimit.truncated` at every step, and of scored cuts too; `Monitor` adds the time."""
    assert set(theirs) - set(ours) <= {"TimeLimit.truncated"}
    for key, value in ours.items():
        if key == "TimeLimit.truncated":
            assert not value
        elif key == "terminal_observation":
            np.testing.assert_equal(value, theirs[key])
        elif key == "episode":
            assert value == {"r": pytest.approx(theirs[key]["r"], abs=1e-4), "l": theirs[key]["l"]}
        elif key == "reward_parts":
            assert value == pytest.approx(theirs[key], abs=1e-5)
        else:
            assert value == (pytest.approx(theirs[key], abs=1e-4) if isinstance(value, float) else theirs[key])


def test_only_cuts_from_outside_are_bootstrapped(arguments: dict[str, Any]) -> None:
    """A scored cut has its whole return; SB3 would add γ·V(terminal observation) to it."""
    cut = [lambda: gym.wrappers.TimeLimit(TextGenEnv(**arguments), 2)] * 2
    venv = SB3VecEnv(SyncVectorEnv(cut, autoreset_mode=AutoresetMode.SAME_STEP))
    venv.reset()
    venv.step(np.array([50, 50]))
    _, _, dones, infos = venv.step(np.array([60, EOS]))
    assert dones.all()
    assert infos[0]["TimeLimit.truncated"]
    assert not infos[1]["TimeLimit.truncated"]
    assert infos[0]["terminal_observation"]["response_mask"].sum() == 2


def test_seeds_options_and_attributes(arguments: dict[str, Any]) -> None:
    venv = make(arguments, 3, min_new_tokens=2)
    venv.seed(3)
    first = venv.reset()["input_ids"]
    venv.seed(3)
    np.testing.assert_array_equal(venv.reset()["input_ids"], first)
    venv.set_options([{"prompt": "one"}, {"prompt": "two"}, {}])
    venv.reset()
    assert [info["prompt"] for info in venv.reset_infos[:2]] == ["one", "two"]
    assert venv.reset_infos[2]["prompt"] in arguments["prompts"]
    assert venv.get_attr("max_new_tokens", indices=[0, 2]) == [6, 6]
    venv.set_attr("kl_coef", 0.25)
    assert venv.venv.unwrapped.kl_coef == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="share one environment"):
        venv.set_attr("kl_coef", 0.5, indices=[1])
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        venv.get_attr("nonsense")
    assert is_masking_supported(venv)
    masks = get_action_masks(venv)
    assert masks.shape == (3, VOCAB)
    assert not masks[:, EOS].any()
    assert masks.sum() == 3 * (VOCAB - 1)
    np.testing.assert_array_equal(venv.action_masks([2, 0]), masks[[2, 0]])
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3
    venv.close()
    venv.close()


def test_options_that_cannot_be_batched(arguments: dict[str, Any]) -> None:
    venv = make(arguments, 2)
    venv.set_options([{"reset_mask": 1}, {}])
    with pytest.raises(ValueError, match="may differ between slots in 'prompt' alone"):
        venv.reset()


def test_other_autoreset_modes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"NEXT_STEP; SB3 needs one made with AutoresetMode\.SAME_STEP"):
        make(arguments, autoreset_mode=AutoresetMode.NEXT_STEP)


def test_pictures_are_tiled(arguments: dict[str, Any]) -> None:
    venv = make(arguments, 2, render_mode="rgb_array")
    venv.reset()
    picture, one = venv.render(), venv.get_images()[0]
    assert picture is not None
    assert one is not None
    assert picture.shape == (one.shape[0] * 2, one.shape[1], 3)


def test_wrapped_single_face_passes_sb3s_checks(arguments: dict[str, Any]) -> None:
    check_env(LMFeatures(TopKActions(TextGenEnv(**arguments), 4)))


# --- every algorithm, its own save and load, and learning -------------------------------------------------------------

LM = [
    (PPO, LMActorCriticPolicy, EpisodeRolloutBuffer, {"n_steps": 12, "batch_size": 24}),
    (A2C, LMActorCriticPolicy, EpisodeRolloutBuffer, {"n_steps": 6}),
    (TRPO, LMActorCriticPolicy, EpisodeRolloutBuffer, {"n_steps": 12, "batch_size": 24}),
    (MaskablePPO, MaskableLMActorCriticPolicy, MaskableEpisodeRolloutBuffer, {"n_steps": 12, "batch_size": 24}),
]


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize(("algorithm", "policy", "buffer", "settings"), LM, ids=lambda x: getattr(x, "__name__", ""))
def test_language_model_policies_train_save_and_load(
    arguments: dict[str, Any],
    tmp_path: Path,
    algorithm: Any,
    policy: Any,
    buffer: Any,
    settings: dict[str, Any],
    lora_rank: int,
) -> None:
    options = {"model": arguments["model"], "lora_rank": lora_rank}
    model = algorithm(policy, make(arguments), rollout_buffer_class=buffer, policy_kwargs=options, seed=0, **settings)
    start = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(48, callback=KLPenaltyCallback(0.05))
    state = model.policy.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in state.items())
    assert all(value.isfinite().all() for value in state.values())
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=make(arguments))
    assert all(torch.equal(value, state[name]) for name, value in loaded.policy.state_dict().items())
    observation = model.env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    loaded.learn(48, reset_num_timesteps=False)
    model.policy.save(tmp_path / "policy")
    alone = policy.load(tmp_path / "policy")
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())


def test_single_face_goes_straight_in(arguments: dict[str, Any]) -> None:
    model = ppo(TextGenEnv(**arguments), arguments["model"], batch_size=12)
    model.learn(24, callback=KLPenaltyCallback(0.05))
    rewards, lengths = evaluate_policy(model, make(arguments), n_eval_episodes=6, return_episode_rewards=True)
    assert len(rewards) == 6
    assert max(lengths) <= 6


def features(arguments: dict[str, Any], k: int = 8, slots: int = 8) -> SB3VecEnv:
    return SB3VecEnv(VectorLMFeatures(VectorTopKActions(TextGenVectorEnv(slots, **arguments), k)))


@pytest.mark.parametrize(
    ("algorithm", "policy", "settings"),
    [
        (PPO, "MlpPolicy", {"n_steps": 8, "batch_size": 32}),
        (A2C, "MlpPolicy", {}),
        (TRPO, "MlpPolicy", {"n_steps": 8, "batch_size": 32}),
        (MaskablePPO, "MlpPolicy", {"n_steps": 8, "batch_size": 32}),
        (RecurrentPPO, "MlpLstmPolicy", {"n_steps": 8, "batch_size": 32}),
        (DQN, "MlpPolicy", {"buffer_size": 500, "learning_starts": 32}),
        (QRDQN, "MlpPolicy", {"buffer_size": 500, "learning_starts": 32}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_agents_that_know_nothing_of_language(
    arguments: dict[str, Any], tmp_path: Path, algorithm: Any, policy: str, settings: dict[str, Any]
) -> None:
    model = algorithm(policy, features(arguments), seed=0, device="cpu", **settings)
    callback = None if algorithm in (DQN, QRDQN) else KLPenaltyCallback(0.05)
    model.learn(128, callback=callback)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    observation = model.env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


def mean_score(model: Any, venv: Any, episodes: int = 64) -> float:
    return float(np.mean(evaluate_policy(model, venv, n_eval_episodes=episodes, deterministic=False)[0]))


def test_language_model_policy_learns(arguments: dict[str, Any]) -> None:
    model = ppo(make(arguments, 16), arguments["model"], n_steps=24, batch_size=96, learning_rate=3e-3, n_epochs=4)
    before = mean_score(model, make(arguments, 16))
    model.learn(24 * 16 * 12)
    assert before < 0.1
    assert mean_score(model, make(arguments, 16)) > before + 0.3


def share_of_even(completions: list[str], *, completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda x: x.__name__)
def test_vector_agents_learn(arguments: dict[str, Any], algorithm: Any) -> None:
    """Which ranks are even tokens can only be read from the features."""
    arguments |= {"scorer": share_of_even, "max_new_tokens": 3, "prompts": ["ab", "abcde"]}
    settings: dict[str, Any] = {"n_steps": 24, "batch_size": 64}
    if algorithm is DQN:
        settings = {"learning_starts": 200, "train_freq": 4, "gradient_steps": 8, "target_update_interval": 200}
        settings |= {"buffer_size": 5000, "exploration_fraction": 0.5}
    model = algorithm("MlpPolicy", features(arguments, 4), gamma=1.0, learning_rate=3e-3, seed=0, **settings)
    before = mean_score(model, features(arguments, 4))
    model.learn(4000)
    after = mean_score(model, features(arguments, 4))
    assert 1 - after < (1 - before) / 2  # half of what was missing; before, the venv draws its prompts unseeded


def test_statistics_are_those_of_sb3s_own_monitor(arguments: dict[str, Any]) -> None:
    venv = VecMonitor(make(arguments, 2))
    venv.reset()
    ends = [info for _ in range(6) for info in venv.step(np.array([50, 60]))[-1] if "episode" in info]
    assert [info["episode"]["l"] for info in ends] == [6, 6]


def test_missing_library_says_which_extra_to_install() -> None:
    for library, module in (("stable_baselines3", "sb3"), ("sb3_contrib", "sb3_maskable")):
        code = f"import sys; sys.modules[{library!r}] = None; import textgen_env.integrations.{module}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "pip install 'textgen_env[sb3]'" in done.stderr.splitlines()[-1]


RULES: list[dict[str, Any]] = [
    {"min_new_tokens": 2},
    {"forbidden_tokens": [5]},
    {"reference_top_p": 0.9},
    {"reference_top_k": 9},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_algorithms_without_masks_are_refused_before_they_play(arguments: dict[str, Any], rules: dict) -> None:
    policy = {"policy_kwargs": {"model": arguments["model"]}, "n_steps": 4, "batch_size": 8}
    with pytest.raises(ValueError, match=r"not asked for action_masks\(\).*use MaskablePPO"):
        PPO(LMActorCriticPolicy, make(arguments | rules, 2), **policy).learn(8)
    core = TextGenEnv(**arguments, **rules)
    for venv in (make(arguments | rules, 2), DummyVecEnv([lambda: core])):
        with pytest.raises(ValueError, match="PPO knows no action masks.*use MaskablePPO"):
            PPO(LMActorCriticPolicy, venv, **policy).learn(8, callback=KLPenaltyCallback(0.1))
    top_k = SB3VecEnv(VectorLMFeatures(VectorTopKActions(make(arguments | rules, 2).venv, 3)))
    PPO("MlpPolicy", top_k, n_steps=4, batch_size=8).learn(8)  # which offers no masked token


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_algorithms_that_value_actions_say_what_they_need(arguments: dict[str, Any], algorithm: Any) -> None:
    with pytest.raises(TypeError, match=r"is an actor-critic.*MlpPolicy.*TopKActions"):
        algorithm(LMActorCriticPolicy, make(arguments, 2), policy_kwargs={"model": arguments["model"]}, buffer_size=10)
