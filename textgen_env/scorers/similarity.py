"""Reward for meaning the same: cosine of mean-pooled sentence embeddings. Models are run by `text_model.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .answers import bounded
from .arguments import hands_on
from .base import usable_references
from .shared_state import LRUCache
from .text_model import TextModel, text_model


class Similarity:
    """Cosine similarity in [−1, 1] of a completion to its references or its prompt; higher is better.

    The embedding of a text is the mean of its last hidden states over tokens, scaled to length 1 (Reimers & Gurevych,
    2019), as sentence-transformers computes for all-MiniLM-L6-v2. An empty completion is its special tokens alone,
    or one BOS token where the tokenizer adds none.

    Args:
        model: an encoder: "minilm" (to be fetched once), a directory or a hub id, or a `TextModel`.
        against: "references" or "prompt".
        multi: "best" or "mean" over several references.
        **kwargs: `max_length`, `batch_size`, `device`, `dtype`, `strict` of `TextModel`.

    Raises:
        TypeError, ValueError, FileNotFoundError: unknown `against` or `multi`; the model is no encoder, or cannot be
            loaded (see `TextModel`); when scoring against references, a text without any.
    """

    name = "similarity"

    @hands_on(TextModel, "task", "source", "role", max_length=256)
    def __init__(
        self, model: str | TextModel = "minilm", against: str = "references", multi: str = "best", **kwargs: Any
    ) -> None:
        if against not in ("references", "prompt"):
            raise ValueError(f'similarity: against must be "references" or "prompt", got {against!r}')
        if multi not in ("best", "mean"):
            raise ValueError(f'similarity: multi must be "best" or "mean", got {multi!r}')
        settings = kwargs if isinstance(model, TextModel) else {"max_length": 256, **kwargs}
        self.model = text_model("encoder", model, self.name, settings)
        self.against, self.multi = against, multi
        self._embeddings = LRUCache(4096)  # of references and prompts; completions rarely come twice

    def __call__(
        self,
        completions: Sequence[str],
        *,
        prompts: Sequence[str],
        references: Sequence[Sequence[str | None]],
        **_: Any,
    ) -> list[float]:
        others: list[tuple[str, ...]] = [(prompt,) for prompt in prompts]
        if self.against == "references":
            others = usable_references(references, self.name)
        known = self._embed_known({text for texts in others for text in texts})
        embeddings = self.embed(completions)
        return [
            self._combine(torch.stack([known[text] for text in texts]) @ embedding)
            for embedding, texts in zip(embeddings, others, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (n, width) of length 1."""
        return self.model.run([self.model.encode(text) for text in texts], _mean_pooled)

    def load_models(self) -> None:
        """Load the weights now instead of at the first score."""
        self.model.load_models()

    def _combine(self, cosines: torch.Tensor) -> float:
        return bounded(float(cosines.max() if self.multi == "best" else cosines.mean()), -1.0, 1.0)

    def _embed_known(self, texts: set[str]) -> dict[str, torch.Tensor]:
        """Embeddings of references, each computed once."""
        known = {text: self._embeddings.get(text) for text in sorted(texts)}
        new = [text for text, embedding in known.items() if embedding is None]
        for text, embedding in zip(new, self.embed(new) if new else (), strict=True):
            known[text] = embedding
            self._embeddings.put(text, embedding)
        return known


def _mean_pooled(outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean over tokens that are no padding, scaled to length 1: (b, t, width) to (b, width)."""
    weights = attention_mask.unsqueeze(-1).float()
    pooled = (outputs.last_hidden_state.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return torch.nn.functional.normalize(pooled, dim=-1)
