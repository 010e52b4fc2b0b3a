"""Rewards from any sequence classifier or reward model of transformers. Loading and batching are in `text_model.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from .arguments import hands_on
from .batching import Encoding
from .text_model import TextModel, text_model

_OUTPUTS = ("probability", "log_probability", "logit")
_TEXTS = ("prompt+completion", "completion", "pair", "chat")


class Classifier:
    """One output of a sequence classifier for each text; higher is better for the chosen label.

    Range: "probability" [0, 1], "log_probability" (−∞, 0], "logit" (−∞, ∞). With a single logit z, as reward models
    have, the probability is sigmoid(z); with several it is the softmax at `label`, or, where the configuration says
    that labels do not exclude each other (`problem_type`), the sigmoid there. Weights are loaded when an environment is
    made, or at the first score. An empty completion is scored like any other text, by itself as one BOS token where the
    tokenizer adds none.

    Args:
        model: a packaged or fetched name, a directory or a hub id with weights in safetensors, or a `TextModel`.
        label: name or index of the label; needed when there is more than one.
        output: "probability", "log_probability" or "logit".
        text: what is scored: "prompt+completion" joined as they are, "completion" alone, the "pair" of both as two
            segments, or "chat", the tokenizer's chat template with the prompt, as the user's turn or, where it is a
            conversation, all its messages, and the completion as the assistant's turn.
        name: name in errors and reward parts.
        **kwargs: `max_length`, `batch_size`, `device`, `dtype`, `strict` of `TextModel`.

    Raises:
        TypeError, ValueError, FileNotFoundError: `output`, `text` or `label` is unknown, or `label` is missing; the
            model is no classifier, or cannot be loaded (see `TextModel`).
    """

    @hands_on(TextModel, "task", "source", "role")
    def __init__(
        self,
        model: str | TextModel = "tiny-sentiment",
        label: str | int | None = None,
        output: str = "probability",
        text: str = "prompt+completion",
        name: str = "classifier",
        **kwargs: Any,
    ) -> None:
        if output not in _OUTPUTS:
            raise ValueError(f"{name}: output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        if text not in _TEXTS:
            raise ValueError(f"{name}: text must be one of {', '.join(_TEXTS)}, got {text!r}")
        self.label, self.output, self.text, self.name = label, output, text, name
        self.model = text_model("classifier", model, name, kwargs)
        self._column()
        if text == "chat" and not self.model.tokenizer.chat_template:
            raise ValueError(f'{name}: text="chat" needs a chat template, which the tokenizer of {model!r} has not')

    def __call__(
        self,
        completions: Sequence[str],
        *,
        prompts: Sequence[str],
        messages: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        **_: Any,
    ) -> list[float]:
        column = self._column()
        rows = zip(prompts, completions, messages or [None] * len(completions), strict=True)
        encodings = [self.encode(*row) for row in rows]
        return self.model.run(encodings, lambda outputs, _: self._read(outputs.logits.float(), column)).tolist()

    def _read(self, logits: torch.Tensor, column: int) -> torch.Tensor:
        """The wanted output of each row: (rows, labels) to (rows,)."""
        if self.output == "logit":
            return logits[:, column]
        if logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification":
            log_prob = functional.logsigmoid(logits[:, column])
        else:
            log_prob = logits.log_softmax(-1)[:, column]
        return log_prob if self.output == "log_probability" else log_prob.exp()

    def encode(self, prompt: str, completion: str, messages: Sequence[dict[str, Any]] | None = None) -> Encoding:
        """Token ids of what is scored: those to train on, too."""
        if self.text == "chat":
            turns = [*(messages or [{"role": "user", "content": prompt}]), {"role": "assistant", "content": completion}]
            text = self.model.tokenizer.apply_chat_template(turns, tokenize=False)
            return self.model.encode(text, add_special_tokens=False)  # the template writes them
        if self.text == "pair":
            return self.model.encode(prompt, completion)
        return self.model.encode(completion if self.text == "completion" else prompt + completion)

    def _column(self) -> int:
        """The label's column."""
        names = [str(name) for _, name in sorted(self.model.config.id2label.items())]
        if len(names) == 1:
            return 0
        if self.label in names:
            return names.index(str(self.label))
        if isinstance(self.label, int) and not isinstance(self.label, bool) and 0 <= self.label < len(names):
            return self.label
        raise ValueError(f"{self.name}: label must be one of {', '.join(names)} or its index, got {self.label!r}")

    def load_models(self) -> None:
        """Load the weights now instead of at the first score."""
        self.model.load_models()


class Sentiment(Classifier):
    """Probability in [0, 1] that prompt and completion together read as praise; higher is better.

    A `Classifier` with the packaged reward model. The text scored is the prompt followed by the completion, as in the
    IMDB continuation task of RL4LMs, since a review's opening belongs to what a reader judges.
    Arguments: see `Classifier`.
    """

    @hands_on(Classifier, name="sentiment")
    def __init__(self, model: str = "tiny-sentiment", label: str | int | None = "POSITIVE", **kwargs: Any) -> None:
        super().__init__(model, label, **{"name": "sentiment", **kwargs})
