"""Reading prefixes with transformers' own cache: the way for models that `slot_attention.py` does not know.

Slow but general: a left-padded batch is decoded as long as all its rows go on by one token each; anything else is read
anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from textgen_env.lm.backbone import SplitModel
from textgen_env.lm.whole_texts import accepted, states_and_logits


class FallbackReader:
    """Keeps the `DynamicCache` of the last batch that was read.

    Args:
        model: a causal LM of transformers.
        halves: its two halves, if it can be taken apart.
    """

    def __init__(self, model: Any, halves: SplitModel | None) -> None:
        self._model, self._split = model, halves
        self._rows = np.zeros(0, dtype=np.int64)
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0)

    def read(
        self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, starts: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, V) and hidden states (n, d) at the last token of each prefix.

        Args:
            ids: (n, L) right-padded prefixes; lengths: (n,).
            rows: (n,) names of the prefixes; starts: (n,) how many leading tokens the last call for that row had in
                common.
        """
        device = next(self._model.parameters()).device
        goes_on = self._cache is not None and np.array_equal(rows, self._rows) and (starts == lengths - 1).all()
        if goes_on and (self._mask.sum(dim=1).cpu().numpy() == starts).all():
            tokens = torch.from_numpy(ids[np.arange(len(ids)), starts]).unsqueeze(1).to(device)
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
            positions = torch.from_numpy(starts).unsqueeze(1).to(device)
        else:
            self._cache, width = DynamicCache(config=self._model.config), int(lengths.max())
            shift = np.arange(width) - (width - lengths)[:, None]  # (n, width): column in ids; negative is padding
            tokens = torch.from_numpy(np.take_along_axis(ids, np.maximum(shift, 0), axis=1)).to(device)
            self._mask = torch.from_numpy((shift >= 0).astype(np.int64)).to(device)
            positions = torch.from_numpy(np.maximum(shift, 0)).to(device)
        self._rows = rows
        module = self._model if self._split is None else self._split.body
        options: dict[str, Any] = {
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_key_values": self._cache,
        }
        if self._split is None:
            options["output_hidden_states"] = True
        output = module(input_ids=tokens, **accepted(module, use_cache=True, **options))
        hidden, logits = states_and_logits(module, output)
        hidden = hidden[:, -1]
        if logits is not None:
            return logits[:, -1], hidden
        assert self._split is not None
        return self._split.head(hidden), hidden
