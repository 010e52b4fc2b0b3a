"""Response log-probabilities against each sequence alone, and their gradients against the model's own loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SMALL, VOCAB, random_model
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from textgen_env.lm import log_probs as module
from textgen_env.lm.backbone import split
from textgen_env.lm.gqa_attention import best_attention
from textgen_env.lm.log_probs import read_states, response_log_probs, unpack
from textgen_env.lm.sampling import SamplingParams
from textgen_env.lm.slot_attention import attention_of
from textgen_env.lm.token_batch import TokenBatch


def from_config(config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def lora() -> Any:
    model: Any = random_model("llama", VOCAB)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()


MODELS: dict[str, Any] = {
    "llama": random_model("llama", VOCAB),
    "gpt2": random_model("gpt2", VOCAB),
    "lora": lora(),
    "gemma2 (capped logits)": from_config(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5)),
    "granite (divided logits)": from_config(GraniteConfig(**SMALL, logits_scaling=3.0)),
    "cohere (scaled logits)": from_config(CohereConfig(**SMALL, logit_scale=0.2)),
}


def batch() -> TokenBatch:
    """Four rows of different lengths; the third has a stretch inside the response that the agent did not write."""
    ids = torch.randint(3, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(12) < torch.tensor([12, 6, 11, 5])[:, None]).long()
    response = attention * (torch.arange(12) >= torch.tensor([4, 3, 2, 5])[:, None]).long()
    response[2, 5:7] = 0
    return TokenBatch(ids, attention, response)


def written(grid: torch.Tensor | None) -> torch.Tensor:
    """The response tokens' values, row by row; there are none elsewhere."""
    assert grid is not None
    mask = batch().response_mask.bool()
    assert not grid[~mask].any()
    return grid[mask]


def hidden_states(model: Any, texts: TokenBatch) -> torch.Tensor:
    """(N, d): what predicts the response tokens, by the library's own forward of each text alone."""
    rows = []
    for row, column in texts.response_mask.nonzero().tolist():
        rows.append(model.model(input_ids=texts.input_ids[row : row + 1, :column]).last_hidden_state[0, -1])
    return torch.stack(rows).detach()


def expected_scores(model: Any, warp: Any = lambda logits: logits) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: one sequence at a time, one position at a time."""
    ids, attention, response = batch()
    log_probs, entropy = [], []
    for row in range(4):
        logits = model(ids[row : row + 1, : attention[row].sum()]).logits[0, :, :VOCAB].double()
        for column in range(12):
            if response[row, column]:
                distribution = torch.distributions.Categorical(logits=warp(logits[column - 1]))
                log_probs.append(distribution.log_prob(ids[row, column]))
                entropy.append(distribution.entropy())
    return torch.stack(log_probs), torch.stack(entropy)


@pytest.mark.parametrize("name", MODELS)
def test_equals_one_sequence_at_a_time(name: str) -> None:
    scores = response_log_probs(MODELS[name], batch(), vocab_size=VOCAB, with_entropy=True)
    log_probs, entropy = expected_scores(MODELS[name])
    torch.testing.assert_close(written(scores.log_probs).double(), log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(written(scores.entropy).double(), entropy, atol=1e-5, rtol=1e-5)
    assert split(MODELS[name]) is not None


def test_unknown_head_uses_the_models_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(MODELS["llama"])
    head = type(model.lm_head).forward
    forward = type(model).forward

    def odd(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.sin()
        return output

    monkeypatch.setattr(type(model), "forward", odd)
    scores = response_log_probs(model, batch(), vocab_size=VOCAB)
    assert split(model) is None
    torch.testing.assert_close(written(scores.log_probs).double(), expected_scores(model)[0], atol=1e-5, rtol=1e-5)
    assert head is not None


def test_warping_is_applied_before_the_softmax() -> None:
    mask = torch.ones(VOCAB, dtype=torch.bool)
    mask[::7] = False
    ids, attention, response = batch()
    ids[~mask[ids]] += 1  # written under the mask
    model = MODELS["llama"]
    texts, cooler = TokenBatch(ids, attention, response), SamplingParams(temperature=0.7)
    scores = response_log_probs(model, texts, cooler, vocab_size=VOCAB, mask=mask, with_entropy=True)
    hidden = hidden_states(model, texts)
    logits = (model.lm_head(hidden)[:, :VOCAB].double() / 0.7).masked_fill(~mask, -torch.inf)
    expected = logits.log_softmax(-1).gather(1, ids[response.bool()].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(written(scores.log_probs).double(), expected.detach(), atol=1e-5, rtol=1e-5)
    assert scores.entropy is not None
    assert torch.isfinite(scores.entropy).all()


def test_top_k_never_makes_a_taken_action_impossible() -> None:
    scores = response_log_probs(MODELS["llama"], batch(), SamplingParams(top_k=1), vocab_size=VOCAB)
    assert torch.isfinite(scores.log_probs).all()
    ids, _, response = batch()
    logits = MODELS["llama"].lm_head(hidden_states(MODELS["llama"], batch()))[:, :VOCAB]
    best, taken = logits.max(-1).values, logits.gather(1, ids[response.bool()].unsqueeze(1)).squeeze(1)
    two = torch.stack([taken, best]).log_softmax(0)[0]  # the set is {best, taken}
    expected = torch.where(taken == best, torch.zeros(()), two)
    torch.testing.assert_close(written(scores.log_probs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1024, 3])
def test_gradients_equal_those_of_the_whole_computation(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in chunks whose logits are recomputed in the backward."""
    monkeypatch.setattr(module, "TOKENS_PER_CHUNK", chunk)
    model = copy.deepcopy(MODELS["llama"])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    scores = response_log_probs(model, batch(), SamplingParams(1.3), vocab_size=VOCAB, with_entropy=True)
    assert scores.entropy is not None
    weights = torch.linspace(-1, 1, int(batch().response_mask.sum()))
    ours = gradients((written(scores.log_probs) * weights).sum() + 0.5 * scores.entropy.sum())
    log_probs, entropy = expected_scores(model, lambda logits: logits / 1.3)
    theirs = gradients((log_probs * weights).sum() + 0.5 * entropy.sum())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.to(mine.dtype), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite (divided logits)"])
def test_attention_of_short_texts_in_half_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves float32 models here, where it must agree with the library's to rounding: scores and gradients."""
    model = copy.deepcopy(MODELS[name])
    model.config._attn_implementation = "sdpa"

    def run() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        scores = response_log_probs(model, batch(), vocab_size=VOCAB).log_probs
        return scores.detach(), torch.autograd.grad(scores.sum(), list(model.parameters()))

    theirs, their_gradients = run()
    context = lambda inner, length: attention_of(inner.config, "textgen_grouped")  # noqa: E731
    monkeypatch.setattr(module, "best_attention", context)
    ours, our_gradients = run()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_gradients, their_gradients, atol=1e-4, rtol=1e-3)


def test_half_precision_on_a_cpu_takes_that_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(MODELS["llama"]).bfloat16()
    loose = expected_scores(MODELS["llama"])[0].float()
    with best_attention(model, 12):
        assert model.config._attn_implementation == "textgen_grouped"
    with best_attention(model, 1000):
        assert model.config._attn_implementation == "sdpa"
    scores = response_log_probs(model, batch(), vocab_size=VOCAB).log_probs
    torch.testing.assert_close(written(scores), loose, atol=0.3, rtol=0)
    assert model.config._attn_implementation == "sdpa"


def test_hidden_states_are_those_that_predict() -> None:
    """Whoever reads them is handed (N, d), and what it makes of them stands where the tokens stand."""
    model, given = MODELS["llama"], []

    def third(hidden: torch.Tensor) -> torch.Tensor:
        given.append(hidden.detach())
        return hidden[:, 2]

    scores = response_log_probs(model, batch(), readout=third)
    alone = hidden_states(model, batch())
    torch.testing.assert_close(written(scores.readout).detach(), alone[:, 2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given[0], alone, atol=1e-5, rtol=1e-5)
    assert response_log_probs(model, batch()).readout is None
    torch.testing.assert_close(read_states(model, batch(), third), scores.readout)


def test_no_response_no_scores() -> None:
    ids, attention, response = batch()
    scores = response_log_probs(MODELS["llama"], TokenBatch(ids, attention, response * 0), with_entropy=True)
    assert scores.entropy is not None
    for grid in (scores.log_probs, scores.entropy):
        assert grid.shape == ids.shape
        assert not grid.any()


def test_unpack_puts_each_token_where_it_stands_and_carries_the_gradient() -> None:
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]])
    per_token = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    grid = unpack(per_token, mask)
    assert grid.tolist() == [[0, 1, 0, 2], [0, 0, 0, 0], [0, 0, 3, 0]]
    (grid * torch.arange(12.0).view(3, 4)).sum().backward()
    assert per_token.grad is not None
    assert per_token.grad.tolist() == [1, 3, 10]
    assert unpack(torch.tensor([7, 8, 9]), mask).dtype == torch.int64


@pytest.mark.parametrize("count", [2, 4])
def test_unpack_refuses_another_number_of_tokens(count: int) -> None:
    with pytest.raises(ValueError, match=rf"per_token has shape \({count},\); response_mask marks 3 tokens"):
        unpack(torch.zeros(count), torch.tensor([[0, 1, 1, 1]]))
