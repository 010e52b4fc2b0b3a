"""A causal language model and its tokenizer, from wherever they lie: the door through which models enter.

The tokenizer and the configuration load at once, the weights only when something asks for `.model`. Which files are
read, and which refused, is in `loading.py`, what a causal model is in `model_kinds.py`, decoding with memory in
`prefix_cache.py`, teacher-forced scoring in `log_probs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from textgen_env.lm.backbone import evaluating, unwrap
from textgen_env.lm.loading import LOADING, Location, as_device, as_dtype, load_weights, open_model
from textgen_env.lm.log_probs import response_log_probs
from textgen_env.lm.model_kinds import check_causal, check_live_causal
from textgen_env.lm.prefix_cache import PrefixCache
from textgen_env.lm.sampling import PLAIN, SamplingParams, takes_sampling
from textgen_env.lm.token_batch import TokenBatch
from textgen_env.lm.token_text import TokenText

TOKENS_PER_BATCH = 4096  # padded tokens that `log_probs` sends through the model at a time
_LIVE = "LanguageModel.from_modules(model, tokenizer)"


class LanguageModel:
    """A tokenizer at once, a model when needed.

    Args:
        source: the name of an embedded or fetched model ("tiny"), a directory in transformers format, a `.gguf` file,
            or a hub id.
        device: any torch device that is present, e.g. "cpu" or "cuda:0".
        dtype: "float32", "bfloat16" or "float16".
        strict: refuse weights with missing, unexpected or misshapen tensors; False fills the gaps with random numbers.
        role: what errors call the model: the argument that it was given as.

    Attributes:
        source: as given, as text.
        tokenizer, config: as transformers loads them.
        vocab_size: number of actions: the logits columns that stand for real tokens. Padding rows of an embedding do
            not count.
        eos_token_ids: every token that ends a text, from the tokenizer, the configuration and the generation settings.
        bos_token_id: or None.
        pad_token_id: what to fill rows with; never tells where a text ends.

    Raises:
        TypeError: the source is neither text nor path.
        ValueError: the device or dtype is unknown, the model is not causal, or its files are damaged or of a format
            that can run code; at the first use of `.model`, the weights do not fit the model or are not finite.
        FileNotFoundError: no such model, no tokenizer, or no weights.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        strict: bool = True,
        role: str = "model",
    ) -> None:
        self.source = str(source)
        self.device, self.dtype, self.strict = as_device(device), as_dtype(dtype), strict
        self._location: Location | None
        self._location, self.config, self.tokenizer = open_model(source, role, _LIVE, check_causal)
        self._model: PreTrainedModel | None = None
        self._reloadable = True
        self._read_token_ids(self._generation_config())

    @classmethod
    def from_modules(cls, model: Any, tokenizer: Any, name: str = "custom") -> LanguageModel:
        """Wrap live objects (a model being trained, a peft wrapper); copies and pickles carry the model with them.

        Raises:
            TypeError: `model` is no model of transformers, or `tokenizer` no tokenizer.
            ValueError: the model is not causal.
        """
        self = cls.__new__(cls)
        inner = unwrap(model)
        check_live_causal(inner, "model")
        if not hasattr(tokenizer, "get_vocab"):
            raise TypeError(f"tokenizer: expected a transformers tokenizer, got {type(tokenizer).__name__}")
        self.source, self.device, self.dtype, self.strict = name, inner.device, inner.dtype, True
        self._location, self._model, self._reloadable = None, model, False
        self.tokenizer, self.config = tokenizer, inner.config
        self._read_token_ids(getattr(inner, "generation_config", None))
        return self

    @property
    def model(self) -> PreTrainedModel:
        """The weights, loaded at the first use, once for all threads, in evaluation mode."""
        if self._model is None:
            with LOADING:
                if self._model is None:
                    assert self._location is not None
                    model = load_weights(AutoModelForCausalLM, self._location, dtype=self.dtype, strict=self.strict)
                    self._model = model.to(self.device).eval()
        return self._model

    @property
    def weights_loaded(self) -> bool:
        """Whether `.model` has been asked for yet."""
        return self._model is not None

    def encode(self, text: str, *, whole: bool = False) -> list[int]:
        """Token ids of a text that is to be continued, with what the tokenizer puts in front of texts (a BOS), once.

        What a tokenizer puts behind a text (EOS, [SEP]) is left out, since the text goes on; and a text that begins
        with a BOS of its own, as chat templates write one, gets no second one.

        Args:
            text: what to encode.
            whole: the text does not go on: what the tokenizer puts behind it stays, as a model is trained on it.

        Raises:
            ValueError: a token of it is none of the model's.
        """
        plain = self.encode_as_is(text)
        front, behind = self._added_tokens
        if plain[: len(front)] == front:
            front = []
        return self._checked(front) + plain + (self._checked(behind) if whole else [])

    def encode_as_is(self, text: str) -> list[int]:
        """Token ids of a text that already has all its special tokens, as one that a chat template wrote.

        Raises:
            ValueError: a token of it is none of the model's.
        """
        token_ids = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)  # however long it is
        return self._checked(list(token_ids))

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that stands between others: nothing is put around it, and what is spelled like a special
        token is text, so that nobody can write one who is only quoted.

        Raises:
            ValueError: a token of it is none of the model's.
        """
        token_ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return self._checked(list(token_ids))

    def encode_behind(self, before: Sequence[int], text: str) -> list[int]:
        """Token ids that write a text behind other tokens, so that `continuation(before, …)` is that text.

        Plain, as `encode_plain` has it. Tokenizers that put a space in front of every text would write one more than is
        there; for them the text is encoded behind a line break or a full stop, which is taken off again. What a
        tokenizer cannot write (characters that it does not know, or writes otherwise) comes as near as it can.

        Args:
            before: the tokens that the text is to follow.
            text: any.

        Raises:
            ValueError: a token of it is none of the model's.
        """
        plain = self.encode_plain(text)
        if self.continuation(before, plain) == text:
            return plain
        for anchor in ("\n", "."):
            front, both = self.encode_plain(anchor), self.encode_plain(anchor + text)
            if both[: len(front)] == front and self.continuation(before, both[len(front) :]) == text:
                return both[len(front) :]
        return plain

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are left out and spaces are left alone."""
        return self.token_text.decode([int(token) for token in token_ids])

    def continuation(self, before: Iterable[int], after: Iterable[int]) -> str:
        """The text that the tokens `after` add behind the tokens `before`: decode(before + after) less decode(before).

        Not the same as decode(after), from which some tokenizers strip the leading space. See `TokenText`.
        """
        return self.token_text.continuation([int(token) for token in before], [int(token) for token in after])

    @cached_property
    def token_text(self) -> TokenText:
        """The decoder of this tokenizer."""
        return TokenText(self.tokenizer)

    @cached_property
    def _added_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of any text and behind it."""
        plain, marked = (self.tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
        for at in range(len(marked) - len(plain) + 1):
            if plain and marked[at : at + len(plain)] == plain:
                return list(marked[:at]), list(marked[at + len(plain) :])
        ends = {*self.eos_token_ids, self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        at = next((at for at, token in enumerate(marked) if token in ends), len(marked))  # "a" is no text to it
        return list(marked[:at]), list(marked[at:])

    def _checked(self, token_ids: list[int]) -> list[int]:
        """The same ids, if the model has a row for each."""
        outside = [token for token in token_ids if token >= self.vocab_size]
        if outside:
            raise ValueError(
                f"{self.tokenizer.convert_ids_to_tokens(outside[0])!r} is token {outside[0]} of the tokenizer, but "
                f"{self.source!r} has {self.vocab_size} tokens; if it was added to the tokenizer, give the model a row "
                "for it, once: model.resize_token_embeddings(len(tokenizer))"
            )
        return token_ids

    def prefix_cache(self, rows: int) -> PrefixCache:
        """A memory of `rows` prefixes for next-token logits; loads the weights."""
        return PrefixCache(self.model, rows, vocab_size=self.vocab_size)

    @property
    def end_token_id(self) -> int:
        """The token that ends a text when one is written: the tokenizer's EOS, or the first of the model's.

        Raises:
            ValueError: the model knows none.
        """
        ends = [self.tokenizer.eos_token_id, *sorted(self.eos_token_ids)]
        known = [int(token) for token in ends if token in self.eos_token_ids]
        if not known:
            raise ValueError(f"{self.source!r} knows no EOS token; set tokenizer.eos_token to one of its tokens")
        return known[0]

    @torch.no_grad()
    @takes_sampling
    def log_probs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        sampling: SamplingParams = PLAIN,
        *,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probability of each token given those before it, teacher-forced, without gradient.

        Args:
            input_ids: (B, T) int64, right-padded, and attention_mask (B, T): 1 for tokens, then 0.
            sampling: warps the distribution.
            mask: bool (V,), the tokens that are allowed.

        Returns:
            (B, T) float32 on the input's device; 0 in column 0, which nothing precedes, and at padding.
        """
        result = torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device)
        wanted = attention_mask.bool().clone()
        wanted[:, 0] = False
        texts = TokenBatch(input_ids, attention_mask, wanted)
        with evaluating(self.model):
            for rows in torch.arange(len(input_ids)).split(max(1, TOKENS_PER_BATCH // input_ids.shape[1])):
                some = TokenBatch(*(part[rows].to(self.device) for part in texts))
                scores = response_log_probs(self.model, some, sampling, vocab_size=self.vocab_size, mask=mask)
                result[rows] = scores.log_probs.to(result.device)
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model that has a source leave the weights there."""
        return self.__dict__ | ({"_model": None} if self._reloadable else {})

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.source!r}, device={str(self.device)!r}, dtype={dtype!r})"

    def _generation_config(self) -> Any:
        assert self._location is not None
        folder, gguf = self._location.folder, self._location.gguf
        if gguf or (self._location.is_local and not (Path(folder) / "generation_config.json").is_file()):
            return None
        try:
            return GenerationConfig.from_pretrained(folder)
        except OSError:  # a hub id without generation settings
            return None

    def _read_token_ids(self, generation_config: Any) -> None:
        config = self.config.get_text_config()
        self.vocab_size = min(int(config.vocab_size), len(self.tokenizer))
        ends: set[int] = set()
        for holder in (self.tokenizer, config, generation_config):
            given = getattr(holder, "eos_token_id", None)
            ends.update(given if isinstance(given, Sequence) else [] if given is None else [given])
        self.eos_token_ids = frozenset(token for token in ends if 0 <= token < self.vocab_size)
        self.bos_token_id: int | None = self.tokenizer.bos_token_id
        choices = (self.tokenizer.pad_token_id, getattr(config, "pad_token_id", None), *sorted(self.eos_token_ids), 0)
        self.pad_token_id = next(int(token) for token in choices if token is not None and 0 <= token < self.vocab_size)
