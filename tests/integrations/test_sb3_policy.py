"""The language model as policy of Stable-Baselines3: log-probs, values, minibatches, what learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_setup import EOS, VOCAB, Snapshot, make, ppo
from stable_baselines3 import PPO
from transformers import AutoModelForCausalLM

from textgen_env import TextGenVectorEnv
from textgen_env.integrations.sb3 import MaskableEpisodeRolloutBuffer, MaskableLMActorCriticPolicy, SB3VecEnv
from textgen_env.integrations.sb3_policy import share_forwards
from textgen_env.wrappers import VectorLMFeatures, VectorTopKActions


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
