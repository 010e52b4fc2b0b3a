"""RLlib: vector entry point, masks, KL in a learner connector, several env runners, PPO learns. Needs ray[rllib]."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib")

import ray
from gymnasium.vector import AutoresetMode
from load_example import load_example, run_page
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from small_task import EOS

from textgen_env import LanguageModel
from textgen_env.integrations.rllib import KLPenalty, LMHeadModule, make_env

pytestmark = pytest.mark.heavy


@pytest.fixture
def task(task: dict[str, Any]) -> dict[str, Any]:
    return {"id": "textgen/TextGen-v0", **task}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=2**28, ignore_reinit_error=True)
    yield
    ray.shutdown()


def ppo(task: dict[str, Any], module: RLModuleSpec, **runners: Any) -> PPOConfig:
    config = PPOConfig().environment("textgen", env_config=task).rl_module(rl_module_spec=module)
    config.env_runners(num_envs_per_env_runner=3, gym_env_vectorize_mode="vector_entry_point", **runners)
    return config.training(train_batch_size=64, minibatch_size=32, num_epochs=1).debugging(seed=0)


def sample(config: PPOConfig, episodes: int) -> list[Any]:
    """Whole episodes of one env runner in this process."""
    algorithm = config.env_runners(num_env_runners=0).build_algo()
    collected = algorithm.env_runner.sample(num_episodes=episodes)
    algorithm.stop()
    return collected


def test_the_environment_is_the_batched_face_in_rllibs_autoreset_mode(task: dict[str, Any]) -> None:
    env = make_env({**task, "num_envs": 2, "top_k": 4, "masks": True})
    assert env.unwrapped.autoreset_mode is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert observations["action_mask"].shape == (2, 4)
    with pytest.raises(ValueError, match="vector_entry_point"):
        make_env(task)


def test_a_scored_cut_is_an_end(task: dict[str, Any]) -> None:
    """RLlib adds the value behind an episode that is truncated, none behind one that is terminated."""
    rules = {"length_limit": "truncate", "max_new_tokens": 3, "forbidden_tokens": [EOS], "masks": True}
    module = RLModuleSpec(LMHeadModule, model_config={"model": task["reference"]})
    episodes = sample(ppo({**task, **rules}, module), 8)
    assert [len(episode) for episode in episodes] == [3] * len(episodes)
    assert all(episode.is_terminated and not episode.is_truncated for episode in episodes)


def test_masked_tokens_are_never_sampled(task: dict[str, Any]) -> None:
    rules = {"min_new_tokens": 3, "forbidden_tokens": list(range(5, 259)), "masks": True}
    module = RLModuleSpec(LMHeadModule, model_config={"model": task["reference"]})
    actions = [episode.get_actions() for episode in sample(ppo({**task, **rules}, module), 20)]
    assert max(map(max, actions)) < 5
    assert not any(EOS in row[:3] for row in actions)
    assert any(EOS in row[3:] for row in actions)


def test_rllibs_own_masking_module_takes_our_observations(task: dict[str, Any]) -> None:
    rules = {"forbidden_tokens": list(range(5, 259)), "masks": True, "top_k": 8}  # five tokens for eight ranks
    episodes = sample(ppo({**task, **rules}, RLModuleSpec(ActionMaskingTorchRLModule)), 10)
    assert max(max(episode.get_actions()) for episode in episodes) == 4


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_connector_pays_the_exact_kl(task: dict[str, Any], estimator: str) -> None:
    """Against one plain forward of transformers an episode: features and log π_ref of the reference, another head."""
    module = RLModuleSpec(LMHeadModule, model_config={"model": task["model"]})
    episodes = sample(ppo({**task, "kl_coef": 0.3}, module), 6)
    scores = [np.asarray(episode.get_rewards()) for episode in copy.deepcopy(episodes)]
    KLPenalty(coef=0.3, estimator=estimator)(episodes=episodes, batch={})
    reference, model = LanguageModel(task["reference"]), LanguageModel(task["model"])
    head = model.model.get_output_embeddings().weight[: model.vocab_size]
    for episode, score in zip(episodes, scores, strict=True):
        prompt, actions = reference.encode(episode.get_infos(0)["prompt"]), list(map(int, episode.get_actions()))
        with torch.no_grad():
            output = reference.model(torch.tensor([prompt + actions]), output_hidden_states=True)
            hidden, logits = output.hidden_states[-1][0], output.logits[0, :, : model.vocab_size]
            columns = torch.arange(len(actions)) + len(prompt) - 1
            log_prob = (hidden @ head.T).log_softmax(-1)[columns, actions].numpy()
            log_ratio = logits.log_softmax(-1)[columns, actions].numpy() - log_prob
        kl = {"k1": -log_ratio, "k3": np.exp(log_ratio) - 1 - log_ratio}[estimator]
        assert np.abs(kl).max() > 0.01
        np.testing.assert_allclose(episode.get_rewards(), score - 0.3 * kl, atol=1e-4)


def test_the_connector_says_what_it_needs(task: dict[str, Any]) -> None:
    episodes = sample(ppo(task, RLModuleSpec(LMHeadModule, model_config={"model": task["model"]})), 2)
    with pytest.raises(KeyError, match="set kl_coef > 0 in env_config"):
        KLPenalty(coef=0.3)(episodes=episodes, batch={})


def test_several_env_runners_train_and_a_checkpoint_comes_back(task: dict[str, Any], tmp_path: Any) -> None:
    module = RLModuleSpec(LMHeadModule, model_config={"model": task["reference"]})
    config = ppo({**task, "kl_coef": 0.1, "scorer": "distinct"}, module, num_env_runners=2)
    config.learners(learner_connector=lambda *spaces: KLPenalty(*spaces, coef=0.1))
    algorithm = config.build_algo()
    result = algorithm.train()
    assert result["env_runners"]["num_env_steps_sampled"] >= 64
    assert result["env_runners"]["num_episodes"] > 0
    path = algorithm.save_to_path(str(tmp_path))
    weights = algorithm.get_module().state_dict()
    algorithm.stop()
    restored = type(algorithm).from_checkpoint(path)
    for name, value in restored.get_module().state_dict().items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(weights[name]))
    restored.stop()


@pytest.mark.parametrize("seed", range(3))
def test_ppo_learns_with_two_env_runners(seed: int) -> None:
    before, after = load_example("rllib_ppo").main(seed=seed)
    assert after > before + 0.15


def test_the_page_in_the_docs_runs(tmp_path: Any) -> None:
    run_page("integrations_rllib", tmp_path)
