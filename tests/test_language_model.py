"""Doors of the language model: where it loads from, what it refuses, and teacher-forced scores of whole texts."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tiny_models import byte_tokenizer, random_model, save_model
from transformers import GenerationConfig

from textgen_env.assets import model_path
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.sampling import SamplingParams


@pytest.fixture
def folder(byte_model: str, tmp_path: Path) -> Path:
    """A copy of the random model's directory that a test may damage."""
    return Path(shutil.copytree(byte_model, tmp_path / "model"))


def test_tokenizer_at_once_weights_when_asked_for(byte_model: str) -> None:
    lm = LanguageModel(byte_model)
    assert lm.encode("hi") == [1] + [byte_tokenizer().convert_tokens_to_ids(letter) for letter in "hi"]
    assert lm.decode(lm.encode("hi , there .")) == "hi , there ."
    assert not lm.weights_loaded
    assert not lm.model.training
    assert lm.weights_loaded


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_actions_are_real_tokens_not_padding_rows(kind: str, tmp_path: Path) -> None:
    lm = LanguageModel(save_model(tmp_path, kind))
    assert lm.config.vocab_size == 259 + 5
    assert lm.vocab_size == 259
    assert (lm.eos_token_ids, lm.bos_token_id, lm.pad_token_id) == (frozenset({2}), 1, 0)
    assert lm.prefix_cache(1).next_logits([[1, 50]], [2]).shape == (1, 259)


def test_every_end_token_counts(folder: Path) -> None:
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(folder)
    assert LanguageModel(folder).eos_token_ids == {2, 7}


def test_embedded_model_loads_by_name() -> None:
    lm = LanguageModel("tiny")
    assert lm.eos_token_ids
    if (model_path("tiny") / "model.safetensors").exists():
        assert torch.isfinite(
            lm.prefix_cache(1).next_logits([lm.encode("The film")], [len(lm.encode("The film"))])
        ).all()


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (torch.float16, torch.float16)])
def test_dtype(byte_model: str, dtype: Any, expected: torch.dtype) -> None:
    assert LanguageModel(byte_model, dtype=dtype).model.dtype == expected


def test_live_modules() -> None:
    model = random_model("llama", 259)
    lm = LanguageModel.from_modules(model, byte_tokenizer(), name="mine")
    assert lm.model is model
    assert lm.weights_loaded
    assert (lm.vocab_size, lm.source) == (259, "mine")


def test_copies_leave_loadable_weights_behind(byte_model: str) -> None:
    lm = LanguageModel(byte_model)
    expected = lm.prefix_cache(1).next_logits([[1, 50]], [2])
    for other in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert not other.weights_loaded
        torch.testing.assert_close(other.prefix_cache(1).next_logits([[1, 50]], [2]), expected)
    live = LanguageModel.from_modules(lm.model, lm.tokenizer)
    assert copy.deepcopy(live).weights_loaded


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A small Llama as a GGUF file, after the format's own description (names, and rotary rows interleaved)."""
    config, weights = model.config, model.state_dict()
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer))) + ["ab", "<3>", "<4>", "<5>", "<6>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, tensor in weights.items():
        array = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = array.reshape(-1, 2, config.head_dim // 2, config.hidden_size).swapaxes(1, 2).reshape(array.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file(tmp_path: Path) -> None:
    model: Any = random_model("llama", 259)
    write_gguf(tmp_path / "small.gguf", model, byte_tokenizer())
    lm = LanguageModel(tmp_path / "small.gguf")
    tokens = torch.tensor([[5, 60, 61, 62]])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    assert not hasattr(lm.model.config, "quantization_config")


def test_unknown_sources_name_the_argument(tmp_path: Path, byte_model: str) -> None:
    with pytest.raises(FileNotFoundError, match="model: unknown name 'no-such-model'; known: .*tiny"):
        LanguageModel("no-such-model")
    with pytest.raises(FileNotFoundError, match="model: no such directory"):
        LanguageModel(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="model: no such GGUF file"):
        LanguageModel(tmp_path / "nowhere.gguf")
    with pytest.raises(FileNotFoundError, match="model: cannot load the tokenizer of 'nobody/nothing'"):
        LanguageModel("nobody/nothing")
    with pytest.raises(ValueError, match="is a file; expected a directory"):
        LanguageModel(Path(byte_model) / "config.json")


def test_directory_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer; save one into it"):
        LanguageModel(folder)


def test_directory_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*did you mean .*weights\.gguf"):
        LanguageModel(tmp_path)


def test_pickled_weights_are_refused_with_a_way_out(folder: Path) -> None:
    torch.save(random_model("llama", 259).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        LanguageModel(folder)


def test_directory_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        LanguageModel(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(
        config.read_text()
        .replace('"model_type": "llama"', '"model_type": "evil"')
        .replace("{", '{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},', 1)
    )
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(FileNotFoundError, match="model: cannot load the"):
        LanguageModel(folder).model  # noqa: B018


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int64, "fp32"])
def test_unknown_dtype(byte_model: str, dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16, float16, got"):
        LanguageModel(byte_model, dtype=dtype)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_unknown_device(byte_model: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"device: '{device}'"):
        LanguageModel(byte_model, device=device)


def test_log_probs_are_those_of_one_sequence_at_a_time(byte_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textgen_env.lm.language_model.TOKENS_PER_BATCH", 30)  # several batches
    lm = LanguageModel(byte_model)
    rng = np.random.default_rng(0)
    lengths = [9, 1, 4, 7, 2]
    ids = torch.from_numpy(rng.integers(3, 259, size=(5, 9)))
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    result = lm.log_probs(ids, mask, SamplingParams(0.7))
    expected = torch.zeros(5, 9)
    for row, length in enumerate(lengths):
        with torch.no_grad():
            logits = lm.model(ids[row : row + 1, :length]).logits[0, :, :259] / 0.7
        for column in range(1, length):
            expected[row, column] = logits[column - 1].log_softmax(-1)[ids[row, column]]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    garbage = torch.where(mask.bool(), ids, torch.from_numpy(rng.integers(3, 259, size=(5, 9))))
    torch.testing.assert_close(lm.log_probs(garbage, mask, SamplingParams(0.7)), result, atol=1e-6, rtol=0)
