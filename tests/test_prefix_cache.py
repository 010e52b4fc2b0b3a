"""The cache against a full forward of each prefix alone: whatever is asked, in any order, the same distribution."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import SMALL, VOCAB
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from textgen_env.lm import prefix_cache, slot_attention
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.lm.slot_attention import SlotStore

ROWS = 5
WIDTH = 48
GPT2: dict[str, Any] = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
}
CONFIGS = {
    "gpt2": GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "gpt2-scaled-by-layer": GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=7),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=6),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).to(dtype).eval()


MODELS = {name: build(name) for name in CONFIGS}


@pytest.fixture(autouse=True)
def small_steps_of_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short prefixes then see the memory grow and shrink."""
    monkeypatch.setattr(slot_attention, "COLUMNS", 4)


def full_log_probs(model: Any, prefix: np.ndarray) -> torch.Tensor:
    """The oracle: the model's own forward of this prefix alone, no cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(prefix).unsqueeze(0), use_cache=False).logits
    return logits[0, -1, :VOCAB].float().log_softmax(-1)


def assert_exact(cache: PrefixCache, model: Any, prefixes: dict[int, np.ndarray], atol: float = 1e-4) -> None:
    """Ask for these rows in one call and compare each with the oracle."""
    rows = np.array(list(prefixes))
    lengths = np.array([len(prefix) for prefix in prefixes.values()])
    ids = np.zeros((len(rows), WIDTH), dtype=np.int64)
    for place, prefix in enumerate(prefixes.values()):
        ids[place, : len(prefix)] = prefix
    logits = cache.next_logits(ids, lengths, rows)
    assert logits.shape == (len(rows), VOCAB)
    assert logits.dtype == torch.float32
    for ours, prefix in zip(logits.log_softmax(-1), prefixes.values(), strict=True):
        torch.testing.assert_close(ours, full_log_probs(model, prefix), atol=atol, rtol=0)


def next_prefix(old: np.ndarray, kind: str, rng: np.random.Generator, others: Sequence[np.ndarray] = ()) -> np.ndarray:
    """What can happen to a row between two calls; "branch" goes on from a part of another row."""
    if kind == "branch" and others:
        other = others[rng.integers(len(others))]
        shared = other[: rng.integers(1, len(other) + 1)]
        return np.append(shared, rng.integers(VOCAB, size=rng.integers(3)))[:WIDTH]
    if kind == "extend" and len(old) < WIDTH:
        return np.append(old, rng.integers(VOCAB))
    if kind == "extend by several" and len(old) < WIDTH - 6:
        return np.append(old, rng.integers(VOCAB, size=rng.integers(2, 6)))
    if kind == "shrink":
        return old[: rng.integers(1, len(old) + 1)]
    if kind == "change":
        new = old.copy()
        new[rng.integers(len(old))] = rng.integers(VOCAB)
        return new
    return old if kind == "repeat" else rng.integers(VOCAB, size=rng.integers(1, 20))


KINDS = ["extend", "extend", "extend", "branch", "branch", "extend by several", "shrink", "change", "repeat", "restart"]
CALLS = st.lists(
    st.dictionaries(st.integers(0, ROWS - 1), st.sampled_from(KINDS), min_size=1, max_size=ROWS),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("fast", [True, False], ids=["slots", "library"])
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(calls=CALLS, seed=st.integers(0, 1000))
def test_any_sequence_of_calls_is_exact(name: str, fast: bool, calls: list[dict[int, str]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = MODELS[name]
    prefixes: dict[int, np.ndarray] = {}
    cache = PrefixCache(model, ROWS, vocab_size=VOCAB, fast=fast)
    for call in calls:
        asked: dict[int, np.ndarray] = {}
        for row, kind in call.items():
            others = [*prefixes.values(), *asked.values()]
            asked[row] = next_prefix(prefixes.get(row, rng.integers(VOCAB, size=3)), kind, rng, others)
        prefixes |= asked
        assert_exact(cache, model, asked)


@pytest.mark.parametrize("name", CONFIGS)
def test_these_models_take_the_fast_way(name: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache(MODELS[name], 2)
    cache.next_logits([[5, 6, 7]], [3])
    assert cache._library is None
    assert cache._store.layers


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_side_by_side_with_refills(name: str) -> None:
    """Slots as continuous batching: some end and restart while the others go on, up to the widest prefix."""
    rng = np.random.default_rng(3)
    model = MODELS[name]
    cache = PrefixCache(model, ROWS, vocab_size=VOCAB)
    prefixes = {row: rng.integers(VOCAB, size=rng.integers(1, 9)) for row in range(ROWS)}
    for _ in range(40):
        assert_exact(cache, model, prefixes)
        for row, prefix in prefixes.items():
            ended = len(prefix) >= WIDTH - 1 or rng.random() < 0.08
            prefixes[row] = (
                rng.integers(VOCAB, size=rng.integers(1, 9)) if ended else np.append(prefix, rng.integers(VOCAB))
            )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_bfloat16_agrees_loosely(name: str) -> None:
    """bf16 keeps 8 bits: with another order of sums, log-probs of a few nats agree to about 0.1 after two layers."""
    rng = np.random.default_rng(4)
    model = build(name, torch.bfloat16)
    cache = PrefixCache(model, ROWS, vocab_size=VOCAB)
    prefixes = {row: rng.integers(VOCAB, size=4 + row) for row in range(ROWS)}
    for _ in range(10):
        assert_exact(cache, model, prefixes, atol=0.25)
        prefixes = {row: np.append(prefix, rng.integers(VOCAB)) for row, prefix in prefixes.items()}


def test_only_new_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at the model's door: 7 tokens, then 1 + 1, then the restarted row's 4 and one more, then none."""
    model, seen = MODELS["llama"], []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    cache = PrefixCache(model, 2)
    cache.next_logits([[5, 6, 7, 0], [5, 6, 7, 8]], [3, 4])
    seen.clear()  # the one-time comparison of the fast way read some too
    cache.invalidate()
    for ids, lengths in (
        ([[5, 6, 7, 0], [5, 6, 7, 8]], [3, 4]),
        ([[5, 6, 7, 9, 0], [5, 6, 7, 8, 9]], [4, 5]),
        ([[5, 6, 7, 9, 9], [4, 4, 4, 4, 0]], [5, 4]),
        ([[5, 6, 7, 9, 9], [4, 4, 4, 4, 0]], [5, 4]),
    ):
        cache.next_logits(ids, lengths)
    handle.remove()
    assert seen == [7, 2, 5]


def test_a_prefix_that_another_row_holds_is_not_read_again() -> None:
    """A group of three and another prompt: 5 + 4 tokens, then a last token for each of the two others of the group.

    Then a branch of the group goes on in row 3, by two tokens; rows 0 and 1 change places with one more token each; and
    the whole group begins once more, which row 2 still holds: a last token for each.
    """
    model, seen = MODELS["llama"], []
    cache = PrefixCache(model, 5, vocab_size=VOCAB)
    cache.next_logits([[1]], [1])  # the one-time comparison
    cache.invalidate()
    group, other = [5, 6, 7, 8, 9], [5, 6, 1, 1]
    calls: list[dict[int, list[int]]] = [
        {0: group, 1: other, 2: group, 4: group},
        {3: [*group[:4], 3, 2]},
        {0: [*other, 1], 1: [*group, 1]},
        dict.fromkeys((0, 1, 3), group),
    ]
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for call in calls:
        width = max(map(len, call.values()))
        ids = np.array([[*prefix, *[0] * (width - len(prefix))] for prefix in call.values()])
        logits = cache.next_logits(ids, [len(prefix) for prefix in call.values()], list(call))
        read, seen[:] = list(seen), []
        expected = [full_log_probs(model, np.array(prefix)) for prefix in call.values()]
        torch.testing.assert_close(logits.log_softmax(-1), torch.stack(expected), atol=1e-4, rtol=0)
        assert read == [[9, 2], [2], [2], [3]][calls.index(call)]
        seen.clear()
    handle.remove()


@pytest.mark.parametrize("fast", [True, False])
def test_parameter_changes_are_noticed(fast: bool) -> None:
    model = build("llama")
    cache = PrefixCache(model, 1, vocab_size=VOCAB, fast=fast)
    prefix = {0: np.array([5, 6, 7, 8])}

    def sgd(optimiser: type[torch.optim.Optimizer], **kwargs: Any) -> None:
        chosen = optimiser(model.parameters(), lr=0.05, **kwargs)  # type: ignore[call-arg]
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        chosen.step()

    def exchange() -> None:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))

    other = {name: tensor + 0.05 for name, tensor in model.state_dict().items()}
    changes = [
        lambda: sgd(torch.optim.SGD),
        lambda: sgd(torch.optim.SGD, foreach=True),
        lambda: sgd(torch.optim.AdamW),
        lambda: sgd(torch.optim.AdamW, foreach=True),
        lambda: sgd(torch.optim.AdamW, fused=True),
        lambda: model.load_state_dict(other),
        exchange,
    ]
    assert_exact(cache, model, prefix)
    for change in changes:
        before = full_log_probs(model, prefix[0])
        change()
        assert (full_log_probs(model, prefix[0]) - before).abs().max() > 1e-2
        assert_exact(cache, model, prefix)


def test_hidden_changes_need_invalidate() -> None:
    model = build("llama")
    cache = PrefixCache(model, 1, vocab_size=VOCAB)
    prefix = {0: np.array([5, 6, 7, 8])}
    assert_exact(cache, model, prefix)
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    cache.invalidate()
    assert_exact(cache, model, prefix)


def test_logits_may_be_changed_in_place() -> None:
    cache = PrefixCache(MODELS["llama"], 2, vocab_size=VOCAB)
    prefixes = {0: np.array([5, 6, 7]), 1: np.array([8, 9])}
    assert_exact(cache, MODELS["llama"], prefixes)
    cache.next_logits([[5, 6, 7], [8, 9, 0]], [3, 2]).fill_(0.0)
    assert_exact(cache, MODELS["llama"], prefixes)


def test_results_can_be_used_with_autograd() -> None:
    logits = PrefixCache(MODELS["llama"], 1).next_logits([[5, 6, 7]], [3])
    weight = torch.ones(logits.shape[1], requires_grad=True)
    (logits * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, logits[0])


def test_hidden_states_are_those_before_the_head() -> None:
    model = MODELS["llama"]
    for fast in (True, False):
        logits, hidden = PrefixCache(model, 2, fast=fast).next_logits_and_hidden([[5, 6, 7], [8, 9, 0]], [3, 2])
        torch.testing.assert_close(model.lm_head(hidden).detach(), logits, atol=1e-5, rtol=1e-4)


def test_training_mode_dropout_and_attention_choice_are_left_as_they_were() -> None:
    model = build("gpt2").train()
    cache = PrefixCache(model, 1, vocab_size=VOCAB)
    logits = cache.next_logits([[5, 6, 7]], [3])
    assert model.training
    assert model.transformer.drop.training
    assert model.config._attn_implementation == "sdpa"
    assert_log = full_log_probs(model.eval(), np.array([5, 6, 7]))
    torch.testing.assert_close(logits[0].log_softmax(-1), assert_log, atol=1e-4, rtol=0)


def test_lora_policy_and_its_reference_do_not_mix() -> None:
    base = build("llama")
    policy: Any = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    policy.eval()
    prefix = {0: np.array([5, 6, 7, 8])}
    ours = PrefixCache(policy, 1, vocab_size=VOCAB)
    reference = PrefixCache(policy, 1, vocab_size=VOCAB, context=policy.disable_adapter)
    for _ in range(2):
        assert_exact(ours, policy, prefix)
        with policy.disable_adapter():
            expected = full_log_probs(policy, prefix[0])
        got = reference.next_logits([prefix[0]], [4])[0].log_softmax(-1)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        assert (got - full_log_probs(policy, prefix[0])).abs().max() > 1e-2
    with policy.disable_adapter():  # switched by hand, without telling the cache
        assert_exact(ours, policy, prefix)
    assert_exact(ours, policy, prefix)


def test_unknown_attention_falls_back_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """GPT-OSS hands its attention sinks, which slot attention does not know."""
    config = GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    with caplog.at_level(logging.WARNING, logger="textgen_env.lm.prefix_cache"):
        assert_exact(cache, model, {0: np.array([5, 6, 7]), 1: np.array([8])})
        assert_exact(cache, model, {0: np.array([5, 6, 7, 8]), 1: np.array([8, 9])})
    assert len([record for record in caplog.records if record.name == "textgen_env.lm.prefix_cache"]) == 1
    assert "s_aux" in caplog.text


def test_wrong_results_are_found_by_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    honest = SlotStore.write
    monkeypatch.setattr(
        SlotStore, "write", lambda self, layer, plan, key, value: honest(self, layer, plan, key, value * 1.1)
    )
    cache = PrefixCache(model, 1, vocab_size=VOCAB)
    assert_exact(cache, model, {0: np.array([5, 6, 7])})
    assert not prefix_cache._eligible[model]


def test_capacity_grows_and_ends_with_a_clear_error() -> None:
    model = MODELS["gpt2"]
    cache = PrefixCache(model, 2, vocab_size=VOCAB)
    rng = np.random.default_rng(0)
    prefix = rng.integers(VOCAB, size=64)
    for length in (2, 3, 40, 63, 64):
        logits = cache.next_logits([prefix[:length]], [length])
        torch.testing.assert_close(logits[0].log_softmax(-1), full_log_probs(model, prefix[:length]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="65 tokens is longer than the 64 positions"):
        cache.next_logits([rng.integers(VOCAB, size=65)], [65])


def test_another_thread_may_use_the_model_meanwhile() -> None:
    """Its padded forward must get the library's attention and mask, although ours is switched on for the moment."""
    model = MODELS["llama"]
    ids, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    differences: list[float] = []
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            with torch.no_grad():
                differences.append(
                    float((model(input_ids=ids, attention_mask=mask).logits[:, -1] - expected).abs().max())
                )

    thread = threading.Thread(target=others)
    thread.start()
    cache = PrefixCache(model, 1, vocab_size=VOCAB)
    for length in range(1, 40):
        cache.next_logits([list(range(3, 3 + length))], [length])
    done.set()
    thread.join()
    assert max(differences) < 1e-4


@pytest.mark.parametrize(
    ("ids", "lengths", "rows", "message"),
    [
        ([[1, 2]], [0], None, "lengths: .*from 1"),
        ([[1, 2]], [3], None, "lengths: .*from 1 to 2"),
        ([[1, 2]], [1, 1], None, "shapes"),
        ([1, 2], [1], None, "shapes"),
        ([[1], [2]], [1, 1], [0, 0], "distinct"),
        ([[1]], [1], [2], "rows: .*0 to 1"),
    ],
)
def test_bad_input_names_the_argument(ids: Any, lengths: Any, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixCache(MODELS["llama"], 2).next_logits(ids, lengths, rows)


def test_rows_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        PrefixCache(MODELS["llama"], 0)
