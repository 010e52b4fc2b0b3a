"""The actor-critic against plain forwards, and what must not happen in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from textgen_env.agents.policy import ActorConfig, ActorCritic, PolicyConfig, ValueHead
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams
from textgen_env.lm.token_batch import TokenBatch

IDS = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 9, 1, 1]])
ATTENTION = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
RESPONSE = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
TEXTS = TokenBatch(IDS, ATTENTION, RESPONSE)


def with_random_head(policy: ActorCritic) -> ActorCritic:
    torch.nn.init.normal_(policy.value_head.out.weight, generator=torch.Generator().manual_seed(0))
    return policy


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_values_read_the_state_before_the_token(word_model: Path, critic):
    """One prefix at a time, unpadded: V(s_t) is the head on the last hidden state of the tokens before t."""
    policy = with_random_head(ActorCritic(LanguageModel(word_model), PolicyConfig(critic=critic)))
    model = LanguageModel(word_model).model
    values = policy(TEXTS).values
    expected = [
        policy.value_head(model.model(input_ids=IDS[row : row + 1, :t]).last_hidden_state[0, -1])
        for row, t in RESPONSE.nonzero().tolist()
    ]
    torch.testing.assert_close(values[RESPONSE.bool()], torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert values[RESPONSE == 0].eq(0).all()
    final = policy.final_values(IDS, ATTENTION)
    for row, length in enumerate((5, 3)):
        hidden = model.model(input_ids=IDS[row : row + 1, :length]).last_hidden_state[0, -1]
        torch.testing.assert_close(final[row], policy.value_head(hidden), atol=1e-5, rtol=1e-4)


def test_values_start_at_a_constant(word_model: Path):
    """Zero, or what it is told; a head that has learned is not started again."""
    policy = ActorCritic(LanguageModel(word_model))
    assert policy(TEXTS).values.eq(0).all()
    policy.value_head.start_at(0.25)
    assert torch.equal(policy(TEXTS).values, 0.25 * RESPONSE)
    with_random_head(policy).value_head.start_at(7.0)
    assert policy.value_head.out.bias.item() == 0.25


def test_the_value_head_by_hand():
    """d = 2: the states (5, 1) and (2, 4) are (1, −1) and (−1, 1) when normalised; four sums, their ReLU, one sum."""
    head = ValueHead(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]))
        head.hidden.bias.copy_(torch.tensor([0.0, 0.5, 0.0, 3.0]))
        head.out.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        head.out.bias.fill_(0.5)
    values = head(torch.tensor([[5.0, 1.0], [2.0, 4.0]]))
    # (1, −0.5, 1, 3) and (−1, 1.5, −1, 3)
    torch.testing.assert_close(values, torch.tensor([3101.5, 3015.5]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_the_scale_of_the_states_does_not_matter(scale):
    head = ValueHead(8, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(head.out.weight, generator=torch.Generator().manual_seed(1))
    states = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(head(scale * states), head(states), rtol=1e-2, atol=1e-3)
    assert head(states.bfloat16()).dtype == torch.float32


def test_training_mode_is_refused(word_model: Path):
    policy = ActorCritic(LanguageModel(word_model))
    policy.train()
    with pytest.raises(RuntimeError, match=r"training mode; call policy.eval\(\)"):
        policy(TEXTS)


def test_a_detached_or_separate_critic_sends_no_gradient_into_the_actor(word_model: Path):
    for critic, reaches in (("shared", True), ("detached", False), ("separate", False)):
        policy = with_random_head(ActorCritic(LanguageModel(word_model), PolicyConfig(critic=critic)))
        policy(TEXTS).values.sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in policy.actor.parameters()) is reaches


def test_lora_trains_adapters_alone_and_starts_at_the_reference(word_model: Path):
    policy = ActorCritic(LanguageModel(word_model), PolicyConfig(lora_rank=2))
    learning = {name for name, p in policy.actor.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    plain = ActorCritic(LanguageModel(word_model))(TEXTS).log_probs
    torch.testing.assert_close(policy(TEXTS).log_probs, plain)
    again = ActorCritic(LanguageModel(word_model), PolicyConfig(lora_rank=2))
    states = zip(policy.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states), "adapters and value head come from a generator of their own"


def test_every_weight_that_learns_is_in_one_group(word_model: Path):
    policy = ActorCritic(LanguageModel(word_model), PolicyConfig(critic="separate", frozen_layers=1))
    groups = policy.parameter_groups(1e-4, 1e-3)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in policy.parameters() if p.requires_grad)
    assert [group["lr"] for group in groups] == [1e-4, 1e-3]
    assert len(groups[1]["params"]) == 4


@pytest.mark.parametrize("layers", [-1, 3])
def test_frozen_layers_out_of_range_are_named(word_model: Path, layers):
    with pytest.raises(ValueError, match=f"frozen_layers={layers} must be from 0 to the 2 blocks"):
        ActorCritic(LanguageModel(word_model), PolicyConfig(frozen_layers=layers))


def test_global_generators_are_left_alone(word_model: Path):
    before = torch.get_rng_state()
    ActorCritic(LanguageModel(word_model), PolicyConfig(lora_rank=2, critic="separate"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_call_is_what_is_trained_and_its_former_name_does_the_same(word_model: Path):
    """The hooks of DDP and FSDP are those of a call; `evaluate` takes the batch, or its tensors and fields."""
    policy, calls = with_random_head(ActorCritic(LanguageModel(word_model))), []
    policy.register_forward_hook(lambda *_: calls.append(1))
    cooler = policy(TEXTS, SamplingParams(0.5), with_entropy=True)
    with pytest.warns(DeprecationWarning, match=r"SamplingParams\(temperature=0.5\)"):
        old = policy.evaluate(IDS, ATTENTION, RESPONSE, temperature=0.5, with_entropy=True)
    assert all(torch.equal(a, b) for a, b in zip(cooler[:3], old[:3], strict=True))
    assert cooler[3:] == old[3:] == (None, None)  # no reference was given
    assert torch.equal(policy.evaluate(TEXTS).log_probs, policy(TEXTS).log_probs)
    assert len(calls) == 4


def test_a_policy_without_a_critic_has_no_values(word_model: Path, tmp_path: Path):
    policy = ActorCritic(LanguageModel(word_model), ActorConfig(frozen_layers=1))
    assert policy.value_head is None
    assert policy(TEXTS).values is None
    (group,) = policy.parameter_groups(1e-3)
    assert {id(p) for p in group["params"]} == {id(p) for p in policy.actor.parameters() if p.requires_grad}
    policy.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "critic.safetensors").exists()


def test_the_reference_takes_the_temperature_and_neither_top_k_nor_top_p(word_model: Path):
    """By the library's own logits of each prefix; and it stays when the policy moves."""
    policy = ActorCritic(LanguageModel(word_model))
    reference = policy.reference()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.5)
    log_probs = reference(TEXTS, SamplingParams(0.5, top_k=1, top_p=0.1))
    model = LanguageModel(word_model).model
    for row, t in RESPONSE.nonzero().tolist():
        with torch.no_grad():
            expected = (model(IDS[row : row + 1, :t]).logits[0, -1] / 0.5).log_softmax(-1)[IDS[row, t]]
        torch.testing.assert_close(log_probs[row, t], expected, atol=1e-5, rtol=1e-5)
    assert log_probs[RESPONSE == 0].eq(0).all()


def test_distributed_data_parallel_wraps_it(word_model: Path, tmp_path: Path):
    """A process group of one: its hooks see the named tuples, and the gradient is that of the policy alone."""
    gradients = []
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for wrap in (lambda policy: policy, torch.nn.parallel.DistributedDataParallel):
            policy = with_random_head(ActorCritic(LanguageModel(word_model)))
            evaluation = wrap(policy)(TEXTS, SamplingParams(0.7), with_entropy=True)
            (evaluation.log_probs + evaluation.values).sum().backward()
            gradients.append([p.grad for p in policy.parameters()])
    finally:
        dist.destroy_process_group()
    for alone, wrapped in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, wrapped)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
