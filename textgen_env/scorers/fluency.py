"""Reward for being likely text: mean log-probability under a causal LM, which is `lm/language_model.py`'s to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from textgen_env.lm.backbone import unwrap
from textgen_env.lm.language_model import LanguageModel
from textgen_env.lm.model_kinds import position_limit

from .text_model import check_counts

_OUTPUTS = ("log_probability", "probability")


class Fluency:
    """Mean log-probability a token of the completion, given its prompt; higher is better.

    Range: "log_probability" (−∞, 0]; "probability", its exponential, the geometric mean in [0, 1] (one over the
    perplexity). A completion without tokens gets log(1/V), the value of a uniform guess over V tokens.

    Args:
        model: anything `LanguageModel` takes as its source, or a `LanguageModel`.
        condition: whether the prompt is put before the completion. Otherwise the completion follows the tokenizer's
            BOS; where there is none its first token has no probability and is left out.
        output: "log_probability" or "probability".
        max_length: tokens of prompt and completion at most, at least 2, and fewer where the model has fewer positions;
            what is beyond is cut from the prompt, then from the end.
        batch_size: texts in one forward pass; texts are sorted by length first.
        device, dtype, strict: see `LanguageModel`.

    Raises:
        TypeError, ValueError, FileNotFoundError: unknown output, a limit out of range, or a model that `LanguageModel`
            refuses.
    """

    name = "fluency"

    def __init__(
        self,
        model: str | LanguageModel = "tiny",
        condition: bool = True,
        output: str = "log_probability",
        max_length: int = 512,
        batch_size: int = 16,
        device: str = "cpu",
        dtype: str = "float32",
        strict: bool = True,
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"fluency: output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        check_counts(max_length=max_length, batch_size=batch_size)
        if max_length < 2:
            raise ValueError(f"fluency: max_length={max_length} must be at least 2: a token and one before it")
        if not isinstance(model, LanguageModel):
            model = LanguageModel(model, device=device, dtype=dtype, strict=strict, role="fluency: model")
        self.language_model = model
        self.condition, self.output = condition, output
        self.max_length, self.batch_size = max_length, batch_size

    def __call__(self, completions: Sequence[str], *, prompts: Sequence[str], **_: Any) -> list[float]:
        limit = min(self.max_length, position_limit(unwrap(self.language_model.model)) or self.max_length)
        rows = [self._encode(prompt, text, limit) for prompt, text in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        scores = [-math.log(self.language_model.vocab_size)] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, score in zip(chosen, self._mean_log_probs([rows[i] for i in chosen]), strict=True):
                scores[i] = scores[i] if math.isnan(score) else min(score, 0.0)  # above 0 by rounding alone
        return scores if self.output == "log_probability" else [math.exp(score) for score in scores]

    def load_models(self) -> None:
        """Load the weights now instead of at the first score."""
        self.language_model.model  # noqa: B018

    def _encode(self, prompt: str, completion: str, limit: int) -> tuple[list[int], int]:
        """Token ids of prompt and completion, and how many of them come before the first that counts.

        They are encoded as one text: alone, a completion would lose or double its leading space under some tokenizers.
        """
        prompt = prompt if self.condition else ""
        before, whole = self.language_model.encode(prompt), self.language_model.encode(prompt + completion)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
        tokens = whole[shared:][: limit - 1]
        before = whole[:shared][max(0, shared - (limit - len(tokens))) :]
        return before + tokens, max(len(before), 1)  # nothing precedes the very first token

    def _mean_log_probs(self, rows: Sequence[tuple[list[int], int]]) -> list[float]:
        """Mean log-probability of the tokens that count; NaN where there are none."""
        longest = max(2, *(len(tokens) for tokens, _ in rows))
        input_ids = torch.full((len(rows), longest), self.language_model.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, (tokens, _) in enumerate(rows):
            tokens = tokens or [self.language_model.pad_token_id]  # a row without tokens still needs one to attend to
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
        log_probs = self.language_model.log_probs(input_ids, attention_mask)  # (rows, longest)
        return [float(log_probs[row, start : len(tokens)].double().mean()) for row, (tokens, start) in enumerate(rows)]
