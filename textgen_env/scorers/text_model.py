"""Models that read whole texts: sequence classifiers and sentence encoders of transformers, loaded and run in batches.

What their outputs mean is said in `classifier.py` and `similarity.py`. Causal language models enter through
`language_model.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from textgen_env.assets import resolve_model
from textgen_env.trunk import without_progress_bars

from .shared_state import Lock

Encoding = Mapping[str, Sequence[int]]
_TASKS = {"classifier": AutoModelForSequenceClassification, "encoder": AutoModel}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TextModel:
    """A model and its tokenizer, loaded at the first use, in evaluation mode.

    Thread-safe. Copies and pickles leave the weights behind and load them again, unless the model was handed over live.

    Args:
        task: "classifier" or "encoder".
        source: a packaged or fetched name, a directory or a hub id; weights in safetensors.
        max_length: tokens at most; longer texts lose their beginning, so that the response is what stays.
        batch_size: texts in one forward pass.
        device, dtype: where and in which precision the model runs.

    Raises:
        ValueError: unknown task or dtype, or a limit below 1.
    """

    def __init__(
        self,
        task: str,
        source: str,
        *,
        max_length: int = 512,
        batch_size: int = 32,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        if task not in _TASKS or dtype not in _DTYPES:
            raise ValueError(
                f"task must be one of {', '.join(_TASKS)} and dtype one of {', '.join(_DTYPES)}; "
                f"got {task!r} and {dtype!r}"
            )
        if max_length < 1 or batch_size < 1:
            raise ValueError(f"max_length and batch_size must be at least 1, got {max_length} and {batch_size}")
        self.task, self.source, self.max_length, self.batch_size = task, source, max_length, batch_size
        self.device, self.dtype = device, dtype
        self._live = False
        self._loaded: tuple[Any, Any] | None = None
        self._lock = Lock()

    @classmethod
    def from_modules(cls, task: str, model: Any, tokenizer: Any, **kwargs: Any) -> TextModel:
        """Wraps live objects; copies and pickles carry them along."""
        self = cls(task, "live", device=str(model.device), **kwargs)
        self._live, self._loaded = True, self._prepared(model, tokenizer)
        return self

    @property
    def model(self) -> Any:
        """The model; loads it."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; loads model and tokenizer."""
        return self._load()[1]

    def encode(self, *segments: str, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text or a pair of texts, cut at the left to `max_length`."""
        tokenizer = self.tokenizer
        limit = min(self.max_length, tokenizer.model_max_length)
        return tokenizer(*segments, truncation=True, max_length=limit, add_special_tokens=add_special_tokens)

    def run(self, encodings: Sequence[Encoding], read: Callable[[Any, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Runs the model over n texts, in batches of similar lengths.

        Args:
            encodings: n results of `encode`.
            read: from the model's outputs and the attention mask (b, t) of a batch to one row each, (b, …).

        Returns:
            (n, …) float32 on the CPU, in the order of `encodings`.
        """
        model, tokenizer = self._load()
        rows: list[torch.Tensor] = [torch.empty(0)] * len(encodings)
        for chosen in self._batches([len(encoding["input_ids"]) for encoding in encodings]):
            batch = tokenizer.pad([encodings[i] for i in chosen], return_tensors="pt").to(self.device)
            with torch.inference_mode():
                values = read(model(**batch), batch["attention_mask"]).float().cpu()
            for i, value in zip(chosen, values, strict=True):
                rows[i] = value
        return torch.stack(rows) if rows else torch.empty(0)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers by rising length, in batches, so that little is padded."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _load(self) -> tuple[Any, Any]:
        """Model and tokenizer; loaded once, by whichever thread comes first."""
        with self._lock:
            if self._loaded is None:
                path = str(resolve_model(self.source))
                with without_progress_bars():
                    model = _TASKS[self.task].from_pretrained(
                        path, dtype=_DTYPES[self.dtype], use_safetensors=True, trust_remote_code=False
                    )
                self._loaded = self._prepared(model, AutoTokenizer.from_pretrained(path, trust_remote_code=False))
            return self._loaded

    def _prepared(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Sets what cutting, padding and pooling rely on."""
        tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoder-only classifiers look for the last token that is no padding
            model.config.pad_token_id = tokenizer.pad_token_id
        return model.to(self.device).eval(), tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._live else {**self.__dict__, "_loaded": None}
