"""Several texts through one forward pass, each with what it gets alone. Loading and cutting are in `text_model.py`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from textgen_env.lm.backbone import HALF, unwrap

Encoding = Mapping[str, Sequence[int]]
_LOGGER = logging.getLogger(__name__)


class BatchedModel:
    """A classifier or encoder of transformers, in evaluation mode, whose rows do not depend on each other.

    Decoders with a head named `score` are taken apart, since transformers looks for the last token by comparing tokens
    with the configuration's padding, which batches of other padding mislead. What a way of batching gives is compared
    once with what two texts get alone; if none fits, texts are run singly, which is said once.

    Args:
        model: a sequence classifier or a body.
        special_ids: tokens that the comparison does without.
        padding: tokens to fill rows with, most wanted first; those that the model does not have are passed over.
        source: what the model is called.

    Attributes:
        model: as given.
        vocab_size: how many tokens it knows.
        together: whether more than one text goes through at a time.
    """

    def __init__(self, model: Any, special_ids: Sequence[int], padding: Sequence[int | None], source: str) -> None:
        self.model = model.eval()
        config = model.config.get_text_config()
        self.vocab_size = getattr(config, "vocab_size", None) or math.inf
        self._last_rule = config.pad_token_id
        self._fill = next((int(i) for i in (config.pad_token_id, *padding) if self.knows(i)), 0)
        self._split, self.together = False, False
        known = range(int(min(self.vocab_size, 1000)))
        tokens = [token for token in known if token not in set(special_ids)][:8]
        texts = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in (tokens, tokens[::-1][:5])]
        self._choose(texts, source)

    def knows(self, token: int | None) -> bool:
        """Whether the model has an embedding of a token."""
        return token is not None and 0 <= token < self.vocab_size

    @torch.inference_mode()
    def __call__(self, encodings: Sequence[Encoding]) -> tuple[Any, torch.Tensor]:
        """The model's outputs for b texts, and their attention mask (b, t)."""
        batch = self._padded(encodings)
        mask = batch["attention_mask"]
        if not self._split:
            return self.model(**batch), mask
        last = torch.tensor([self._last(encoding["input_ids"]) for encoding in encodings], device=mask.device)
        inner = unwrap(self.model)
        states = inner.base_model(**batch).last_hidden_state  # (b, t, width)
        return SequenceClassifierOutput(logits=inner.score(states[torch.arange(len(last)), last])), mask

    def _padded(self, encodings: Sequence[Encoding]) -> dict[str, torch.Tensor]:
        """Rows of token ids, types and masks, filled up at the right."""
        length = max(len(encoding["input_ids"]) for encoding in encodings)
        keys = set.intersection(*(set(encoding) for encoding in encodings))
        fill = {key: self._fill if key == "input_ids" else 0 for key in sorted(keys)}
        return {
            key: torch.tensor(
                [[*encoding[key], *[value] * (length - len(encoding[key]))] for encoding in encodings],
                device=self.model.device,
            )
            for key, value in fill.items()
        }

    def _last(self, token_ids: Sequence[int]) -> int:
        """Where a decoder's score is read: where transformers reads it from the text by itself.

        That is the last token that is not the configuration's padding (so that an EOS that serves as padding is left
        out), and the very last where the configuration names no padding.
        """
        return next((i for i in range(len(token_ids) - 1, -1, -1) if token_ids[i] != self._last_rule), 0)

    def _choose(self, texts: Sequence[Encoding], source: str) -> None:
        """Take the first way of batching that gives each text what it gets alone."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            return  # the rows of a batch would have to have the same number of EOS
        alone = [_compared(*self([text])) for text in texts]
        for split in [True, False] if hasattr(unwrap(self.model), "score") else [False]:
            self._split = split
            self.together = self._alike(texts, alone)
            if self.together:
                return
        _LOGGER.warning("%s: texts in a batch get other values than alone, and are run one by one", source)

    def _alike(self, texts: Sequence[Encoding], alone: Sequence[torch.Tensor]) -> bool:
        tolerance = 3e-2 if self.model.dtype in HALF else 1e-4
        try:
            outputs, mask = self(texts)
        except (ValueError, RuntimeError, AttributeError, TypeError):  # no padding is named, or another kind of body
            return False
        for row, expected in enumerate(alone):
            found = _compared(outputs, mask, row)
            if found.shape != expected.shape or bool(
                (found - expected).abs().max() > tolerance * expected.abs().max().clamp(min=1e-3)
            ):
                return False
        return True


def _compared(outputs: Any, mask: torch.Tensor, row: int = 0) -> torch.Tensor:
    """What a text gets: its logits, or hidden states where it has tokens."""
    if "logits" in outputs:
        return outputs["logits"][row].float()
    return outputs["last_hidden_state"][row].float()[mask[row].bool()]
