"""Models that read whole texts: sequence classifiers and sentence encoders of transformers, loaded and run in batches.

What their outputs mean is said in `classifier.py` and `similarity.py`, how texts share a batch in `batching.py`, which
files are read, and when weights count as whole, in `lm/loading.py`. Causal language models enter through
`lm/language_model.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from textgen_env.lm.loading import LOADING, Location, as_device, as_dtype, load_weights, open_model
from textgen_env.lm.model_kinds import check_classifier, check_encoder, position_limit

from .batching import BatchedModel, Encoding
from .shared_state import Lock

_TASKS = {"classifier": AutoModelForSequenceClassification, "encoder": AutoModel}
_CHECKS = {"classifier": check_classifier, "encoder": check_encoder}


class TextModel:
    """A model and its tokenizer: the tokenizer at once, the weights at the first use or when `load_models` is called.

    What a text gets never depends on the texts beside it: it is what the model gives for that text by itself, without
    padding.

    Thread-safe. Copies and pickles leave the weights behind and load them again, unless the model was handed over live.

    Args:
        task: "classifier" or "encoder".
        source: a packaged or fetched name, a directory or a hub id; weights in safetensors.
        max_length: tokens at most, fewer where the model takes fewer; longer texts lose their beginning, so that the
            response is what stays.
        batch_size: texts in one forward pass.
        device, dtype: where and in which precision the model runs.
        strict: refuse weights with missing, unexpected or misshapen tensors; False fills the gaps with random numbers.
        role: what errors call the model.

    Attributes:
        config, tokenizer: as transformers loads them; texts are cut at the left.

    Raises:
        TypeError: the source is neither text nor path.
        ValueError: unknown task or dtype, a limit below 1, a model of another kind, or files that are damaged or could
            run code; when the weights are loaded, weights that do not fit.
        FileNotFoundError: no such model, no tokenizer, or no weights.
    """

    def __init__(
        self,
        task: str,
        source: Any,
        *,
        max_length: int = 512,
        batch_size: int = 32,
        device: str = "cpu",
        dtype: str = "float32",
        strict: bool = True,
        role: str = "model",
    ) -> None:
        self._set(task, max_length, batch_size, device, dtype)
        self.source, self.strict = str(source), strict
        live = f"TextModel.from_modules({task!r}, model, tokenizer)"
        self._location: Location | None
        self._location, self.config, self.tokenizer = open_model(source, role, live, _CHECKS[task])
        self._prepare_tokenizer()

    @classmethod
    def from_modules(cls, task: str, model: Any, tokenizer: Any, **kwargs: Any) -> TextModel:
        """Wrap live objects; copies and pickles carry them along. Takes the keywords `max_length` and `batch_size`."""
        self = cls.__new__(cls)
        settings = {"max_length": 512, "batch_size": 32, "dtype": "float32", **kwargs}
        self._set(task, device=str(model.device), **settings)
        self.source, self.strict, self._location = "live", True, None
        self.config, self.tokenizer = model.config, copy.deepcopy(tokenizer)
        self._prepare_tokenizer()
        self._batched = self._prepared(model)
        return self

    def _set(self, task: str, max_length: int, batch_size: int, device: str, dtype: str) -> None:
        if task not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
        check_counts(max_length=max_length, batch_size=batch_size)
        self.task, self.max_length, self.batch_size = task, max_length, batch_size
        self.device, self.dtype = as_device(device), as_dtype(dtype)
        self._batched: BatchedModel | None = None
        self._lock = Lock()

    def _prepare_tokenizer(self) -> None:
        self.tokenizer.truncation_side = "left"
        self._check_limit(self.max_length)

    def _check_limit(self, limit: int) -> None:
        added = self.tokenizer.num_special_tokens_to_add()
        if limit <= added:
            raise ValueError(
                f"max_length={limit} must exceed the {added} special tokens that the tokenizer of {self.source!r} adds"
            )

    @property
    def model(self) -> Any:
        """The model; loads it."""
        return self._load().model

    def load_models(self) -> None:
        """Load the weights now instead of at the first score."""
        self._load()

    def _load(self) -> BatchedModel:
        """The model, loaded once for all threads."""
        if self._batched is None:
            with LOADING:
                if self._batched is None:
                    assert self._location is not None
                    model = load_weights(_TASKS[self.task], self._location, dtype=self.dtype, strict=self.strict)
                    self._batched = self._prepared(model)
        return self._batched

    def _prepared(self, model: Any) -> BatchedModel:
        positions = position_limit(model)
        self._limit = min(self.max_length, self.tokenizer.model_max_length, positions or self.max_length)
        self._check_limit(self._limit)
        padding = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return BatchedModel(model.to(self.device), self.tokenizer.all_special_ids, padding, self.source)

    def encode(self, *segments: str, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text or a pair of texts, cut at the left to what the model takes.

        Where a text has no tokens and the tokenizer adds none, it is read as one token: BOS, else EOS, else padding.
        """
        batched = self._load()  # how many positions there are is known only then
        with self._lock:  # cutting is a state of the tokenizer
            encoding = self.tokenizer(
                *segments, truncation=True, max_length=self._limit, add_special_tokens=add_special_tokens
            )
        ids = encoding["input_ids"] or [self._stand_in(batched)]
        if not batched.knows(max(ids)):
            raise ValueError(
                f"token {max(ids)} ({self.tokenizer.convert_ids_to_tokens(max(ids))!r}) is beyond the "
                f"{batched.vocab_size} embeddings of {self.source!r}: it was added without resizing the model"
            )
        kept = {key: value for key, value in encoding.items() if len(value) == len(ids)}
        return {**kept, "input_ids": ids, "attention_mask": [1] * len(ids)}

    def run(self, encodings: Sequence[Encoding], read: Callable[[Any, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Run the model over n texts, in batches of similar lengths.

        Args:
            encodings: n results of `encode`.
            read: from the model's outputs and the attention mask (b, t) of a batch to one row each, (b, …).

        Returns:
            (n, …) float32 on the CPU, in the order of `encodings`.
        """
        batched = self._load()
        rows: list[torch.Tensor] = [torch.empty(0)] * len(encodings)
        size = self.batch_size if batched.together else 1
        for chosen in _batches([len(encoding["input_ids"]) for encoding in encodings], size):
            with torch.inference_mode():
                values = read(*batched([encodings[i] for i in chosen])).float().cpu()
            for i, value in zip(chosen, values, strict=True):
                rows[i] = value
        return torch.stack(rows) if rows else torch.empty(0)

    def _stand_in(self, batched: BatchedModel) -> int:
        """What a text without tokens is read as."""
        names = ("bos_token_id", "cls_token_id", "eos_token_id", "pad_token_id")
        choices = [getattr(self.tokenizer, name, None) for name in names]
        return next((int(token) for token in choices if token is not None and batched.knows(token)), 0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._location is None else {**self.__dict__, "_batched": None}


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Row numbers by rising length, in batches, so that little is padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def check_counts(**counts: Any) -> None:
    """See that limits are integers of at least 1.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def text_model(task: str, model: Any, scorer: str, settings: dict[str, Any]) -> TextModel:
    """The model of a scorer: the given `TextModel`, or one made of a source and the scorer's settings.

    Raises:
        TypeError: settings beside a `TextModel`, which has its own.
        ValueError: the model is for another task.
    """
    if not isinstance(model, TextModel):
        return TextModel(task, model, role=f"{scorer}: model", **settings)
    if settings:
        raise TypeError(f"{scorer}: {', '.join(sorted(settings))} belong to the TextModel that was given")
    if model.task != task:
        raise ValueError(f"{scorer}: model must be a TextModel for the task {task!r}, got one for {model.task!r}")
    return model
