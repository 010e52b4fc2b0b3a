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
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from transformers import AutoModelForCausalLM

from textgen_env import LanguageModel, TextGenEnv, TextGenVectorEnv
from textgen_env.integrations.sb3 import (
    EpisodeRolloutBuffer,
    KLPenaltyCallback,
    LMActorCriticPolicy,
    MaskableEpisodeRolloutBuffer,
    MaskableLMActorCriticPolicy,
    SB3VecEnv,
)
from textgen_env.integrations.sb3_policy import share_forwards
from textgen_env.kl import AdaptiveKLCoefficient
from textgen_env.wrappers import LMFeatures, TopKActions, VectorLMFeatures, VectorTopKActions

VOCAB, EOS, BETA = 259, 2, 0.3


def share_of_e(completions: list[str], **_: Any) -> list[float]:
    return [text.count("e") / max(len(text), 1) for text in completions]


@pytest.fixture
def arguments(byte_model: str, other_model: str) -> dict[str, Any]:
    return {
        "model": byte_model,
        "reference": other_model,
        "prompts": ["ab", "abcde", "x"],
        "scorer": share_of_e,
        "max_prompt_tokens": 8,
        "max_new_tokens": 6,
    }


def make(arguments: dict[str, Any], slots: int = 4, **more: Any) -> SB3VecEnv:
    return SB3VecEnv(TextGenVectorEnv(slots, **arguments, **more))


def ppo(venv: Any, model: str, **more: Any) -> PPO:
    settings = {"n_steps": 12, "batch_size": 24, "gamma": 1.0, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    more["policy_kwargs"] = {"model": model} | more.get("policy_kwargs", {})
    return PPO(LMActorCriticPolicy, venv, rollout_buffer_class=EpisodeRolloutBuffer, **settings | more)


class Snapshot(BaseCallback):
    """Keeps what the buffer holds at the end of a rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        names = ("rewards", "actions", "log_probs", "values", "episode_starts")
        self.columns = {name: getattr(buffer, name).copy() for name in names}
        self.observations = {key: value.copy() for key, value in buffer.observations.items()}


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


# --- the policy -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_logits(path: str, token_ids: list[int]) -> torch.Tensor:
    """(V,) float64: one forward of transformers, no cache, no batch."""
    return AutoModelForCausalLM.from_pretrained(path)(torch.tensor([token_ids])).logits[0, -1, :VOCAB].double()


def rollout(arguments: dict[str, Any], **more: Any) -> tuple[PPO, Snapshot, dict[str, torch.Tensor]]:
    """A model with one rollout in its buffer, and the transitions of that, slot after slot."""
    model, snapshot = ppo(make(arguments), arguments["model"], **more), Snapshot()
    _, callback = model._setup_learn(48, snapshot)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)  # type: ignore[arg-type]
    flat = {k: torch.from_numpy(v.swapaxes(0, 1).reshape(48, -1)) for k, v in snapshot.observations.items()}
    return model, snapshot, flat


def test_log_probs_values_and_entropies_are_those_of_plain_forwards(arguments: dict[str, Any]) -> None:
    temperature = 0.8
    model, snapshot, obs = rollout(arguments | {"temperature": temperature}, policy_kwargs={"temperature": temperature})
    policy = model.policy
    torch.nn.init.normal_(policy.value_net.weight, generator=torch.Generator().manual_seed(0))
    actions = torch.from_numpy(snapshot.columns["actions"].swapaxes(0, 1).reshape(48))
    policy.set_training_mode(True)
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    for order in (torch.arange(48), shuffled):  # runs that share a forward; hardly any
        batch = {key: value[order].float() for key, value in obs.items()}  # SB3's preprocessing makes floats
        values, log_probs, entropies = policy.evaluate_actions(batch, actions[order])
        for at in order[:10].tolist():
            place = int((order == at).nonzero())
            prefix = obs["input_ids"][at][obs["attention_mask"][at] == 1].tolist()
            expected = (plain_logits(arguments["model"], prefix) / temperature).log_softmax(-1)
            assert log_probs[place].item() == pytest.approx(expected[actions[at]].item(), abs=1e-4)
            assert entropies[place].item() == pytest.approx(-(expected.exp() * expected).sum().item(), abs=1e-3)
        distribution = policy.get_distribution(batch)
        torch.testing.assert_close(distribution.log_prob(actions[order]), log_probs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(policy.predict_values(batch), values, atol=1e-4, rtol=1e-4)
        policy.set_training_mode(False)  # as in rollouts: through the cache
        torch.testing.assert_close(policy.predict_values(batch), values, atol=1e-4, rtol=1e-4)
        policy.set_training_mode(True)


def test_rollout_log_probs_are_those_of_the_sampled_tokens(arguments: dict[str, Any]) -> None:
    _, snapshot, obs = rollout(arguments)
    actions, log_probs = (snapshot.columns[name].swapaxes(0, 1).reshape(48) for name in ("actions", "log_probs"))
    for at in range(0, 48, 5):
        prefix = obs["input_ids"][at][obs["attention_mask"][at] == 1].tolist()
        expected = plain_logits(arguments["model"], prefix).log_softmax(-1)[actions[at]].item()
        assert log_probs[at] == pytest.approx(expected, abs=1e-4)


def test_transitions_share_texts_only_where_they_continue() -> None:
    ids = torch.tensor([[5, 0, 0, 0], [5, 6, 0, 0], [5, 6, 7, 0], [5, 6, 9, 0], [5, 0, 0, 0]])
    lengths, actions = torch.tensor([1, 2, 3, 3, 1]), torch.tensor([6, 7, 8, 4, 3])
    shared = share_forwards(ids, lengths, actions)  # 0-1-2 go on; 3 has another token; 4 starts again
    assert shared.input_ids.tolist() == [[5, 6, 7, 8], [5, 6, 9, 4], [5, 3, 0, 0]]
    assert shared.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert shared.response_mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0]]
    reversed_ = share_forwards(ids.flip(0), lengths.flip(0), actions.flip(0))
    assert len(reversed_.input_ids) == 5
    assert share_forwards(ids, lengths).response_mask.tolist() == shared.response_mask.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ratios_of_the_first_epoch_are_exactly_one(arguments: dict[str, Any], dtype: str) -> None:
    more = {"dtype": dtype, "lora_rank": 2} if dtype == "bfloat16" else {}
    model, snapshot, _ = rollout(arguments, policy_kwargs=more)
    decoded = snapshot.columns["log_probs"].swapaxes(0, 1).ravel()
    model.policy.set_training_mode(True)
    seen = 0
    for batch in model.rollout_buffer.get(24):
        log_probs = model.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())[1]
        assert torch.equal(log_probs, batch.old_log_prob)
        seen += len(batch.old_log_prob)
    assert seen == 48
    gap = np.abs(model.rollout_buffer.log_probs.ravel() - decoded).max()
    assert gap < (1e-4 if dtype == "float32" else 0.3)  # what the ratios would have been off by


def test_minibatches_hold_whole_segments(arguments: dict[str, Any]) -> None:
    model = rollout(arguments)[0]
    for _ in range(2):
        sizes = []
        for batch in model.rollout_buffer.get(12):
            lengths = batch.observations["response_mask"].sum(1)
            begins = [at for at in range(len(lengths)) if at == 0 or lengths[at] != lengths[at - 1] + 1]
            follows = batch.observations["input_ids"][1:] != batch.observations["input_ids"][:-1]
            assert all(follows[at - 1].sum() == 1 for at in range(1, len(lengths)) if at not in begins)
            sizes.append(len(lengths))
        assert sum(sizes) == 48
        assert len(sizes) == 4
        assert max(sizes) <= 12 + 6  # a share and one segment


def test_only_chosen_weights_learn(arguments: dict[str, Any]) -> None:
    for options, learning in (({"frozen_layers": 1}, "layers.1."), ({"lora_rank": 2}, "lora_")):
        model = ppo(make(arguments), arguments["model"], policy_kwargs=options)
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(48)
        changed = {name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])}
        assert any(learning in name for name in changed)
        if "lora_rank" in options:
            assert all("lora_" in name or "value_net" in name for name in changed)
        else:
            assert not any("layers.0." in name or "embed_tokens" in name for name in changed)
    assert {name for name, _ in model.policy.named_parameters()} >= {"value_net.weight"}


def test_the_environments_own_model_is_not_trained(arguments: dict[str, Any]) -> None:
    venv = make(arguments)
    mine = venv.venv.unwrapped.language_model  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in mine.model.state_dict().items()}
    ppo(venv, mine).learn(48)
    assert all(torch.equal(value, before[name]) for name, value in mine.model.state_dict().items())


def test_bad_settings_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="over LMFeatures use 'MlpPolicy'"):
        ppo(SB3VecEnv(VectorLMFeatures(TextGenVectorEnv(2, **arguments))), arguments["model"])
    with pytest.raises(ValueError, match=r"Discrete\(4\) is not Discrete\(259\)"):
        ppo(SB3VecEnv(VectorTopKActions(TextGenVectorEnv(2, **arguments), 4)), arguments["model"])
    for options, message in (
        ({"frozen_layers": 3}, "frozen_layers=3 must be from 0 to the 2 blocks"),
        ({"lora_rank": -1}, "lora_rank=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            ppo(make(arguments), arguments["model"], policy_kwargs=options)
    with pytest.warns(UserWarning, match="round small steps of the optimiser away"):
        ppo(make(arguments), arguments["model"], policy_kwargs={"dtype": "bfloat16"})


# --- KL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_rewards_in_the_buffer_are_those_of_the_bound_policy_and_of_a_teacher_forced_pass(
    arguments: dict[str, Any], estimator: str
) -> None:
    model, snapshot = ppo(make(arguments), arguments["model"]), Snapshot()
    model.env.seed(7)  # type: ignore[union-attr]
    model.learn(48, callback=[KLPenaltyCallback(BETA, kl_estimator=estimator), snapshot])
    rewards, actions = snapshot.columns["rewards"], snapshot.columns["actions"][..., 0]
    assert any(snapshot.columns["episode_starts"][1:].any(axis=0))  # some ended, and their KL came with final_info

    policy = LanguageModel(arguments["model"])  # what the policy was in the rollout
    bound = TextGenVectorEnv(4, **arguments, kl_coef=BETA, kl_estimator=estimator)
    bound.bind_policy(policy)
    bound.reset(seed=7)
    paid = np.stack([bound.step(row)[1] for row in actions])
    np.testing.assert_allclose(rewards, paid, atol=1e-5)

    free = TextGenVectorEnv(4, **arguments)  # the score alone
    free.reset(seed=7)
    scores = np.stack([free.step(row)[1] for row in actions])
    reference = LanguageModel(arguments["reference"])
    for slot in range(4):
        starts = np.flatnonzero(snapshot.columns["episode_starts"][:, slot])
        for begin, end in zip(starts, [*starts[1:], 12], strict=True):
            observation = {key: value[begin, slot] for key, value in snapshot.observations.items()}
            prompt = observation["input_ids"][observation["attention_mask"] == 1].tolist()
            ids = torch.tensor([prompt + actions[begin:end, slot].tolist()])
            log_p, log_q = (
                lm.log_probs(ids, torch.ones_like(ids))[0, len(prompt) :].double().numpy() for lm in (policy, reference)
            )
            ratio = log_p - log_q
            kl = {"k1": ratio, "k2": ratio**2 / 2, "k3": np.exp(-ratio) - 1 + ratio}[estimator]
            np.testing.assert_allclose(rewards[begin:end, slot], scores[begin:end, slot] - BETA * kl, atol=1e-5)


class Log(BaseCallback):
    """Keeps what is logged at each rollout's end."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rows.append(dict(self.logger.name_to_value))


def test_logged_kl_is_raw_and_the_coefficient_adapts(arguments: dict[str, Any]) -> None:
    coefficient, log = AdaptiveKLCoefficient(BETA, target=1e-3, horizon=10), Log()
    model = ppo(make(arguments | {"max_new_tokens": 1}), arguments["model"])  # one token a response: all end
    snapshot = Snapshot()
    model.learn(48, callback=[KLPenaltyCallback(coefficient), log, snapshot])
    row = log.rows[0]
    assert row["kl/coef"] == BETA
    assert row["kl/per_response"] == pytest.approx(row["kl/per_token"])
    assert row["kl/penalty_per_response"] == pytest.approx(BETA * row["kl/per_response"])
    assert row["kl/per_token_k3"] > 0
    assert row["rollout/response_length"] == 1
    shaped = snapshot.columns["rewards"].mean()
    assert shaped == pytest.approx(row["rollout/score"] - row["kl/penalty_per_response"], abs=1e-5)
    assert coefficient.value == pytest.approx(BETA * 1.2)  # 48 responses, above the target: the full step


def test_kl_of_ranks_is_relative_to_the_restricted_reference(arguments: dict[str, Any]) -> None:
    """A policy that has all its mass on rank 0 of 1 differs in nothing from the reference's only choice."""
    venv = SB3VecEnv(VectorLMFeatures(VectorTopKActions(TextGenVectorEnv(4, **arguments), 1)))
    log = Log()
    PPO("MlpPolicy", venv, n_steps=8, batch_size=32, device="cpu").learn(32, callback=[KLPenaltyCallback(1.0), log])
    assert log.rows[0]["kl/per_token"] == pytest.approx(0, abs=1e-6)


def test_kl_callback_works_on_sb3s_own_vectorised_environments(arguments: dict[str, Any]) -> None:
    """The same seeds and the same sampling give the same rewards, whoever batches."""
    found = []
    for venv in (make(arguments, 2), DummyVecEnv([lambda: Monitor(TextGenEnv(**arguments))] * 2)):
        snapshot = Snapshot()
        ppo(venv, arguments["model"], batch_size=8).learn(24, callback=[KLPenaltyCallback(BETA), snapshot])
        found.append(snapshot.columns)
    np.testing.assert_array_equal(found[0]["actions"], found[1]["actions"])
    np.testing.assert_allclose(found[0]["rewards"], found[1]["rewards"], atol=1e-5)


def test_kl_callback_complains(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="full_kl"):
        KLPenaltyCallback(0.1, kl_estimator="full")
    with pytest.raises(ValueError, match=r"temperature=1\.0 of the policy differs from the environment's 0\.5"):
        ppo(make(arguments | {"temperature": 0.5}), arguments["model"]).learn(48, callback=KLPenaltyCallback(0.1))
    venv = SB3VecEnv(VectorLMFeatures(VectorTopKActions(TextGenVectorEnv(2, **arguments), 4)))
    with pytest.raises(ValueError, match="DQN keeps no log-probabilities"):
        DQN("MlpPolicy", venv, buffer_size=100, learning_starts=4).learn(8, callback=KLPenaltyCallback(0.1))


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


def test_masked_tokens_are_never_written_and_take_no_probability(arguments: dict[str, Any]) -> None:
    venv = make(arguments | {"forbidden_tokens": list(range(100, 200)), "min_new_tokens": 3})
    model = MaskablePPO(
        MaskableLMActorCriticPolicy,
        venv,
        rollout_buffer_class=MaskableEpisodeRolloutBuffer,
        policy_kwargs={"model": arguments["model"]},
        n_steps=12,
        batch_size=24,
        seed=0,
    )
    _, callback = model._setup_learn(48)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)  # a masked token would be an error
    assert model.rollout_buffer.action_masks.nbytes == 48 * 33  # bits
    batch = next(iter(model.rollout_buffer.get(None)))
    lengths = batch.observations["response_mask"].sum(1)
    expected = torch.ones(48, VOCAB, dtype=torch.bool)
    expected[:, 100:200] = False
    expected[lengths < 3, EOS] = False
    assert torch.equal(batch.action_masks, expected)
    at = 17
    prefix = batch.observations["input_ids"][at][batch.observations["attention_mask"][at] == 1].tolist()
    logits = plain_logits(arguments["model"], prefix).masked_fill(~expected[at], -torch.inf)
    action = batch.actions[at].long()
    assert batch.old_log_prob[at].item() == pytest.approx(logits.log_softmax(-1)[action].item(), abs=1e-4)


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
    assert mean_score(model, features(arguments, 4)) > before + 0.25


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
