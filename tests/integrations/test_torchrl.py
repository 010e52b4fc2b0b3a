"""TorchRL: both pass its own checker, masks hold, rewards carry the exact KL, PPO learns. Needs torchrl."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("torchrl")

from gymnasium.wrappers import TimeLimit
from load_example import load_example, run_page
from small_task import EOS, batched, single
from torchrl.envs import GymEnv
from torchrl.envs.utils import check_env_specs
from torchrl.objectives.value import TDLambdaEstimator

import textgen_env  # noqa: F401
from textgen_env import LanguageModel
from textgen_env.integrations.networks import LMHead, LMLogits
from textgen_env.integrations.torchrl import make_env, masked_actor
from textgen_env.wrappers import LMFeatures, VectorLMFeatures, VectorTopKActions

pytestmark = pytest.mark.heavy


class Logits(torch.nn.Module):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.policy = LMLogits(LanguageModel(model), rows=3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.policy(input_ids, attention_mask)[0]


def lm_actor(model: str) -> Any:
    return masked_actor(Logits(model), ["input_ids", "attention_mask"])


@pytest.mark.parametrize(
    "build",
    [
        single,
        batched,
        lambda task: LMFeatures(single(task)),
        lambda task: VectorLMFeatures(batched(task)),
        lambda task: VectorTopKActions(VectorLMFeatures(batched(task)), 4),
    ],
    ids=["single", "batched", "features", "batched-features", "top-k"],
)
def test_torchrls_own_checker_passes(task: dict[str, Any], build: Any) -> None:
    env = make_env(build(task))
    check_env_specs(env)
    data = env.rollout(13, break_when_any_done=False)
    assert data["next", "score"][data["next", "done"]].numel() > 0
    torch.testing.assert_close(data["next", "reward"], data["next", "score"])


@pytest.mark.parametrize("random", [True, False])
def test_masked_tokens_are_never_sampled(task: dict[str, Any], random: bool) -> None:
    env = make_env(batched({**task, "min_new_tokens": 3, "forbidden_tokens": list(range(5, 259))}))
    torch.manual_seed(0)
    data = env.rollout(40, None if random else lm_actor(task["model"]), break_when_any_done=False)
    assert data["action"].shape == (3, 40)
    assert (data["action"] < 5).all()
    early = data["response_mask"].sum(-1) < 3
    assert not (data["action"][early] == EOS).any()
    assert (data["action"][~early] == EOS).any()


def test_a_finished_slot_starts_again_while_the_others_go_on(task: dict[str, Any]) -> None:
    env = make_env(batched(task))
    state = env.reset()
    for actions, lengths in (([EOS, 100, 100], [1, 1, 1]), ([100, EOS, 100], [1, 2, 2]), ([100, 100, 100], [2, 1, 3])):
        state["action"] = torch.tensor(actions)
        full, state = env.step_and_maybe_reset(state)
        assert full["next", "response_mask"].sum(-1).tolist() == lengths
        assert full["next", "done"].squeeze(-1).tolist() == [action == EOS for action in actions]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_carry_the_kl_of_a_bound_policy(task: dict[str, Any], estimator: str) -> None:
    settings = {**task, "kl_coef": 0.3, "kl_estimator": estimator, "temperature": 1.0}
    env = make_env(batched(settings))
    env.set_seed(5)
    data = env.rollout(12, lm_actor(task["model"]), break_when_any_done=False)
    assert data["next", "kl"].abs().max() > 0.1
    bound = batched(settings)
    bound.unwrapped.bind_policy(LanguageModel(task["model"]))
    # The same episodes, each played alone with its own prompt and tokens.
    for slot in range(3):
        done = data["next", "done"][slot, :, 0].tolist()
        start = 0
        while True in done[start:]:
            end = start + done[start:].index(True) + 1
            first = {key: data[key][slot, start].numpy() for key in ("input_ids", "attention_mask")}
            prompt = bound.unwrapped.language_model.decode(first["input_ids"][: first["attention_mask"].sum()])
            bound.reset(options={"prompt": prompt})
            for step in range(start, end):
                _, rewards, *_ = bound.step(np.full(3, int(data["action"][slot, step])))
                assert rewards[0] == pytest.approx(float(data["next", "reward"][slot, step]), abs=1e-5)
            start = end


def test_the_penalty_follows_kl_coef_and_asks_for_log_probabilities(task: dict[str, Any]) -> None:
    core = batched({**task, "kl_coef": 0.3})
    env = make_env(core)
    with pytest.raises(KeyError, match="return_log_prob=True"):
        env.rollout(3)
    core.unwrapped.kl_coef = 0.0
    data = env.rollout(10, lm_actor(task["model"]), break_when_any_done=False)
    torch.testing.assert_close(data["next", "reward"], data["next", "score"])


def test_the_head_of_the_reference_starts_with_kl_zero(task: dict[str, Any]) -> None:
    tokens = batched({**task, "kl_coef": 0.3, "temperature": 0.8})
    env = make_env(VectorLMFeatures(tokens))
    data = env.rollout(8, masked_actor(LMHead.of(tokens), ["observation"]), break_when_any_done=False)
    assert data["next", "kl"].abs().max() < 1e-5


def test_a_face_that_resets_itself_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SameStep' must be \"Disabled\""):
        make_env(gym.make_vec("textgen/TextGen-v0", num_envs=2, **task))
    with pytest.raises(ValueError, match="kl_estimator='full'"):
        make_env(single({**task, "kl_coef": 0.1, "kl_estimator": "full"}))


@pytest.mark.parametrize("build", [single, batched, lambda task: VectorLMFeatures(batched(task))])
def test_a_scored_cut_is_an_end(task: dict[str, Any], build: Any) -> None:
    """TorchRL's value estimators go on past `done` without `terminated`; here a value of 100 must not get in."""
    env = make_env(build({**task, "length_limit": "truncate", "max_new_tokens": 3, "min_new_tokens": 3}))
    data = env.rollout(9, break_when_any_done=False).reshape(-1, 9)
    assert data["next", "done"].any()
    assert (data["next", "terminated"] == data["next", "done"]).all()
    assert not data["next", "truncated"].any()
    data["state_value"] = data["next", "state_value"] = torch.full_like(data["next", "reward"], 100.0)
    estimator = TDLambdaEstimator(gamma=1.0, lmbda=1.0, value_network=None)
    returns = estimator.value_estimate(data)
    torch.testing.assert_close(returns.unflatten(1, (3, 3)), data["next", "score"][:, 2::3, None].expand(-1, -1, 3, -1))


@pytest.mark.filterwarnings("ignore:.*cut")
def test_a_limit_outside_is_a_cut(task: dict[str, Any]) -> None:
    env = make_env(TimeLimit(single({**task, "length_limit": "truncate"}), 2))
    env.set_seed(0)
    data = env.rollout(2)
    assert data["next", "truncated"].squeeze(-1).tolist() == [False, True]
    assert not data["next", "terminated"].any()


@pytest.mark.filterwarnings("ignore:.*policy is unknown")
def test_torchrls_own_way_to_make_an_environment(task: dict[str, Any]) -> None:
    data = GymEnv("textgen/TextGen-v0", categorical_action_encoding=True, **task).rollout(5)
    assert data["next", "done"][-1]
    assert GymEnv("textgen/Sentiment-v0").rollout(3)["action"].shape[0] <= 3


@pytest.mark.parametrize("seed", range(3))
def test_ppo_learns(seed: int) -> None:
    before, after = load_example("torchrl_ppo").main(seed=seed)
    assert after > before + 0.15


def test_the_page_in_the_docs_runs(tmp_path: Any) -> None:
    run_page("integrations_torchrl", tmp_path)
