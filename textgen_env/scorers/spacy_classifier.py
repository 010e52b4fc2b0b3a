"""Rewards from a text classifier of spaCy, such as the fetched "imdb-sentiment". Needs the optional library spacy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import spacy

from textgen_env.assets import resolve_model
from textgen_env.lm.loading import LOADING

from .shared_state import Lock

_TEXTS = ("prompt+completion", "completion")


class SpacyClassifier:
    """The score in [0, 1] that a spaCy pipeline's text classifier gives to a label; higher is better.

    The pipeline is loaded when an environment is made, or at the first score. A text without tokens scores 0. Threads
    take turns, since a spaCy vocabulary grows while it reads.

    Args:
        model: a fetched name, a directory, or an installed pipeline's name.
        label: a label of its text classifier.
        text: "prompt+completion", joined as they are, or "completion" alone.
        batch_size: texts that the pipeline reads at a time.

    Raises:
        ValueError: unknown `text`; when the pipeline is loaded, an unknown label.
        FileNotFoundError: the model is one to be fetched, and has not been.
    """

    name = "spacy"

    def __init__(
        self,
        model: str = "imdb-sentiment",
        label: str = "POS",
        text: str = "prompt+completion",
        batch_size: int = 64,
    ) -> None:
        if text not in _TEXTS:
            raise ValueError(f"spacy: text must be one of {', '.join(_TEXTS)}, got {text!r}")
        resolve_model(model)
        self.source, self.label, self.text, self.batch_size = model, label, text, batch_size
        self._pipeline: Any = None
        self._lock = Lock()

    def __call__(self, completions: Sequence[str], *, prompts: Sequence[str], **_: Any) -> list[float]:
        joined = self.text == "prompt+completion"
        texts = [prompt + text if joined else text for prompt, text in zip(prompts, completions, strict=True)]
        pipeline = self._load()
        with self._lock:
            documents = list(pipeline.pipe(texts, batch_size=self.batch_size))
        # what spaCy says of a text without tokens depends on the texts beside it
        return [float(document.cats[self.label]) if len(document) else 0.0 for document in documents]

    def load_models(self) -> None:
        """Load the pipeline now instead of at the first score."""
        self._load()

    def _load(self) -> Any:
        """The pipeline, loaded once for all threads."""
        with LOADING:
            if self._pipeline is None:
                pipeline = spacy.load(resolve_model(self.source))
                known = sorted(pipeline("a text").cats)
                if self.label not in known:
                    raise ValueError(f"spacy: label must be one of {', '.join(known) or '(none)'}, got {self.label!r}")
                self._pipeline = pipeline
        return self._pipeline

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}  # copies load it again
