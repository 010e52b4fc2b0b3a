"""What an episode can begin with: prompts of the set, prompts that callers name, and responses that are begun.

How prompts are read from files is `prompts.py`'s business, how one becomes tokens `vocabulary.py`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from textgen_env.config import EnvConfig
from textgen_env.episode import Prompt
from textgen_env.lm.language_model import LanguageModel
from textgen_env.notices import shown, warn_user
from textgen_env.prompts import PromptLike, as_prompt, check_columns
from textgen_env.turns import Turns
from textgen_env.vocabulary import tokenize_prompt


class Starts:
    """The prompts of an environment.

    Args:
        config: of the environment.
        prompts: the set.
        model: whose tokens they become.
        taken: names of columns that the scorer cannot be handed.
        turns: the environment that answers back, if there is one.

    Attributes:
        tools: JSON schemas of the functions that prompts tell the model of.

    Raises:
        ValueError: a prompt that the scorer or the tokenizer cannot take.
    """

    def __init__(
        self,
        config: EnvConfig,
        prompts: Sequence[Prompt],
        model: LanguageModel,
        taken: Collection[str],
        turns: Turns | None,
    ) -> None:
        self.prompts, self._model, self._taken, self._turns = prompts, model, taken, turns
        self.tools = () if turns is None else turns.tools
        self._limit, self._truncation = config.max_prompt_tokens, config.truncation
        self._token_ids: dict[Any, list[int]] = {}
        self._warned_of_cut = False
        self._check()

    def _check(self) -> None:
        """Find prompts that the scorer or the tokenizer cannot take before the first episode does.

        Templates refuse conversations for the order of their roles, so that one of each order is written out. Texts are
        looked through only where the tokenizer knows tokens that the model does not, or none may be too long.
        """
        every_text = len(self._model.tokenizer) > self._model.vocab_size or self._truncation == "error"
        orders = set()
        for index, prompt in enumerate(self.prompts):
            check_columns(prompt, self._taken, f"prompts[{index}]")
            order = tuple(message["role"] for message in prompt.messages or ())
            if every_text or (order and order not in orders):
                orders.add(order)
                try:
                    self.read(prompt)
                    if order and self._turns:
                        self._turns.encoder.check_prompt(prompt)
                except ValueError as error:
                    raise ValueError(f"prompts[{index}]: {error}") from error

    def named(self, choice: PromptLike | int) -> Prompt:
        """The prompt that a caller names: a text, a mapping, or an index into the set.

        Raises:
            IndexError, TypeError, ValueError: an index beyond the set, or no prompt; see `as_prompt`.
        """
        if isinstance(choice, (int, np.integer)) and not isinstance(choice, bool):
            if not 0 <= choice < len(self.prompts):
                raise IndexError(f"options['prompt']={choice} is not an index of the {len(self.prompts)} prompts")
            return self.prompts[int(choice)]
        prompt = as_prompt(choice, "options['prompt']")  # type: ignore[arg-type]
        check_columns(prompt, self._taken, "options['prompt']")
        if prompt.messages and self._turns:
            self._turns.encoder.check_prompt(prompt)
        if self._truncation == "error":
            self.read(prompt)
        return prompt

    def draw(self, generator: np.random.Generator) -> Prompt:
        """A prompt drawn uniformly from the set."""
        return self.prompts[int(generator.integers(len(self.prompts)))]

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt; what is beyond max_prompt_tokens is cut, with a warning, once."""
        key = prompt.text if prompt.messages is None else (repr(prompt.messages),)
        if key not in self._token_ids:
            if len(self._token_ids) > 10 * len(self.prompts) + 1000:  # prompts given by hand must not pile up for ever
                self._token_ids.clear()
            self._token_ids[key], excess = self.read(prompt)
            if excess and not self._warned_of_cut:
                self._warned_of_cut = True
                cut = "cut on the left" if self._truncation == "left" else "cut by its oldest turns"
                warn_user(
                    f"a prompt of {len(self._token_ids[key]) + excess} tokens was {cut} to max_prompt_tokens="
                    f"{self._limit}: {prompt.text[:60]!r}… (said once for an environment)"
                )
        return self._token_ids[key]

    def read(self, prompt: Prompt) -> tuple[list[int], int]:
        """The tokens of a prompt and how many were cut off.

        Raises:
            ValueError: the tokenizer or its template cannot take it, or it is too long and must not be.
        """
        token_ids, excess = tokenize_prompt(
            self._model, prompt, self._limit, truncation=self._truncation, tools=self.tools
        )
        if excess and self._truncation == "error":
            raise ValueError(
                f"a prompt of {len(token_ids) + excess} tokens is longer than max_prompt_tokens={self._limit}: "
                f"{prompt.text[:60]!r}…; raise the limit, leave it out, or let truncation='left' or 'turns' cut it"
            )
        return token_ids, excess

    def response_tokens(self, response: Any) -> list[int]:
        """The tokens of a response that a caller names: a text, or token ids.

        Raises:
            TypeError, ValueError: neither, a token that does not exist, or as many as end an episode.
        """
        if self._turns is not None:
            raise ValueError("options['response'] is not for an environment that answers back: use restore_state")
        if isinstance(response, str):
            return self._model.encode_plain(response)
        array = np.asarray(response)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError(f"options['response']={shown(response)} must be a text or a list of token ids")
        return [int(token) for token in array]
