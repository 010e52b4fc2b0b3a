"""Whether a way of reading texts gives the model's own results: a script of short texts against its plain forward.

The oracle reads one unpadded text at a time, without memory and with the library's code alone. The comparison runs on
a shadow of the model, which shares its weights but no state, and whose windows and switches of the position encoding
are brought near, so that a dozen tokens stand on both sides of each. A model that is no oracle (an
encoder–decoder, one that looks ahead, one that answers differently each time or not with numbers) is refused. Which
ways there are is known in `prefix_cache.py` and `log_probs.py`.
"""

from __future__ import annotations

import copy
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textgen_env.lm.backbone import HALF, evaluating, walk
from textgen_env.lm.position_switches import position_switches, rope_settings, switches_once, text_limit
from textgen_env.lm.whole_texts import own_output

logger = logging.getLogger(__name__)

ROWS = 4
LONGEST = 12  # tokens of the longest text
WINDOW = 4  # of sliding and chunked attention in the shadow
SWITCH = 6  # of LongRoPE in the shadow
SHARED = 1 << 16  # buffers of more numbers than this are not copied; those that models write to are smaller
ITSELF_TOLERANCE = 1e-2  # where one large logit is a sum that cancels out, rounding alone comes to 1e-3 of it
HALF_TOLERANCE = 0.1  # in half precision, whatever is asked for; 30 layers in bfloat16 come to .03
_WINDOWS = re.compile(  # settings that begin to matter when a text is longer; not those that break ties by chance
    r"(^|_)(?<!keep_)window(_size|_len)?$|^attention_chunk_size$|^(l\w+_attn_)?chunk_length$|^local_attention$"
)
_ORIGINAL = "original_max_position_embeddings"
_lock = threading.RLock()


class Oracle:
    """The model's own next-token logits after every prefix of a few texts.

    Attributes:
        model: the shadow that everything is tried on.
        texts: arrays of tokens, four of different lengths, the last of them the longest, and a fifth that begins as the
            first does.

    Raises:
        ValueError: the model cannot serve: see the module's docstring.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {type(model).__name__} is an encoder–decoder, which reads a prompt apart from what it writes; "
                "expected a causal (decoder-only) language model"
            )
        self._device = next(model.parameters()).device
        self._half = model.dtype in HALF
        self.texts = _texts(model)
        try:
            self.model = shadow(model)
            self._logits = [self._all_prefixes(text) for text in self.texts]
        except Exception as error:  # whatever a model's own code raises
            logger.debug("%s is tried with its own windows: %s", type(model).__name__, error)
            self.model = shadow(model, near=False)
            self._logits = self._read_all(type(model).__name__)
        self._check_itself(type(model).__name__)

    def difference(self, ours: Tensor, theirs: Tensor, tolerance: float = 1e-4, *, mostly: bool = False) -> str:
        """How logits differ beyond rounding, "" if they don't: (n, V) each; a constant added to a row is no matter.

        In single precision every row counts. In half precision, where a deep model rounds some rows off by several per
        cent, all together do, or most of them if `mostly`: rounding may send a token to another expert.
        """
        if ours.shape != theirs.shape:
            return f"{tuple(ours.shape)} logits instead of {tuple(theirs.shape)}"
        ours, theirs = (x.double() for x in (ours, theirs))
        finite = theirs.isfinite()
        if not torch.equal(ours.isfinite(), finite):
            return "logits differ in what is finite"
        ours, theirs = (x.masked_fill(~finite, 0.0) for x in (ours, theirs))
        ours, theirs = (x - x.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True) for x in (ours, theirs))
        if self._half and not mostly:
            ours, theirs = ours.flatten(), theirs.flatten()
        errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)
        error = float(errors.median() if self._half else errors.max())
        fine = error < (HALF_TOLERANCE if self._half else tolerance)
        return "" if fine else f"logits differ by {error:.1e} of their norm"

    def after(self, text: int, length: int) -> Tensor:
        """(V,) logits after the first `length` tokens of a text."""
        return self._logits[text][length - 1]

    def compare_decoding(self, next_logits: Callable[..., Tensor], tolerance: float = 1e-4) -> str:
        """Let a reader decode the texts side by side, called as `PrefixCache.next_logits` is; "" if all is right."""
        for asked in _script([len(text) for text in self.texts]):
            ids = np.zeros((len(asked), max(length for _, _, length in asked)), dtype=np.int64)
            for place, (_, text, length) in enumerate(asked):
                ids[place, :length] = self.texts[text][:length]
            ours = next_logits(ids, [length for *_, length in asked], [row for row, *_ in asked])
            theirs = torch.stack([self.after(text, length) for _, text, length in asked])
            if reason := self.difference(ours, theirs.to(ours.device), tolerance):
                return reason
        return ""

    def compare_texts(self, all_logits: Callable[[Tensor, Tensor], Tensor]) -> str:
        """Let a reader see the texts in a padded batch, (B, T) ids and mask → (N, V) logits; "" if all is right."""
        filler = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
        tensors = [torch.from_numpy(text) for text in self.texts]
        ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler).to(self._device)
        lengths = torch.tensor([len(text) for text in self.texts], device=self._device)
        mask = (torch.arange(ids.shape[1], device=self._device) < lengths[:, None]).long()
        return self.difference(all_logits(ids, mask), torch.cat(self._logits))

    def _own(self, tokens: np.ndarray) -> Tensor:
        return own_output(self.model, torch.from_numpy(tokens).unsqueeze(0).to(self._device))[0]

    def _all_prefixes(self, text: np.ndarray) -> Tensor:
        """(L, V): one forward for all prefixes on the same side of each switch, since the model does not look ahead."""
        spans = position_switches(self.model.config).spans(len(text))
        return torch.cat([self._own(text[:high])[low:] for low, high in spans])

    def _read_all(self, name: str) -> list[Tensor]:
        try:
            return [self._all_prefixes(text) for text in self.texts]
        except Exception as error:
            raise ValueError(
                f"model: {name} cannot read a text of a few tokens ({type(error).__name__}: {error}); "
                "expected a causal language model that needs token ids alone"
            ) from error

    def _check_itself(self, name: str) -> None:
        if any(_is_no_distribution(logits) for logits in self._logits):
            raise ValueError(
                f"model: {name} gives logits that are not finite for ordinary tokens; are its weights damaged?"
            )
        text, once = self.texts[3], self._logits[3]
        _, end = position_switches(self.model.config).spans(len(text))[0]
        if reason := self.difference(self._own(text[:end]), once[:end], ITSELF_TOLERANCE):
            raise ValueError(f"model: {name} does not repeat its own results in evaluation mode ({reason})")
        part = self._own(text[: max(1, end * 2 // 3)])
        if reason := self.difference(part, once[: len(part)], ITSELF_TOLERANCE, mostly=True):
            raise ValueError(
                f"model: {name} looks ahead: its results for a prefix change when text follows ({reason}); expected a "
                "causal language model (BERT and its kin need config.is_decoder=True)"
            )


def shadow(model: Any, *, near: bool = True) -> Any:
    """A model in evaluation mode with the same weights and a state of its own, whose switches are near if wanted.

    Where a model cannot be copied, it is the model itself.
    """
    shared = {id(part): part for part in (*model.parameters(), *model.buffers()) if _is_shared(part)}
    if any(hasattr(module, "layers_are_rescaled") for module in walk(model)):
        shared = {}  # RWKV divides its weights as it enters evaluation mode
    try:
        copied = copy.deepcopy(model, shared)
    except Exception as error:
        logger.debug("%s is tried as it is, since it cannot be copied: %s", type(model).__name__, error)
        return model
    copied.eval()
    if near:
        _bring_near(copied)
    return copied


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """One comparison at a time, without gradient, autocast and dropout, and torch's random numbers as they were."""
    device = next(model.parameters()).device
    plain = torch.autocast(device.type, enabled=False)
    random = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with _lock, random, plain, torch.inference_mode(False), torch.no_grad(), evaluating(model):
        yield


def _is_no_distribution(logits: Tensor) -> bool:
    """Whether no softmax can be taken of some row; -inf excludes a token."""
    return not bool((logits < torch.inf).all() and (logits > -torch.inf).any(dim=-1).all())


def _is_shared(part: Tensor) -> bool:
    return isinstance(part, nn.Parameter) or part.numel() > SHARED


def _bring_near(model: nn.Module) -> None:
    found: list[Any] = [module.config for module in walk(model) if hasattr(module, "config")]
    configs = {id(config): config for given in found for config in (given, given.get_text_config())}.values()
    for config in configs:
        for rope in [rope for rope in rope_settings(config) if switches_once(rope)]:
            rope[_ORIGINAL] = min(SWITCH, rope[_ORIGINAL])
            if getattr(config, _ORIGINAL, None):  # some have it twice
                setattr(config, _ORIGINAL, rope[_ORIGINAL])
    for holder in [*configs, *walk(model)]:
        for name, value in list(vars(holder).items()):
            if type(value) is int and value > WINDOW and _WINDOWS.search(name):
                setattr(holder, name, WINDOW)


def _texts(model: Any) -> list[np.ndarray]:
    """Ordinary tokens: no special ones, which may stand for images or padding."""
    config = model.config.get_text_config()
    special = {
        value
        for holder in (config, model.config)
        for name, value in vars(holder).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    usable = np.array([token for token in range(min(_rows(model), 1 << 12)) if token not in special] or [0])
    rng = np.random.default_rng(0)
    longest = min(LONGEST, text_limit(model) or LONGEST)
    texts = [rng.choice(usable, size=min(size, longest)) for size in (7, 4, 8, 12, 9)]
    texts[4][0] = texts[0][0]
    return texts


def _script(lengths: list[int]) -> list[list[tuple[int, int, int]]]:
    """Calls of (row, text, length): rows start, grow, rest, jump, shrink and change places."""
    calls = [
        [(0, 0, 5), (1, 1, 1), (2, 2, 3), (3, 3, 8)],
        [(0, 0, 6), (1, 1, 2), (2, 2, 4), (3, 3, 9)],
        [(0, 0, 7), (1, 1, 3), (2, 2, 5), (3, 3, 10)],
        [(0, 4, 4), (1, 1, 4), (2, 2, 6), (3, 3, 11)],
        [(3, 3, 12), (2, 2, 8)],
        [(0, 4, 6), (1, 4, 9), (2, 2, 8), (3, 3, 4)],
    ]
    return [[(row, text, min(length, lengths[text])) for row, text, length in call] for call in calls]


def _rows(model: Any) -> int:
    """Tokens that there are, by the configuration and by the embedding, which may have another size."""
    sizes = [int(model.config.get_text_config().vocab_size)]
    with suppress(NotImplementedError, AttributeError):  # parts of BART do not know theirs
        sizes.append(model.get_input_embeddings().weight.shape[0])
    return min(sizes)
