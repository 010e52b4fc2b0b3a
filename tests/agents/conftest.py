"""Tiny models with a word-level tokenizer, made on the spot, and environments on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from words import WORDS

import textgen_env  # noqa: F401  (registers the environments)

torch.set_num_threads(1)  # threads only get in each other's way on models this small


def fill(model: torch.nn.Module, seed: int, scale: float) -> None:
    """Random weights from a generator of their own; norms stay at 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, scale, generator=generator)


@pytest.fixture(scope="session")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer Llama over 16 words, in the form of ``save_pretrained``."""
    path = tmp_path_factory.mktemp("models") / "words"
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    fill(model, seed=0, scale=0.15)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


@pytest.fixture
def make_venv(word_model: Path) -> Callable[..., gym.vector.VectorEnv]:
    """A batched environment on the word model for own rollouts; any argument can be given."""

    def make(**arguments: Any) -> gym.vector.VectorEnv:
        defaults: dict[str, Any] = {
            "num_envs": 4,
            "model": str(word_model),
            "prompts": ["a b", "c d e", "f"],
            "scorer": count_a,
            "max_prompt_tokens": 8,
            "max_new_tokens": 6,
        }
        return gym.make_vec("textgen/TextGen-v0", autoreset_mode=AutoresetMode.DISABLED, **{**defaults, **arguments})

    return make


def count_a(completions: list[str], **_: Any) -> list[float]:
    """Share of the word "a" in a response."""
    return [text.split().count("a") / max(1, len(text.split())) for text in completions]
