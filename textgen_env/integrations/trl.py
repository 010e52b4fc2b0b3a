"""TRL: a task of this package as the model, data set, reward function and settings of `trl.GRPOTrainer`.

TRL writes whole responses by itself, so that no environment is stepped here: what it takes from one is the prompts, the
scorer and the limits. Its own KL (`beta`, inside the loss) stands for `kl_coef`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from textgen_env.episode import FinishReason
from textgen_env.notices import shown
from textgen_env.prompts import PromptSource, load_prompts, prompt_as_dict
from textgen_env.scorers import get_scorer
from textgen_env.scorers.answers import Scores, add_applying, scorer_name
from textgen_env.scorers.base import raw_parts

try:
    import datasets
    import trl  # noqa: F401
except ImportError as error:
    raise ImportError("textgen_env.integrations.trl needs TRL: pip install 'textgen_env[trl]'") from error

NOT_COLUMNS = ("trainer_state", "log_extra", "log_metric", "environments")  # what TRL hands over beside the data


class RewardFunction:
    """A scorer in the form of TRL's reward functions; named parts go to TRL's log.

    Args:
        scorer: a name, a mapping or a callable, see `get_scorer`.
        eos_token_ids: the tokens that end a response, from which `finish_reasons` are read; without them a scorer gets
            none.
    """

    def __init__(
        self, scorer: str | Mapping[str, Any] | Callable[..., Any], *, eos_token_ids: Collection[int] = ()
    ) -> None:
        self.scorer = get_scorer(scorer)
        self.eos_token_ids = frozenset(eos_token_ids)
        self.__name__ = scorer_name(self.scorer)  # what TRL calls it in its log

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        references: Sequence[Sequence[str]] | None = None,
        **columns: Any,
    ) -> Scores:
        """The score of each response, `None` where the scorer does not apply, which TRL leaves out of its sum.

        Args:
            prompts, completions: n texts, or n conversations, of which the text of the last message counts: all of its
                parts together where it has several, and "" where it has none.
            completion_ids: n lists of tokens, EOS included.
            references: n lists of texts.
            **columns: further columns of the data set.

        Raises:
            ScorerError: the scorer failed.
            TypeError: a prompt or completion is neither text nor conversation.
        """
        extra = {key: column for key, column in columns.items() if key not in NOT_COLUMNS}
        conversations = [
            None if isinstance(prompt, str) else _messages(prompt, "prompts", row) for row, prompt in enumerate(prompts)
        ]
        if any(messages is not None and len(messages) > 1 for messages in conversations):  # more than their last texts
            extra.setdefault("messages", conversations)
        if self.eos_token_ids:
            extra["finish_reasons"] = [self._finish_reason(ids) for ids in completion_ids]
        parts = raw_parts(
            self.scorer,
            [_text(completion, "completions", row) for row, completion in enumerate(completions)],
            prompts=[_text(prompt, "prompts", row) for row, prompt in enumerate(prompts)],
            references=references,
            completion_ids=[list(ids) for ids in completion_ids],
            **extra,
        )
        if len(parts) > 1 and "log_metric" in columns:
            for name, values in parts.items():
                if some := [value for value in values if value is not None]:
                    columns["log_metric"](f"reward_parts/{name}", sum(some) / len(some))
        return add_applying(parts, len(completions))

    def _finish_reason(self, token_ids: Sequence[int]) -> str:
        ended = len(token_ids) > 0 and token_ids[-1] in self.eos_token_ids
        return (FinishReason.EOS if ended else FinishReason.LENGTH).value


def _text(value: Any, column: str, row: int) -> str:
    """A text, or that of a conversation's last message; a message that only calls tools has none."""
    if isinstance(value, str):
        return value
    messages = _messages(value, column, row)
    content = (messages[-1].get("content") if messages else None) or ""
    if isinstance(content, str):
        return content
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))


def _messages(value: Any, column: str, row: int) -> list[Any]:
    messages = [value] if isinstance(value, Mapping) else value
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(
            f"{column}[{row}] must be a text or a list of messages with role and content, got {shown(value)}"
        )
    return list(messages)


def prompt_dataset(prompts: PromptSource) -> datasets.Dataset:
    """A set of prompts with the columns `prompt`, `references` and whatever else its entries hold.

    Args:
        prompts: as for `load_prompts`: a list, a .jsonl path, the name of a set.
    """
    rows = [prompt_as_dict(prompt) for prompt in load_prompts(prompts)]
    return datasets.Dataset.from_list(rows)


def trainer_arguments(env: Any) -> dict[str, Any]:
    """`model`, `processing_class`, `train_dataset` and `reward_funcs` for `trl.GRPOTrainer`, of a task.

    Args:
        env: a single or batched environment of this package. Its weights become the trainer's: what is trained is the
            environment's own model. Padding rows of its embedding, which are no actions but which TRL would sample, are
            cut off.

    Raises:
        ValueError: a prompt is longer than max_prompt_tokens.
    """
    env = env.unwrapped
    model = env.language_model
    _check_prompt_lengths(env)
    weights = model.model
    if weights.config.get_text_config().vocab_size > model.vocab_size:
        weights.resize_token_embeddings(model.vocab_size)
    return {
        "model": weights,
        "processing_class": model.tokenizer,
        "train_dataset": prompt_dataset(env.prompts),
        "reward_funcs": RewardFunction(env.scorer, eos_token_ids=model.eos_token_ids),
    }


def config_arguments(env: Any) -> dict[str, Any]:
    """The settings of `trl.GRPOConfig` that a task decides: length, temperature and β, sampling left unwarped.

    Raises:
        ValueError: the task masks actions or has stop strings, which TRL does not apply to its log-probabilities, or a
            responder, which it does not ask.
    """
    env = env.unwrapped
    settings = env.engine.config
    if settings.responder is not None:
        raise ValueError(f"trl generates whole responses, but here responder={settings.responder!r} answers in between")
    if env.engine.restricted or settings.stop_strings:
        raise ValueError(
            "trl scores the responses it generates without masks: forbidden_tokens, min_new_tokens, reference_top_p, "
            f"reference_top_k and stop_strings must stay at their defaults, got {settings.forbidden_tokens!r}, "
            f"{settings.min_new_tokens}, {settings.reference_top_p}, {settings.reference_top_k} and "
            f"{settings.stop_strings!r}"
        )
    return {
        "max_completion_length": env.max_new_tokens,
        "temperature": env.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "beta": env.kl_coef,
    }


def _check_prompt_lengths(env: Any) -> None:
    """TRL does not cut prompts, and a response after a longer prompt would not be the environment's."""
    for index, prompt in enumerate(env.prompts):
        token_ids, excess = env.engine.starts.read(prompt)
        if excess:
            raise ValueError(
                f"prompts[{index}] has {len(token_ids) + excess} tokens, more than max_prompt_tokens="
                f"{env.max_prompt_tokens}; TRL does not cut prompts: raise max_prompt_tokens, or leave such prompts out"
            )
