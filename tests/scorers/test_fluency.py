"""A completion is scored as the continuation that it is, under tokenizers that change the space in front of a text."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_model
from tokenizer_kinds import byte_level, sentencepiece

from textgen_env import LanguageModel
from textgen_env.scorers import get_scorer


@pytest.mark.parametrize("kind", [sentencepiece, byte_level])
@pytest.mark.parametrize("completion", [" a.s", "bb", "  s"])
def test_spaces_between_prompt_and_completion(kind, completion: str) -> None:
    tokenizer = kind()
    model = random_model("llama", len(tokenizer))
    scorer = get_scorer("fluency", model=LanguageModel.from_modules(model, tokenizer))
    (score,) = scorer([completion], prompts=["a b"])
    before, whole = (tokenizer(text)["input_ids"] for text in ("a b", "a b" + completion))
    assert whole[: len(before)] == before
    with torch.no_grad():
        log_probs = model(torch.tensor([whole])).logits[0, :, : len(tokenizer)].double().log_softmax(-1)
    taken = [log_probs[at - 1, whole[at]].item() for at in range(len(before), len(whole))]
    assert score == pytest.approx(sum(taken) / len(taken), abs=1e-5)
