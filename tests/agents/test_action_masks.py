"""Masks come back as they were put in, and memory follows their number of kinds, not the number of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textgen_env.agents.action_masks import ActionMasks, MaskTable


def stored_bytes(masks: ActionMasks) -> int:
    return masks.distinct.nbytes


def through_the_table(masks: np.ndarray, batch: int = 3) -> ActionMasks:
    table, numbers = MaskTable(masks.shape[1]), []
    for start in range(0, len(masks), batch):
        numbers += table.number(masks[start : start + batch])
    packed = table.action_masks(numbers)
    assert packed is not None
    return packed


@pytest.mark.parametrize("vocab_size", [1, 7, 8, 9, 64, 257])
def test_masks_come_back_as_they_were(vocab_size: int):
    """All different, in any order and number asked for."""
    dense = np.random.default_rng(vocab_size).random((20, vocab_size)) < 0.5
    masks = through_the_table(dense)
    for steps in ([0, 1, 2], [19, 3, 3, 0], list(range(20)), []):
        got = masks.of(masks.number[torch.tensor(steps, dtype=torch.int64)])
        assert got.dtype == torch.bool
        assert got.shape == (len(steps), vocab_size)
        assert got.tolist() == [dense[step].tolist() for step in steps]


def test_repeated_masks_are_stored_once():
    """Three kinds (and the one with everything allowed) however many tokens; 8 bytes a token say which."""
    kinds = np.random.default_rng(0).random((3, 1000)) < 0.5
    sizes = []
    for tokens in (30, 30_000):
        masks = through_the_table(kinds[np.arange(tokens) % 3])
        sizes.append(stored_bytes(masks))
        assert masks.number.nbytes == 8 * tokens
    assert sizes == [4 * 125, 4 * 125]


def test_at_worst_it_is_a_bit_for_each_token_of_the_vocabulary():
    masks = through_the_table(np.random.default_rng(0).random((500, 1000)) < 0.5)
    assert stored_bytes(masks) == 501 * 125


def test_nothing_is_stored_when_everything_was_allowed():
    table = MaskTable(10)
    everything = np.ones((4, 10), dtype=bool)
    assert table.number(everything) == [0, 0, 0, 0]
    assert table.action_masks([0] * 8) is None
    everything[2, 9] = False
    assert table.number(everything) == [0, 0, 1, 0]
