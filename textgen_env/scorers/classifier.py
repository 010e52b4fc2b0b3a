"""Rewards from any sequence classifier or reward model of transformers. The only file here that loads such models.

Causal language models are `language_model.py`'s (see `fluency`); spaCy's classifiers have a file of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from textgen_env.assets import resolve_model

_OUTPUTS = ("probability", "log_probability", "logit")
_TEXTS = ("prompt+completion", "completion", "pair", "chat")


class Classifier:
    """One output of a sequence classifier for each text; higher is better for the chosen label.

    Range: "probability" [0, 1], "log_probability" (−∞, 0], "logit" (−∞, ∞). With a single logit z, as reward models
    have, the probability is sigmoid(z); with several it is the softmax at `label`. Weights are loaded at the first score,
    and again after pickling or deep-copying. Dropout is off. An empty completion is scored like any other text.

    Args:
        model: a packaged or fetched name, a directory or a hub id; weights in safetensors.
        label: name or index of the label; needed when there is more than one.
        output: "probability", "log_probability" or "logit".
        text: what is scored: "prompt+completion" joined as they are, "completion" alone, the "pair" of both as two
            segments, or "chat", the tokenizer's chat template with a user's and an assistant's turn.
        max_length: tokens at most; longer texts lose their beginning, so that the response is what stays.
        batch_size: texts in one forward pass; texts are sorted by length first.
        device, dtype: where and in which precision the model runs.
        name: name in errors and reward parts.

    Raises:
        ValueError: `output` or `text` is unknown; or, when weights are loaded, `label` is missing or unknown.
    """

    def __init__(
        self,
        model: str = "tiny-sentiment",
        label: str | int | None = None,
        output: str = "probability",
        text: str = "prompt+completion",
        max_length: int = 512,
        batch_size: int = 32,
        device: str = "cpu",
        dtype: str = "float32",
        name: str = "classifier",
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"{name}: output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        if text not in _TEXTS:
            raise ValueError(f"{name}: text must be one of {', '.join(_TEXTS)}, got {text!r}")
        self.source, self.label, self.output, self.text = model, label, output, text
        self.max_length, self.batch_size = max_length, batch_size
        self.device, self.dtype, self.name = device, dtype, name
        self._loaded: tuple[Any, Any, int] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_modules(cls, model: Any, tokenizer: Any, **kwargs: Any) -> Classifier:
        """A scorer of a live model and its tokenizer; further arguments as for the class. It cannot be pickled."""
        scorer = cls(model="live", **kwargs)
        scorer._loaded = scorer._prepared(model, tokenizer)
        return scorer

    def __call__(self, completions: Sequence[str], *, prompts: Sequence[str], **_: Any) -> list[float]:
        model, tokenizer, label = self._load()
        rows = [self._encode(tokenizer, prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        scores = torch.zeros(len(rows))
        for chosen in self._batches([len(row["input_ids"]) for row in rows]):
            batch = tokenizer.pad([rows[i] for i in chosen], return_tensors="pt").to(self.device)
            with torch.inference_mode():
                logits = model(**batch).logits.float()  # (rows, labels)
            scores[chosen] = self._read(logits, label).cpu()
        return scores.tolist()

    def _read(self, logits: torch.Tensor, label: int) -> torch.Tensor:
        """The wanted output of each row: (rows, labels) to (rows,)."""
        if self.output == "logit":
            return logits[:, label]
        if logits.shape[1] == 1:
            log_prob = functional.logsigmoid(logits[:, 0])
        else:
            log_prob = logits.log_softmax(-1)[:, label]
        return log_prob if self.output == "log_probability" else log_prob.exp()

    def _encode(self, tokenizer: Any, prompt: str, completion: str) -> dict[str, list[int]]:
        """Token ids of what is scored, cut at the left."""
        if self.text == "chat":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            return tokenizer(text, truncation=True, max_length=self.max_length, add_special_tokens=False)
        if self.text == "pair":
            return tokenizer(prompt, completion, truncation="longest_first", max_length=self.max_length)
        text = completion if self.text == "completion" else prompt + completion
        return tokenizer(text, truncation=True, max_length=self.max_length)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers by rising length, in batches, so that little is padded."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _load(self) -> tuple[Any, Any, int]:
        """Model, tokenizer and index of the label; loaded once, by whichever thread comes first."""
        with self._lock:
            if self._loaded is None:
                path = str(resolve_model(self.source))
                model = AutoModelForSequenceClassification.from_pretrained(
                    path, dtype=getattr(torch, self.dtype), use_safetensors=True, trust_remote_code=False
                )
                self._loaded = self._prepared(model, AutoTokenizer.from_pretrained(path, trust_remote_code=False))
            return self._loaded

    def _prepared(self, model: Any, tokenizer: Any) -> tuple[Any, Any, int]:
        """Checks that the parts fit and sets what scoring relies on."""
        tokenizer.truncation_side = "left"
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoder-only classifiers look for the last token that is not padding
            model.config.pad_token_id = tokenizer.pad_token_id
        self.max_length = min(self.max_length, tokenizer.model_max_length)
        return model.to(self.device).eval(), tokenizer, self._label_index(model.config)

    def _label_index(self, config: Any) -> int:
        """The label's column."""
        names = [str(config.id2label[i]) for i in range(config.num_labels)]
        if config.num_labels == 1:
            return 0
        if self.label in names:
            return names.index(str(self.label))
        if isinstance(self.label, int) and 0 <= self.label < len(names):
            return self.label
        raise ValueError(f"{self.name}: label must be one of {', '.join(names)} or its index, got {self.label!r}")

    def __getstate__(self) -> dict[str, Any]:
        if self._loaded is not None and self.source == "live":
            raise TypeError(f"{self.name}: a scorer of a live model cannot be copied or pickled; give a path instead")
        return {key: value for key, value in self.__dict__.items() if key not in ("_loaded", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaded=None, _lock=threading.Lock())


class Sentiment(Classifier):
    """Probability in [0, 1] that prompt and completion together read as praise; higher is better.

    A `Classifier` with the packaged reward model: the text scored is the prompt followed by the completion, as in the
    IMDB continuation task of RL4LMs, since a review's opening belongs to what the reader judges.
    """

    def __init__(self, model: str = "tiny-sentiment", label: str | int | None = "POSITIVE", **kwargs: Any) -> None:
        super().__init__(model, label, **{"name": "sentiment", **kwargs})
