"""Models with adapters of peft beside low-rank ones: whole layers or single tokens' embeddings that learn.

The oracle is the wrapped model's plain forward of each text alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SMALL, VOCAB, byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.log_probs import response_log_probs
from textgen_env.lm.prefix_cache import PrefixCache, path_of
from textgen_env.lm.token_batch import TokenBatch

peft = pytest.importorskip("peft", reason="peft is not installed")

KINDS: dict[str, dict[str, Any]] = {
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "some tokens": {"trainable_token_indices": [5, 6, 9]},
    "some tokens of a named layer": {"trainable_token_indices": {"embed_tokens": [5, 6, 9]}},
    "low rank in the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "magnitudes": {"use_dora": True},
}
TIED = ["embedding", "some tokens", "low rank in the embedding"]
CASES = [(name, False) for name in KINDS] + [(name, True) for name in TIED]


def adapted(name: str, tied: bool = False) -> Any:
    """A random Llama whose adapters have all left their start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
        settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | KINDS[name]
        model: Any = peft.get_peft_model(base, peft.LoraConfig(**copy.deepcopy(settings)))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad and "lora_" not in key:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def own_log_probs(model: Any, text: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(text).unsqueeze(0)).logits[0, :, :VOCAB].log_softmax(-1)


def assert_own(model: Any, cache: PrefixCache, context: Callable[[], Any] = nullcontext) -> None:
    """Decoding and scoring of two texts give the model's own log-probs."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 12, size=size) for size in (9, 6)]  # tokens that learn, and others
    with context():
        expected = [own_log_probs(model, text) for text in texts]
    for cut in (3, 2, 1):
        ids = np.stack([np.pad(text[: len(text) - cut], (0, cut + 9 - len(text))) for text in texts])
        ours = cache.next_logits(ids, [9 - cut, 6 - cut]).log_softmax(-1)
        for row in range(2):
            torch.testing.assert_close(ours[row], expected[row][len(texts[row]) - cut - 1], atol=1e-4, rtol=0)
    ids = torch.from_numpy(np.stack([np.pad(text, (0, 9 - len(text))) for text in texts]))
    attention = (torch.arange(9) < torch.tensor([[9], [6]])).long()
    response = attention * (torch.arange(9) > 0).long()
    with context(), torch.no_grad():
        scores = response_log_probs(model, TokenBatch(ids, attention, response), vocab_size=VOCAB).log_probs
    wanted = [expected[row][column - 1, ids[row, column]] for row, column in response.nonzero().tolist()]
    torch.testing.assert_close(scores[response.bool()], torch.stack(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "tied"), CASES)
def test_the_policy_and_its_reference_are_the_models_own(name: str, tied: bool) -> None:
    model = adapted(name, tied)
    ours = PrefixCache(model, 2, vocab_size=VOCAB)
    reference = PrefixCache(model, 2, vocab_size=VOCAB, context=model.disable_adapter)
    text = np.array([5, 6, 7, 9])
    with model.disable_adapter():
        without = own_log_probs(model, text)
    assert (without - own_log_probs(model, text)).abs().max() > 0.1
    for _ in range(2):
        assert_own(model, ours)
        assert_own(model, reference, model.disable_adapter)
    assert path_of(model.get_base_model()) == "slots"


@pytest.mark.parametrize("name", ["embedding", "some tokens", "low rank in the embedding"])
def test_what_happens_to_adapters_is_noticed(name: str) -> None:
    """A step of an optimiser, switching off by hand, and merging into the weights."""
    model = adapted(name)
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    assert_own(model, cache)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = own_log_probs(model, np.array([5, 6, 7]))
    model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimiser.step()
    assert (own_log_probs(model, np.array([5, 6, 7])) - before).abs().max() > 1e-2
    assert_own(model, cache)
    with model.disable_adapter():
        assert_own(model, cache)
    assert_own(model, cache)
    model.merge_adapter()
    assert_own(model, cache)
    model.unmerge_adapter()
    assert_own(model, cache)


def test_another_adapter_is_noticed() -> None:
    model = adapted("embedding")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    for adapter in ("default", "other", "default"):
        model.set_adapter(adapter)
        assert_own(model, cache)


def test_as_a_language_model() -> None:
    model = LanguageModel.from_modules(adapted("some tokens"), byte_tokenizer())
    assert_own(model.model, PrefixCache(model.model, 2, vocab_size=VOCAB))
    assert model.prefix_cache(1).next_logits([[5, 6]], [2]).shape == (1, model.vocab_size)
