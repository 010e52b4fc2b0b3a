"""Which tokens were allowed at each step of a rollout, in as little memory as that takes.

What lives here: `MaskTable`, which numbers the distinct masks while episodes are played, and `ActionMasks`, which gives
them back. What does not: where masks come from (`textgen_env.vocabulary`), and who plays (``rollout.py``).

Why: at 49k tokens a mask takes 49 kB, and 128 responses of 256 tokens 1.6 GB. Yet most steps repeat one of a few masks
("no EOS yet", "all but these tokens"), so a rollout keeps each distinct one once, eight tokens to a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class ActionMasks:
    """The masks of some steps: M distinct ones, and which of them held at each step."""

    distinct: Tensor  # (M, ⌈V/8⌉) uint8; the first token is the highest bit, as in np.packbits
    number: Tensor  # int64, rows of distinct: of any shape, (B, T) in a rollout
    vocab_size: int  # V

    def of(self, numbers: Tensor) -> Tensor:
        """(n,) rows of ``distinct`` → the (n, V) bool masks themselves, True where a token may be chosen."""
        used, place = numbers.unique(return_inverse=True)  # (m,), (n,): each distinct mask is unpacked once
        bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=self.distinct.device)
        unpacked = (self.distinct[used].unsqueeze(-1) & bits).bool()  # (m, ⌈V/8⌉, 8)
        return unpacked.flatten(start_dim=1)[place, : self.vocab_size]

    def to(self, device: torch.device) -> ActionMasks:
        """The same masks on ``device``."""
        return ActionMasks(self.distinct.to(device), self.number.to(device), self.vocab_size)


class MaskTable:
    """Numbers for masks, in the order in which they are first seen; 0 stands for "every token is allowed".

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._numbers = {np.packbits(np.ones(vocab_size, dtype=bool)).tobytes(): 0}

    def number(self, masks: NDArray[np.bool_]) -> list[int]:
        """(n, V) masks → the number of each."""
        return [self._numbers.setdefault(row.tobytes(), len(self._numbers)) for row in np.packbits(masks, axis=1)]

    def action_masks(self, numbers: Tensor | Sequence[int]) -> ActionMasks | None:
        """The masks of steps that have these numbers; None if every token was allowed at all of them."""
        number = torch.as_tensor(numbers, dtype=torch.int64)
        if not number.any():
            return None
        distinct = np.stack([np.frombuffer(mask, dtype=np.uint8) for mask in self._numbers])
        return ActionMasks(torch.from_numpy(distinct), number, self.vocab_size)
