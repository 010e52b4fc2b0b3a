"""Texts as rectangles: what is refused, how they are made of texts and tokens, and how rows are taken."""

from __future__ import annotations

import pickle

import pytest
import torch

from textgen_env import LanguageModel
from textgen_env.lm.token_batch import TokenBatch

IDS = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
ATTENTION = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
RESPONSE = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])


def test_bad_batches_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, T\), got \(2, 4\), \(2, 3\), \(2, 4\)"):
        TokenBatch(IDS, ATTENTION[:, :3], RESPONSE)
    with pytest.raises(ValueError, match="one shape"):
        TokenBatch(IDS[0], ATTENTION[0], RESPONSE[0])
    with pytest.raises(ValueError, match="attention_mask: expected right padding"):
        TokenBatch(IDS, ATTENTION.flip(1), RESPONSE)
    with pytest.raises(ValueError, match="response_mask: marks positions that attention_mask calls padding"):
        TokenBatch(IDS, ATTENTION, torch.ones_like(RESPONSE))
    first = torch.zeros_like(RESPONSE)
    first[0, 0] = 1
    with pytest.raises(ValueError, match="response_mask: column 0"):
        TokenBatch(IDS, ATTENTION, first)


def test_it_is_its_three_tensors() -> None:
    """Unpacked, pickled, moved; and a batch or its tensors make the same batch."""
    batch = TokenBatch(IDS, ATTENTION, RESPONSE)
    ids, attention, response = batch
    assert ids is IDS
    assert attention is ATTENTION
    assert response is RESPONSE
    assert TokenBatch.of(batch) is batch
    for other in (TokenBatch.of(*batch), pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert isinstance(other, TokenBatch)
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    assert batch.lengths.tolist() == [4, 2]
    assert batch.response_lengths.tolist() == [2, 1]


def test_rows_are_cut_to_the_longest_of_them() -> None:
    batch = TokenBatch(IDS, ATTENTION, RESPONSE)
    assert [part.tolist() for part in batch.rows(torch.tensor([1]))] == [[[9, 4]], [[1, 1]], [[0, 1]]]
    both = batch.rows(torch.tensor([1, 0]))
    assert torch.equal(both.input_ids, IDS.flip(0))
    (grid,) = batch.cut(torch.tensor([1]), torch.arange(8).view(2, 4))
    assert grid.tolist() == [[4, 5]]


def test_tokens_of_prompts_and_responses() -> None:
    batch = TokenBatch.from_tokens([[5, 6], [9]], [[7, 8], [4]], pad_token_id=3)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 4, 3, 3]]
    assert torch.equal(batch.attention_mask, ATTENTION)
    assert torch.equal(batch.response_mask, RESPONSE)
    with pytest.raises(ValueError, match=r"prompts\[1\] has no token"):
        TokenBatch.from_tokens([[1], []], [[1], [1]])
    for prompts, responses in (([[1]], []), ([], [])):
        with pytest.raises(ValueError, match=f"{len(prompts)} prompts and 0 responses"):
            TokenBatch.from_tokens(prompts, responses)


def test_texts_are_encoded_as_an_environment_does(byte_model: str) -> None:
    """Prompt and response apart, since that is how tokens follow a prompt; EOS is the last of them."""
    model = LanguageModel(byte_model)
    batch = TokenBatch.from_texts(model, ["ab", "c"], [" d", ""])
    end = model.end_token_id
    assert end in model.eos_token_ids
    rows = [batch.input_ids[row][batch.attention_mask[row].bool()].tolist() for row in range(2)]
    assert rows == [[*model.encode("ab"), *model.encode_as_is(" d"), end], [*model.encode("c"), end]]
    assert batch.response_lengths.tolist() == [3, 1]
    assert TokenBatch.from_texts(model, ["ab"], [" d"], end=False).response_lengths.tolist() == [2]
    model.eos_token_ids = frozenset()
    with pytest.raises(ValueError, match="knows no EOS token"):
        TokenBatch.from_texts(model, ["ab"], [" d"])
