"""Special tokens of prompts: what the tokenizer puts in front, once; nothing behind; none without a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_model
from tokenizer_kinds import MARKS, byte_level, sentencepiece, word_piece
from tokenizers import AddedToken

from textgen_env import LanguageModel, TextGenEnv
from textgen_env.agents.policy import ActorCritic
from textgen_env.agents.ppo import PPO, PPOConfig
from textgen_env.vector_env import TextGenVectorEnv

BOS, EOS = 1, 2


def nothing(completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


def wrapped(tokenizer: Any, padding: int = 5) -> LanguageModel:
    return LanguageModel.from_modules(random_model("llama", len(tokenizer) - 5 + padding), tokenizer)


@pytest.mark.parametrize("template", [None, "<bos> $A", "$A <eos>", "<bos> $A <eos>", "<bos> <pad> $A <eos> <eos>"])
@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_front_once_and_nothing_behind(kind: Any, template: str | None) -> None:
    model = wrapped(kind(template))
    plain = kind(None).encode("b a")
    front, _, behind = (template or "$A").partition("$A")
    front_ids, behind_ids = ([MARKS.index(mark) for mark in part.split()] for part in (front, behind))
    assert model.encode("b a") == front_ids + plain
    assert model.encode("b a", whole=True) == front_ids + plain + behind_ids
    assert model.encode("") == front_ids


def test_a_text_with_a_bos_of_its_own_gets_no_second_one() -> None:
    model = wrapped(byte_level("<bos> $A <eos>"))
    assert model.encode("<bos>ab") == model.encode("ab") == [BOS, *byte_level(None).encode("ab")]
    assert model.encode("<bos><bos>ab") == [BOS, *model.encode("ab")]  # as it was written
    assert model.encode("ab<eos>") == [*model.encode("ab"), EOS]  # the prompt's own
    assert model.encode("ab<eos>c")[-2] == EOS
    env = TextGenEnv(model=model, prompts=["<bos>ab"], scorer=nothing)
    assert env.reset()[0]["input_ids"][:4].tolist() == [*model.encode("ab"), 0]


def test_words_between_marks_of_a_bert_tokenizer() -> None:
    model = wrapped(word_piece())
    assert model.tokenizer.encode("I like cats")[-1] == EOS
    assert model.tokenizer.convert_ids_to_tokens(model.encode("I like cats")) == ["<bos>", "I", "like", "cat", "##s"]


def test_reference_reads_the_prompt_without_eos() -> None:
    """The oracle: the model's own forward on BOS and the prompt's characters."""
    model = wrapped(byte_level("<bos> $A <eos>"))
    env = TextGenEnv(model=model, prompts=["ab"], scorer=nothing, kl_coef=1.0)
    env.reset()
    info = env.step(20)[-1]
    ids = torch.tensor([[BOS, *byte_level(None).encode("ab")]])
    with torch.no_grad():
        logits = model.model(ids).logits[0, -1, : model.vocab_size]
    np.testing.assert_allclose(info["ref_logprob"], float(logits.log_softmax(-1)[20]), atol=1e-5)


def test_texts_to_train_on_keep_their_end() -> None:
    model = wrapped(byte_level("<bos> $A <eos>"))
    envs = TextGenVectorEnv(2, model=model, prompts=["ab"], scorer=nothing, autoreset_mode="Disabled")
    config = PPOConfig(ptx_coef=1.0, episodes=2, minibatch_size=2, micro_batch_size=2)
    ppo = PPO(envs, ActorCritic(model), config, ptx_texts=["ab", "<bos>ab"])
    assert ppo.ptx_tokens == [[*model.encode("ab"), EOS]] * 2


class TestTokensWithoutARow:
    """A tokenizer that got tokens of which its model knows nothing."""

    @pytest.fixture
    def model(self) -> LanguageModel:
        tokenizer = byte_level()
        model = random_model("llama", len(tokenizer) - 5)
        tokenizer.add_tokens([AddedToken("<new>"), AddedToken("<mark>", special=True)])
        return LanguageModel.from_modules(model, tokenizer)

    @pytest.mark.parametrize("token", ["<new>", "<mark>"])
    def test_in_a_set_of_prompts(self, model: LanguageModel, token: str) -> None:
        with pytest.raises(ValueError, match=rf"prompts\[1\]: '{token}' is token 26[34] .*resize_token_embeddings"):
            TextGenEnv(model=model, prompts=["ab", f"ab {token}"], scorer=nothing)

    def test_in_a_prompt_of_reset(self, model: LanguageModel) -> None:
        env = TextGenEnv(model=model, prompts=["ab"], scorer=nothing)
        env.reset()
        with pytest.raises(ValueError, match="'<new>' is token 263"):
            env.reset(options={"prompt": "a<new>"})

    def test_in_front_of_every_text(self, model: LanguageModel) -> None:
        from tokenizers import processors

        post = processors.TemplateProcessing(single="<mark> $A", special_tokens=[("<mark>", 264)])
        model.tokenizer.backend_tokenizer.post_processor = post
        with pytest.raises(ValueError, match="'<mark>' is token 264"):
            TextGenEnv(model=model, prompts=["ab"], scorer=nothing)

    def test_the_embedding_resized(self, model: LanguageModel) -> None:
        model.model.resize_token_embeddings(len(model.tokenizer))
        resized = LanguageModel.from_modules(model.model, model.tokenizer)
        env = TextGenEnv(model=resized, prompts=["a<new>"], scorer=nothing, kl_coef=0.1)
        env.reset()
        assert np.isfinite(env.step(20)[-1]["ref_logprob"])
