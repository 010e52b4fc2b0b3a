"""Models that no fast way fits, or only in part: whatever is asked, what the model's plain forward of that text gives.

The environment and its agents on such models are in `test_models_in_use.py`.
"""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch
from model_zoo import KINDS, LONGEST, batch, build, own_log_probs, random_of
from tiny_models import SMALL, VOCAB

from textgen_env.lm import prefix_cache, slot_attention
from textgen_env.lm.log_probs import response_log_probs, way_of
from textgen_env.lm.position_switches import Switches, position_switches
from textgen_env.lm.prefix_cache import PrefixCache, path_of
from textgen_env.lm.verification import Oracle, undisturbed


def expected_scores(model: Any) -> torch.Tensor:
    """One text at a time, each token after the text before it."""
    ids, _, response = batch()
    return torch.stack(
        [own_log_probs(model, ids[row, :column])[ids[row, column]] for row, column in response.nonzero().tolist()]
    )


@pytest.mark.parametrize("name", KINDS)
def test_decoding_is_the_models_own(name: str) -> None:
    """Four rows of unequal length that grow over every switch, restart, shrink and rest."""
    model, rng = build(name), np.random.default_rng(1)
    cache = PrefixCache(model, 4, vocab_size=VOCAB)
    texts = [rng.integers(3, VOCAB, size=size) for size in (3, 7, 1, 12)]
    with torch.no_grad():
        for step in range(13):
            rows = np.array([0, 1, 2, 3] if step % 4 else [3, 0, 1])
            lengths = [len(texts[row]) for row in rows]
            ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
            for place, row in enumerate(rows):
                ids[place, : lengths[place]] = texts[row]
            ours = cache.next_logits(ids, lengths, rows).log_softmax(-1)
            for place, row in enumerate(rows):
                torch.testing.assert_close(ours[place], own_log_probs(model, texts[row]), atol=2e-4, rtol=0)
                texts[row] = np.append(texts[row], rng.integers(3, VOCAB))
            if step == 5:
                texts[0] = rng.integers(3, VOCAB, size=4)
            if step == 8:
                texts[3] = texts[3][:6]
    assert path_of(model) == KINDS[name][3]


@pytest.mark.parametrize("name", KINDS)
def test_scoring_is_the_models_own(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        ours = response_log_probs(model, *batch(), vocab_size=VOCAB).log_probs
        torch.testing.assert_close(ours, expected_scores(model), atol=2e-4, rtol=0)
    assert way_of(model) == ("alone" if name == "xlnet" else "fast")


@pytest.mark.parametrize("name", ["mamba", "roberta", "phi3-longrope", "llama-dynamic", "xlnet"])
def test_gradients_are_the_models_own(name: str) -> None:
    """After decoding, which must leave nothing behind that gradients stumble over."""
    model = build(name)
    PrefixCache(model, 1).next_logits([list(range(3, 3 + LONGEST))], [LONGEST])
    ours = response_log_probs(model, *batch(), vocab_size=VOCAB).log_probs.sum()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mine = torch.autograd.grad(ours, learning, allow_unused=True)
    theirs = torch.autograd.grad(expected_scores(model).sum(), learning, allow_unused=True)
    for gradient, expected in zip(mine, theirs, strict=True):
        if expected is not None:
            torch.testing.assert_close(gradient, expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["mamba", "roberta", "llama-dynamic", "phi3-longrope-window", "bamba", "phimoe-longrope"]
)
def test_bfloat16_and_training_mode(name: str) -> None:
    model = build(name).bfloat16().train()
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    for length in (3, 4, 12):
        ours = cache.next_logits([list(range(3, 3 + length)), [5] * length], [length, 2]).log_softmax(-1)
        expected = own_log_probs(copy.deepcopy(model).eval(), list(range(3, 3 + length)))
        torch.testing.assert_close(ours[0], expected, atol=0.5, rtol=0)  # 8 bits, logits of some 10
    assert path_of(model) == KINDS[name][3]
    assert all(module.training for module in model.modules())


def test_one_log_line_says_what_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    model = build("mamba")
    with caplog.at_level(logging.WARNING):
        for length in (3, 4, 5):
            PrefixCache(model, 1, vocab_size=VOCAB).next_logits([[5] * length], [length])
            response_log_probs(model, *batch(), vocab_size=VOCAB)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("textgen_env")]
    assert len(lines) == 1
    assert lines[0].startswith("MambaForCausalLM: decoding falls back to reading each prefix anew at every step")


def looks_ahead() -> Any:
    return random_of("BertLMHeadModel", "BertConfig", **{**SMALL, "is_decoder": False})


def random_answers() -> Any:
    """Reformer hashes by fresh random rotations, even in evaluation mode."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8}
    positions = {"axial_pos_embds": False, "max_position_embeddings": 64, "feed_forward_size": 48}
    hashes = {"attn_layers": ["lsh"], "lsh_attn_chunk_length": 16, "num_buckets": 4, "is_decoder": True}
    return random_of("ReformerModelWithLMHead", "ReformerConfig", **sizes, **positions, **hashes)


def not_finite() -> Any:
    model = build("mistral-window")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    return model


def needs_more() -> Any:
    model = build("mistral-window")
    model.forward = lambda *args, **kwargs: (_ for _ in ()).throw(KeyError("pixel_values"))
    return model


def encoder_decoder() -> Any:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return random_of("T5ForConditionalGeneration", "T5Config", **sizes)


REFUSED = {
    looks_ahead: "BertLMHeadModel looks ahead",
    random_answers: "ReformerModelWithLMHead does not repeat its own results",
    not_finite: "MistralForCausalLM gives logits that are not finite",
    needs_more: "MistralForCausalLM cannot read a text of a few tokens .*pixel_values",
    encoder_decoder: "T5ForConditionalGeneration is an encoder–decoder",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_cannot_be_served_is_refused_by_name(kind: Any, dtype: torch.dtype) -> None:
    model = kind().to(dtype)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"model: {REFUSED[kind]}"):
            PrefixCache(model, 1).next_logits([[5, 6, 7]], [3])
        with pytest.raises(ValueError, match=f"model: {REFUSED[kind]}"):
            response_log_probs(model, *batch())


@pytest.mark.parametrize(("part", "refused"), [(1e-4, False), (1e-2, True)])
def test_rounding_that_one_large_logit_amplifies_is_no_looking_ahead(part: float, refused: bool) -> None:
    """A large logit that is a sum which cancels out differs with the length of the text, as kernels round by shapes."""
    model = build("mistral-window")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * (1 + part * output.shape[1]))
    if refused:
        with pytest.raises(ValueError, match="looks ahead"):
            path_of(model)
    else:
        path_of(model), way_of(model)


def test_a_mask_that_only_training_makes_matter_is_seen() -> None:
    """Doge adds a bias of its own to the mask, which is the same for all keys until its weights have moved."""
    model = random_of("DogeForCausalLM", "DogeConfig", **SMALL, keep_window_size=16)
    cache, text = PrefixCache(model, 1, vocab_size=VOCAB), np.random.default_rng(0).integers(3, VOCAB, size=24)
    cache.next_logits([text[:9]], [9])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.A.copy_(torch.linspace(-1, 1, len(layer.self_attn.A)))
        for length in (2, 3, 16, 17, 18, 24):
            ours = cache.next_logits([text[:length]], [length])[0].log_softmax(-1)
            torch.testing.assert_close(ours, own_log_probs(model, text[:length]), atol=1e-4, rtol=0)


def test_comparing_leaves_everything_as_it_was() -> None:
    for name in ("llama-dynamic", "phi3-longrope", "rwkv", "mamba"):
        model = build(name)
        model.base_model.train()  # a part of it
        rope = getattr(model.base_model, "rotary_emb", None)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            before = torch.random.get_rng_state()
            config = model.config.to_dict()
            modes = [module.training for module in model.modules()]
            versions = [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
            frequencies = None if rope is None else (rope.inv_freq, rope.inv_freq.clone(), dict(vars(rope)))
            path_of(model), way_of(model)
            assert torch.equal(before, torch.random.get_rng_state())
        assert model.config.to_dict() == config
        assert [module.training for module in model.modules()] == modes
        assert [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()] == versions
        if rope is not None and frequencies is not None:
            assert rope.inv_freq is frequencies[0]
            assert torch.equal(rope.inv_freq, frequencies[1])
            assert set(vars(rope)) == set(frequencies[2])


@pytest.mark.parametrize("name", ["llama-dynamic", "gemma3-dynamic"])
def test_reading_leaves_the_models_frequencies_as_they_were(name: str) -> None:
    """Whoever uses the model beside us sees nothing of the texts that we read, before they have read one and after."""
    model = build(name)
    rope = model.base_model.rotary_emb
    for _ in range(2):
        state = {key: copy.deepcopy(value) for key, value in [*vars(rope).items(), *rope.named_buffers()]}
        PrefixCache(model, 1).next_logits([list(range(3, 3 + LONGEST))], [LONGEST])
        response_log_probs(model, *batch(), vocab_size=VOCAB)
        after = dict([*vars(rope).items(), *rope.named_buffers()])
        assert after.keys() == state.keys()
        for key, value in state.items():
            if isinstance(value, torch.Tensor | int | float):
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[key]))
        with torch.no_grad():
            model(torch.arange(3, 19).unsqueeze(0), use_cache=False)


def test_autocast_does_not_reach_the_comparison() -> None:
    model = build("mistral-window")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (path_of(model), way_of(model)) == ("slots", "fast")
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["mamba", "phi3-longrope", "llama-dynamic"])
def test_in_inference_mode_too(name: str) -> None:
    """The first use of all; training goes on afterwards."""
    model, (ids, attention, response) = build(name), batch()
    with torch.inference_mode():
        ours = PrefixCache(model, 1, vocab_size=VOCAB).next_logits(ids[:1, :12], [12])[0].log_softmax(-1)
        scores = response_log_probs(model, ids, attention, response, vocab_size=VOCAB).log_probs
        torch.testing.assert_close(ours, own_log_probs(model, ids[0, :12]), atol=2e-4, rtol=0)
    with_gradient = response_log_probs(model, ids, attention, response, vocab_size=VOCAB).log_probs
    torch.testing.assert_close(with_gradient.detach(), scores.clone(), atol=1e-5, rtol=1e-5)
    with_gradient.sum().backward()


def test_threads_that_come_first_together() -> None:
    model, found = build("mamba"), list[torch.Tensor]()
    text = np.arange(3, 12)
    threads = [
        threading.Thread(target=lambda: found.append(PrefixCache(model, 1).next_logits([text], [9])[0, :VOCAB]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = own_log_probs(model, text).detach()
    assert len(found) == 4
    for logits in found:
        torch.testing.assert_close(logits.log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_a_comparison_reads_few_tokens_wherever_the_switch_is() -> None:
    """About as many as one answer: 4,096 tokens for a real switch would take a large model minutes."""
    seen: list[int] = []
    rope = {**KINDS["phi3-longrope"][2]["rope_parameters"], "original_max_position_embeddings": 4096}
    far = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072, "rope_parameters": rope}
    for model in (build("llama-longrope"), build("phi3-longrope", **far), build("mistral-window", sliding_window=4096)):
        seen.clear()
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        assert (path_of(model), way_of(model)) == ("slots", "fast")
        assert len(seen) < 40
        assert sum(seen) < 400
        seen.clear()
        assert (path_of(model), way_of(model)) == ("slots", "fast")
        assert not seen
    assert position_switches(build("phi3-longrope", **far).config).after == (4096,)


def test_a_window_out_of_reach_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that forgets about windows is right for short texts, and must be found out all the same."""
    honest = slot_attention.Group.bias
    monkeypatch.setattr(slot_attention.Group, "bias", lambda self, window, dtype: honest(self, None, dtype))
    assert path_of(build("mistral-window", sliding_window=4096)) == "library"


def test_a_switch_out_of_reach_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "position_switches", lambda config: Switches())
    rope = {**KINDS["phi3-longrope"][2]["rope_parameters"], "original_max_position_embeddings": 50}
    model = build("phi3-longrope", rope_parameters=rope, original_max_position_embeddings=50)
    assert path_of(model) == "whole"


def test_a_model_that_cannot_be_copied_is_compared_as_it_is() -> None:
    model = build("mamba").train()
    model.handle = (each for each in ())  # generators cannot be copied
    assert path_of(model) == "whole"
    with undisturbed(model):
        assert Oracle(model).model is model
    assert model.training


def test_switches() -> None:
    lengths = np.array([1, 8, 9, 10, 30])
    once, dynamic = Switches(after=(9,)), Switches(every_after=9)
    assert once.side(lengths).tolist() == [0, 0, 0, 1, 1]
    assert dynamic.side(lengths).tolist() == [0, 0, 0, 10, 30]
    assert dynamic.alone(lengths).tolist() == [False, False, False, True, True]
    assert once.spans(12) == [(0, 9), (9, 12)]
    assert once.spans(9) == [(0, 9)]
    assert dynamic.spans(12) == [(0, 9), (9, 10), (10, 11), (11, 12)]
    assert Switches().spans(12) == [(0, 12)]
    assert not Switches()
