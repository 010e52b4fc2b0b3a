"""Models of the wrong kind are refused by name before their weights are read; sources that are none, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import transformers as hf
from tiny_models import SIZES, byte_tokenizer, random_model

from textgen_env.lm.language_model import LanguageModel

BART: dict[str, Any] = {"vocab_size": 264, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
BART |= {f"{side}_{what}": 4 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
T5: dict[str, Any] = {"vocab_size": 264, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
VIT: dict[str, Any] = {key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")}


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


OTHER_KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), "is an encoder–decoder"),
    "bart": (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), "is an encoder–decoder"),
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)), "looks ahead"),
    "roberta": (lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES)), "looks ahead"),
    "bert body": (lambda: hf.BertModel(hf.BertConfig(**SIZES)), "looks ahead"),
    "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**SIZES)), "looks ahead"),
    "llama body": (lambda: hf.LlamaModel(hf.LlamaConfig(**SIZES)), "head"),
    "reward model": (lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SIZES)), "head|LlamaForCausalLM"),
    "vision": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)), "head"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_models_that_are_none_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    build, fault = OTHER_KINDS[kind]
    model = build()
    arguments: dict[str, Any] = {"prompts": ["a"], "scorer": "distinct"}
    for role, names in (("model", {}), ("reference", {"model": "tiny"})):
        with pytest.raises(ValueError, match=f"^{role}: .*({fault}).*; a causal .* is needed") as caught:
            gym.make("textgen/TextGen-v0", **{role: str(saved(model, tmp_path))}, **names, **arguments)
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="; a causal .* is needed"):
        LanguageModel.from_modules(model, byte_tokenizer())


def test_a_folder_without_tokenizer_says_its_kind_first(tmp_path: Path) -> None:
    hf.ViTForImageClassification(hf.ViTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTForImageClassification.*a causal"):
        LanguageModel(tmp_path)


@pytest.mark.parametrize("kind", ["roberta", "bart"])
def test_decoders_among_encoders_are_taken(kind: str, tmp_path: Path) -> None:
    model: Any = (
        hf.RobertaForCausalLM(hf.RobertaConfig(**SIZES, is_decoder=True))
        if kind == "roberta"
        else hf.BartForCausalLM(hf.BartConfig(**BART))
    )
    assert type(LanguageModel(saved(model, tmp_path)).model) is type(model)
    assert LanguageModel.from_modules(model, byte_tokenizer()).model is model


@pytest.mark.parametrize("role", ["model", "reference"])
def test_what_is_no_source_is_named(role: str, byte_model: str) -> None:
    live = random_model("gpt2", 259)
    cases: list[tuple[Any, type[Exception], str]] = [
        (live, TypeError, r"GPT2LMHeadModel.*LanguageModel\.from_modules\(model, tokenizer\)"),
        (byte_tokenizer(), TypeError, "TokenizersBackend"),
        (3, TypeError, "int"),
        (b"tiny", TypeError, "bytes"),
        (["tiny"], TypeError, "list"),
        ("", ValueError, "''"),
        ("nope", FileNotFoundError, "unknown name 'nope'"),
        (Path("tiny"), FileNotFoundError, "no such directory: 'tiny'"),
    ]
    for source, error, message in [*cases, *([(None, TypeError, "None")] if role == "model" else [])]:
        arguments = {"model": byte_model, role: source, "prompts": ["a"], "scorer": "distinct"}
        with pytest.raises(error, match=f"(?s)^{role}[:=].*{message}"):
            gym.make("textgen/TextGen-v0", **arguments)
    env = gym.make("textgen/TextGen-v0", **{"model": byte_model, role: Path(byte_model)}, prompts=["a"], scorer="bleu")
    assert env.unwrapped.tokenizer.get_vocab() == byte_tokenizer().get_vocab()


def test_live_modules_the_wrong_way_round() -> None:
    with pytest.raises(TypeError, match="model: expected a transformers model, got"):
        LanguageModel.from_modules(byte_tokenizer(), random_model("gpt2", 259))
    with pytest.raises(TypeError, match="tokenizer: expected a transformers tokenizer, got NoneType"):
        LanguageModel.from_modules(random_model("gpt2", 259), None)
