"""A causal language model and its tokenizer, from wherever they lie: the door through which models enter.

The tokenizer and the configuration load at once, the weights only when something asks for `.model`. Only safetensors
and GGUF files are read, never pickles, and no code that comes with a model is run. Decoding with memory is in
`prefix_cache.py`, teacher-forced scoring in `scoring.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedModel

from textgen_env.assets import MODELS, resolve_model
from textgen_env.prefix_cache import PrefixCache
from textgen_env.scoring import response_log_probs
from textgen_env.token_text import TokenText
from textgen_env.trunk import evaluating, unwrap, without_progress_bars

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS_PER_BATCH = 4096  # padded tokens that `log_probs` sends through the model at a time
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class LanguageModel:
    """A tokenizer at once, a model when needed.

    Args:
        source: the name of an embedded or fetched model ("tiny"), a directory in transformers format, a `.gguf` file,
            or a hub id.
        device: any torch device that is present, e.g. "cpu" or "cuda:0".
        dtype: "float32", "bfloat16" or "float16".

    Attributes:
        source: as given, as text.
        tokenizer, config: as transformers loads them.
        vocab_size: number of actions: the logits columns that stand for real tokens. Padding rows of an embedding do
            not count.
        eos_token_ids: every token that ends a text, from the tokenizer, the configuration and the generation settings.
        bos_token_id: or None.
        pad_token_id: what to fill rows with; never tells where a text ends.

    Raises:
        ValueError: the device or dtype is unknown, or the weights are in a format that can run code.
        FileNotFoundError: no such model, no tokenizer, or no weights.
    """

    def __init__(self, source: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"):
        self.source = str(source)
        self.device, self.dtype = _device(device), _dtype(dtype)
        self._location: tuple[str, str | None] | None = _locate(source)
        self._model: PreTrainedModel | None = None
        self._reloadable = True
        self.tokenizer = self._from_pretrained(AutoTokenizer, "tokenizer")
        self.config = self._from_pretrained(AutoConfig, "configuration")
        self._read_token_ids(self._generation_config())

    @classmethod
    def from_modules(cls, model: Any, tokenizer: Any, name: str = "custom") -> LanguageModel:
        """Wrap live objects (a model being trained, a peft wrapper); copies and pickles carry the model with them."""
        self = cls.__new__(cls)
        inner = unwrap(model)
        self.source, self.device, self.dtype = name, inner.device, inner.dtype
        self._location, self._model, self._reloadable = None, model, False
        self.tokenizer, self.config = tokenizer, inner.config
        self._read_token_ids(getattr(inner, "generation_config", None))
        return self

    @property
    def model(self) -> PreTrainedModel:
        """The weights, loaded at the first use, in evaluation mode."""
        if self._model is None:
            model = self._from_pretrained(AutoModelForCausalLM, "weights", dtype=self.dtype)
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

    @torch.no_grad()
    def log_probs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probability of each token given those before it, teacher-forced, without gradient.

        Args:
            input_ids: (B, T) int64, right-padded, and attention_mask (B, T): 1 for tokens, then 0.
            temperature, top_k, top_p, mask: warping as in `sampling.warp_logits`; mask is (V,).

        Returns:
            (B, T) float32 on the input's device; 0 in column 0, which nothing precedes, and at padding.
        """
        result = torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device)
        wanted = attention_mask.bool().clone()
        wanted[:, 0] = False
        warping: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "mask": mask}
        with evaluating(self.model):
            for rows in torch.arange(len(input_ids)).split(max(1, TOKENS_PER_BATCH // input_ids.shape[1])):
                batch = [part[rows].to(self.device) for part in (input_ids, attention_mask, wanted)]
                scores = response_log_probs(self.model, *batch, vocab_size=self.vocab_size, **warping)
                result[rows] = result[rows].masked_scatter(wanted[rows], scores.log_probs.to(result.device))
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model that has a source leave the weights there."""
        return self.__dict__ | ({"_model": None} if self._reloadable else {})

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.source!r}, device={str(self.device)!r}, dtype={dtype!r})"

    def _from_pretrained(self, auto: Any, what: str, **kwargs: Any) -> Any:
        assert self._location is not None
        folder, gguf = self._location
        if gguf:
            kwargs["gguf_file"] = gguf
            if what == "weights":  # plain weights, which can be trained and saved, not packed blocks
                kwargs["quantization_config"] = GgufConfig(dequantize=True)
        elif what == "weights":
            kwargs["use_safetensors"] = True
        try:
            with without_progress_bars():
                return auto.from_pretrained(folder, trust_remote_code=False, **kwargs)
        except Exception as error:  # anything from OSError to KeyError, and seldom with the name of the source
            raise FileNotFoundError(
                f"model: cannot load the {what} of {self.source!r} ({type(error).__name__}: {error})"
            ) from error

    def _generation_config(self) -> Any:
        assert self._location is not None
        folder, gguf = self._location
        if gguf or (Path(folder).is_dir() and not (Path(folder) / "generation_config.json").is_file()):
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


def _locate(source: str | Path) -> tuple[str, str | None]:
    """Where a model is: (directory or hub id, name of the GGUF file in it or None)."""
    found = resolve_model(source)
    path = Path(found).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: no such GGUF file: {str(source)!r}")
        return str(path.parent), path.name
    if path.is_dir():
        _check_directory(path)
        return str(path), None
    if path.is_file():
        raise ValueError(f"model: {str(source)!r} is a file; expected a directory, a .gguf file, a name or a hub id")
    if isinstance(source, Path) or path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
        raise FileNotFoundError(f"model: no such directory: {str(source)!r}")
    if "/" not in str(source):
        raise FileNotFoundError(
            f"model: unknown name {str(source)!r}; known: {', '.join(sorted(MODELS))}; else a directory or owner/name"
        )
    return str(found), None


def _check_directory(path: Path) -> None:
    """Complain about what is missing before a library does so less clearly."""
    if not (path / "config.json").is_file():
        hint = f"; did you mean {next(path.glob('*.gguf'))}?" if any(path.glob("*.gguf")) else ""
        raise FileNotFoundError(f"model: {str(path)!r} has no config.json, so it is no model directory{hint}")
    if not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    ):
        raise FileNotFoundError(
            f"model: {str(path)!r} has no tokenizer; save one into it with tokenizer.save_pretrained({str(path)!r})"
        )
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"model: {str(path)!r} holds pickled weights ({pickles[0]}), which can run code when they are read. "
            f'If you trust them, convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    raise FileNotFoundError(f"model: {str(path)!r} has no weights (*.safetensors)")


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: {device!r} is unknown or not present on this machine") from error
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    assert found is not None
    return found
