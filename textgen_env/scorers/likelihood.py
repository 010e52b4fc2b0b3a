"""Rewards that are probabilities of texts behind the response: of a reference answer, of the right choice, of "yes".

What lives here: `AnswerLikelihood`, `Choice` and `Verdict`. What does not: the probabilities (`policy_view.py`), and
whose policy it is (`reward.py`).

Such a reward depends on the weights θ that are trained: ∇E[R] = E[R·∇log π + ∇R]. Trainers take rewards for constants
and leave ∇R out, so that what is learned is to write what makes the policy say the right thing, not to say it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textgen_env.notices import shown

from .columns import usable_references
from .policy_view import Continuation, PolicyView

if TYPE_CHECKING:
    from textgen_env.lm.language_model import LanguageModel

LENGTHS = {
    "tokens": lambda text, found: len(found.token_ids),
    "characters": lambda text, found: len(text),
    "bytes": lambda text, found: len(text.encode()),
}


class AnswerLikelihood:
    """How likely the policy finds the reference answer behind what it has written: a reward without a verifier.

    Range: "probability" [0, 1], π(answer | prompt, response), the reward of VeriFree (Zhou et al., "Reinforcing general
    reasoning without verifiers", 2025); "log_probability" (−∞, 0], that of LaTRO (Chen et al., "Language models are
    hidden reasoners", 2024); "token_probability" [0, 1], the mean over the answer's tokens, that of RLPR (Yu et al.,
    2025), which long answers do not bring down to 0.

    Args:
        suffix: between response and answer, such as "\\nAnswer: "; special tokens spelled out in it are such.
        closing: behind the answer and part of it, so that "4" is not the beginning of "42".
        output: "probability", "log_probability" or "token_probability".
        multi: "best" or "mean" over several references.
        keep_end: the EOS of the response stays, as where the suffix begins another turn.

    Raises:
        ValueError: unknown `output` or `multi`; when scoring, a text without references.
    """

    name = "answer_likelihood"
    needs_policy = True

    def __init__(
        self,
        suffix: str = "",
        closing: str = "",
        output: str = "probability",
        multi: str = "best",
        keep_end: bool = False,
    ) -> None:
        _check(self.name, "output", output, ("probability", "log_probability", "token_probability"))
        _check(self.name, "multi", multi, ("best", "mean"))
        self.suffix, self.closing, self.output, self.multi, self.keep_end = suffix, closing, output, multi, keep_end

    def __call__(
        self, completions: Sequence[str], *, policy: PolicyView, references: Sequence[Sequence[str]], **_: Any
    ) -> list[float]:
        answers = [[text + self.closing for text in texts] for texts in usable_references(references, self.name)]
        found = policy.log_probs(answers, suffix=self.suffix, keep_end=self.keep_end)
        values = [[self._value(one) for one in several] for several in found]
        return [max(several) if self.multi == "best" else math.fsum(several) / len(several) for several in values]

    def _value(self, answer: Continuation) -> float:
        if self.output == "token_probability":
            return math.fsum(map(math.exp, answer.log_probs)) / len(answer.log_probs)
        return answer.log_prob if self.output == "log_probability" else math.exp(answer.log_prob)


class Choice:
    """How the policy answers a question with given choices, the right one of which is known.

    Range: "share" [0, 1], the right choice's part of what all choices have; "accuracy" 0 or 1, whether it is the
    likeliest; "probability" [0, 1] and "log_probability" (−∞, 0], its own. With `length_norm` each log-probability is
    first divided by the length of its choice: "accuracy" is then what lm-evaluation-harness calls acc_norm
    ("characters") or acc_bytes, and without it acc.

    Args:
        choices: the prompts' column with two texts or more each, or a list of texts for all.
        answer: the column that says which is right, by text or by number from 0.
        output: "share", "accuracy", "probability" or "log_probability".
        suffix: between response and choice, such as "\\nAnswer:".
        delimiter: in front of each choice, part of what must be written but not of its length.
        length_norm: "tokens", "characters", "bytes" or None.
        keep_end: the EOS of the response stays.

    Raises:
        ValueError: an argument that is unknown; when scoring, a text without choices, or whose answer is none of them.
    """

    name = "choice"
    needs_policy = True

    def __init__(
        self,
        choices: str | Sequence[str] = "choices",
        answer: str = "answer",
        output: str = "share",
        suffix: str = "",
        delimiter: str = " ",
        length_norm: str | None = None,
        keep_end: bool = False,
    ) -> None:
        _check(self.name, "output", output, ("share", "accuracy", "probability", "log_probability"))
        _check(self.name, "length_norm", length_norm, (*LENGTHS, None))
        self.choices, self.answer, self.output, self.suffix = choices, answer, output, suffix
        self.delimiter, self.length_norm, self.keep_end = delimiter, length_norm, keep_end

    def __call__(self, completions: Sequence[str], *, policy: PolicyView, **columns: Any) -> list[float]:
        n = len(completions)
        choices = columns.get(self.choices) if isinstance(self.choices, str) else [self.choices] * n
        answers = columns.get(self.answer) or [None] * n
        questions = [self._question(*row) for row in zip(range(n), choices or [None] * n, answers, strict=True)]
        options = [[self.delimiter + text for text in texts] for texts, _ in questions]
        found = policy.log_probs(options, suffix=self.suffix, keep_end=self.keep_end)
        return [self._score(*question, row) for question, row in zip(questions, found, strict=True)]

    def _question(self, row: int, choices: Any, answer: Any) -> tuple[list[str], int]:
        """The choices, and the number of the right one."""
        texts = list(choices) if isinstance(choices, (list, tuple)) else []
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(
                f"choice: choices={shown(self.choices)}: row {row} has {shown(choices)}; it must have a list of two "
                "texts or more, none of them empty"
            )
        number = texts.index(answer) if answer in texts else answer
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(texts):
            raise ValueError(
                f"choice: answer={shown(self.answer)}: row {row} has {shown(answer)}; it must have one of "
                f"{shown(texts)}, or its number from 0"
            )
        return texts, number

    def _score(self, texts: Sequence[str], right: int, found: Sequence[Continuation]) -> float:
        told = [one.log_prob for one in found]
        if self.length_norm is not None:
            length = LENGTHS[self.length_norm]
            told = [value / length(*of) for value, *of in zip(told, texts, found, strict=True)]
        if self.output == "accuracy":
            return float(told.index(max(told)) == right)
        if self.output == "log_probability":
            return told[right]
        return math.exp(told[right] - (_log_sum(told) if self.output == "share" else 0.0))


class Verdict:
    """What the policy, or a fixed judge, says when asked whether the response is good: P(yes) / (P(yes) + P(no)).

    Range: "probability" [0, 1]; "log_odds" (−∞, ∞). Of several words for an answer the probabilities are added up.
    (Kadavath et al., "Language models (mostly) know what they know", 2022: P(True).)

    Args:
        template: what is read before the verdict, with {prompt}, {completion} and {reference} (the first) in it. Where
            the policy judges itself it begins with "{prompt}{completion}", which stand for the very tokens that it has
            read and written. Special tokens spelled out in it are such; in what is put into it for a judge they are
            text.
        positive, negative: the answers, with the space in front of them; a text or several.
        output: "probability" or "log_odds".
        model: None: the policy, with the weights that it has; or a judge, anything that `LanguageModel` takes, or one.
        keep_end: the EOS of the policy's response stays.
        device, dtype: of the judge.

    Raises:
        TypeError, ValueError, FileNotFoundError: an argument that is unknown or of another form, or a judge that
            `LanguageModel` refuses; when scoring, {reference} without references.
    """

    name = "verdict"

    def __init__(
        self,
        template: str = "{prompt}{completion}\nIs this good? Answer:",
        positive: str | Sequence[str] = " yes",
        negative: str | Sequence[str] = " no",
        output: str = "probability",
        model: str | LanguageModel | None = None,
        keep_end: bool = False,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        _check(self.name, "output", output, ("probability", "log_odds"))
        self.pieces = re.split(r"\{(prompt|completion|reference)\}", template)
        self.needs_policy = model is None
        wanted = ["", "prompt", "", "completion"]
        if self.needs_policy and (self.pieces[:4] != wanted or {"prompt", "completion"} & {*self.pieces[5::2]}):
            raise ValueError(
                f'verdict: template={shown(template)} must begin with "{{prompt}}{{completion}}" and have neither '
                "again where the policy judges itself: they stand for the tokens that it has read and written"
            )
        if "completion" not in self.pieces[1::2]:
            raise ValueError(f"verdict: template={shown(template)} must have {{completion}} in it")
        self.positive, self.negative = _words("positive", positive), _words("negative", negative)
        self.output, self.keep_end = output, keep_end
        self.judge = _judge(model, device, dtype)

    def __call__(
        self,
        completions: Sequence[str],
        *,
        prompts: Sequence[str],
        references: Sequence[Sequence[str]],
        policy: PolicyView | None = None,
        **_: Any,
    ) -> list[float]:
        first = [""] * len(completions)
        if "reference" in self.pieces[1::2]:
            first = [texts[0] for texts in usable_references(references, self.name)]
        rows = [
            {"prompt": prompt, "completion": text, "reference": reference}
            for prompt, text, reference in zip(prompts, completions, first, strict=True)
        ]
        if self.judge is not None:
            view, suffixes = PolicyView(self.judge, [self._read(row) for row in rows], [False] * len(rows)), [""]
            suffixes *= len(rows)
        else:
            assert policy is not None
            view, suffixes = policy, [self._behind(row) for row in rows]
        options = [[*self.positive, *self.negative]] * len(rows)
        found = view.log_probs(options, suffix=suffixes, keep_end=self.keep_end)
        return [self._score([one.log_prob for one in several]) for several in found]

    def load_models(self) -> None:
        """Load the judge's weights now instead of at the first score."""
        if self.judge is not None:
            self.judge.model  # noqa: B018

    def _behind(self, values: dict[str, str]) -> str:
        """The template from the response on."""
        return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(self.pieces) if at > 3)

    def _read(self, values: dict[str, str]) -> list[int]:
        """The tokens that the judge reads."""
        assert self.judge is not None
        token_ids = self.judge.encode("")
        for at, piece in enumerate(self.pieces):
            if at % 2:
                token_ids += self.judge.encode_behind(token_ids, values[piece]) if values[piece] else []
            else:
                token_ids += self.judge.encode_as_is(piece) if piece else []
        return token_ids

    def _score(self, told: Sequence[float]) -> float:
        yes, no = told[: len(self.positive)], told[len(self.positive) :]
        odds = _log_sum(yes) - _log_sum(no)
        return odds if self.output == "log_odds" else math.exp(-_log_sum([0.0, -odds]))


def _check(name: str, argument: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(str, known))}, got {shown(value)}")


def _words(argument: str, value: str | Sequence[str]) -> list[str]:
    words = [value] if isinstance(value, str) else list(value)
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"verdict: {argument}={shown(value)} must be a text, or several, none of them empty")
    return words


def _judge(model: str | LanguageModel | None, device: str, dtype: str) -> LanguageModel | None:
    if model is None or hasattr(model, "prefix_cache"):
        return model  # type: ignore[return-value]
    from textgen_env.lm.language_model import LanguageModel

    return LanguageModel(model, device=device, dtype=dtype, role="verdict: model")


def _log_sum(values: Sequence[float]) -> float:
    """log Σ exp."""
    most = max(values)
    return most + math.log(math.fsum(math.exp(value - most) for value in values))
