"""From a folder, a GGUF file or a hub id to the parts of a model: what is read, what is refused, one at a time.

What lives here: where a model lies, the files that may be read (safetensors and GGUF, never pickles, and no code that
comes with a model), and the proof that weights are whole. What does not: whether a model is of the right kind, which
its configuration tells (`model_kinds.py`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, GgufConfig
from transformers.utils import cached_file

from textgen_env.assets import MODELS, resolve_model
from textgen_env.lm.backbone import without_progress_bars

LOADING = threading.RLock()
"""Held by whatever loads: transformers changes global state of torch while it builds a model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.\w+$|(position|token_type)_ids$")


class Location(NamedTuple):
    """Where a model is.

    Attributes:
        folder: a directory, or a hub id.
        gguf: name of the GGUF file in it, or None.
        source: what the user wrote, for messages.
        role: what the user was asked for, for messages: "model", "reference" …
    """

    folder: str
    gguf: str | None
    source: str
    role: str

    @property
    def is_local(self) -> bool:
        """Whether it is a directory on this machine."""
        return Path(self.folder).is_dir()


def open_model(source: Any, role: str, live: str, check: Callable[[Any, str, str], None]) -> tuple[Location, Any, Any]:
    """Find a model and check all that can be known of it without reading weights.

    Args:
        source: a name, a directory, a GGUF file or a hub id.
        role: the argument's name, for messages.
        live: how a model that lives in memory is handed over, for messages.
        check: `check(config, role, source)` raises where the model is of the wrong kind.

    Returns:
        Where it is, its configuration and its tokenizer.

    Raises:
        TypeError: `source` is neither text nor path.
        ValueError: the wrong kind, weights in a format that can run code, a damaged file, or an adapter by itself.
        FileNotFoundError: no such model, no tokenizer, or no weights.
    """
    place = _locate(source, role, live)
    path, local = Path(place.folder), place.is_local and not place.gguf
    has_tokenizer = not local or any((path / name).is_file() for name in _TOKENIZERS)
    tokenizer = from_pretrained(AutoTokenizer, "tokenizer", place) if has_tokenizer else None
    config = from_pretrained(AutoConfig, "configuration", place)
    check(config, role, place.source)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{role}: {place.folder!r} has no tokenizer; save one into it with "
            f"tokenizer.save_pretrained({place.folder!r})"
        )
    for file in _weight_files(path, place) if local else ():
        _check_safetensors(file, place)
    return place, config, tokenizer


def _locate(source: Any, role: str, live: str) -> Location:
    """Find a model; see `open_model`."""
    if not isinstance(source, (str, os.PathLike)):
        kind = f"a live {type(source).__name__}" if hasattr(source, "parameters") else type(source).__name__
        hint = f"; write {live}" if hasattr(source, "parameters") or hasattr(source, "get_vocab") else ""
        raise TypeError(f"{role}: expected a name, a directory, a .gguf file or a hub id, got {kind}{hint}")
    if not str(source).strip():
        raise ValueError(f"{role}: expected a name, a directory, a .gguf file or a hub id, got {str(source)!r}")
    path = Path(resolve_model(source if isinstance(source, str) else Path(source))).expanduser()
    place = Location(str(path), None, str(source), role)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"{role}: no such GGUF file: {str(source)!r}")
        return place._replace(folder=str(path.parent), gguf=path.name)
    if path.is_dir():
        _check_directory(path, place, live)
    else:
        _check_hub_id(source, path, place)
    return place


def _check_hub_id(source: str | os.PathLike[str], path: Path, place: Location) -> None:
    """Complain about what is no hub id either."""
    role, text = place.role, place.source
    if path.is_file():
        raise ValueError(f"{role}: {text!r} is a file; expected a directory, a .gguf file, a name or a hub id")
    if not isinstance(source, str) or path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"{role}: no such directory: {text!r}")
    if "/" not in text:
        known = ", ".join(sorted(MODELS))
        raise FileNotFoundError(f"{role}: unknown name {text!r}; known: {known}; else a directory or owner/name")


def _check_directory(path: Path, place: Location, live: str) -> None:
    """Complain about what is no model before a library does so less clearly, or not at all."""
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{place.role}: {str(path)!r} holds a PEFT adapter; merge it into its base model once "
            f"(merge_and_unload, then save_pretrained), or load it with peft and write {live}"
        )
    if not (path / "config.json").is_file():
        hint = f"; did you mean {next(path.glob('*.gguf'))}?" if any(path.glob("*.gguf")) else ""
        raise FileNotFoundError(f"{place.role}: {str(path)!r} has no config.json, so it is no model directory{hint}")


def _weight_files(path: Path, place: Location) -> list[Path]:
    """The safetensors files of a directory, in the order in which transformers looks for them."""
    named = _read_json(path / "config.json", place).get("transformers_weights")
    for name in [str(named)] if named else [WEIGHTS, INDEX]:
        if (path / name).is_file():
            return _shards(path / name, place) if name.endswith(".json") else _plain_files([name], path, place)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{place.role}: {str(path)!r} holds pickled weights ({pickles[0]}), which can run code when they are read. "
            f'If you trust them, convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    raise FileNotFoundError(f"{place.role}: {str(path)!r} has no weights ({named or WEIGHTS})")


def _shards(index: Path, place: Location) -> list[Path]:
    """The files that an index names: none but safetensors beside it."""
    named = _read_json(index, place).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{place.role}: {str(index)!r} has no weight_map, so it is no index of safetensors files")
    return _plain_files(sorted({str(name) for name in named.values()}), index.parent, place)


def _plain_files(names: Iterable[str], folder: Path, place: Location) -> list[Path]:
    """These files of a folder.

    Raises:
        ValueError: a name that leads out of the folder, or that is no safetensors file.
        FileNotFoundError: a file that is not there (of a directory; a hub id brings its files later).
    """
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{place.role}: {place.source!r} names the weights {name!r}; expected plain names of *.safetensors "
                "files in the same folder"
            )
        if place.is_local and not (folder / name).is_file():
            raise FileNotFoundError(f"{place.role}: {place.source!r} lacks {name!r}, which its index names")
    return [folder / name for name in names]


def _read_json(file: Path, place: Location) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON, or bad UTF-8
        raise ValueError(f"{place.role}: {str(file)!r} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place.role}: {str(file)!r} must hold a JSON object, got {type(found).__name__}")
    return found


def _check_safetensors(file: Path, place: Location) -> None:
    """Read the header, which knows how long the file is."""
    try:
        with safe_open(str(file), framework="pt"):
            pass
    except Exception as error:  # SafetensorError and OSError, neither of which names the file
        raise ValueError(
            f"{place.role}: {str(file)!r} is no whole safetensors file ({error}); download or save it again"
        ) from error


# --- reading ----------------------------------------------------------------------------------------------------------


def from_pretrained(auto: Any, what: str, place: Location, **kwargs: Any) -> Any:
    """Call `auto.from_pretrained`; errors say what could not be loaded, and of which model.

    Raises:
        FileNotFoundError: it could not be loaded, for whatever reason.
    """
    if place.gguf:
        kwargs["gguf_file"] = place.gguf
    try:
        with LOADING, without_progress_bars():
            return auto.from_pretrained(place.folder, trust_remote_code=False, **kwargs)
    except Exception as error:  # anything from OSError to KeyError, and seldom with the name of the source
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 400 else f"{reason[:400]}…"
        raise FileNotFoundError(
            f"{place.role}: cannot load the {what} of {place.source!r} ({type(error).__name__}: {reason})"
        ) from error


def load_weights(auto: Any, place: Location, *, dtype: torch.dtype, strict: bool) -> Any:
    """Load a model, and see that every number in it comes from its files.

    Args:
        auto: the class of transformers that knows which model it is.
        place: from `open_model`.
        dtype: of the weights.
        strict: refuse weights that do not fit; otherwise what is missing is random and a table of it is logged.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape (if strict), or a weight is NaN or infinite.
        FileNotFoundError: the weights could not be read.
    """
    kwargs: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if place.gguf:  # plain weights, which can be trained and saved, not packed blocks
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    else:
        kwargs["use_safetensors"] = True
        if not place.is_local:
            _check_hub_files(place)
    with LOADING, _without_report(strict):
        model, info = from_pretrained(auto, "weights", place, **kwargs)
    if strict:
        _check_complete(model, info, place)
    _check_finite(model, place)
    return model


def _check_hub_files(place: Location) -> None:
    """What `open_model` does for directories, for a hub id: no index that leads elsewhere, no adapter."""
    for name in ("adapter_config.json", INDEX):
        missing_is_fine = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        file = cached_file(place.folder, name, **missing_is_fine)
        if file and name == INDEX:
            _shards(Path(file), place)
        elif file:
            raise ValueError(f"{place.role}: {place.source!r} holds a PEFT adapter; merge it into its base model once")


@contextmanager
def _without_report(strict: bool) -> Iterator[None]:
    """Silence the table of missing tensors that transformers logs, where an error says the same."""
    logger = logging.getLogger("transformers.modeling_utils")

    def passes(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    if strict:
        logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _check_complete(model: Any, info: dict[str, Any], place: Location) -> None:
    """Refuse weights that do not fit the model; what old versions saved beside the weights may be there."""
    headless = model is model.base_model  # a body alone: heads and poolers of its checkpoint are not used
    missing = [key for key in sorted(info["missing_keys"]) if not (headless and key.startswith("pooler."))]
    unexpected = [
        key
        for key in sorted(info["unexpected_keys"])
        if not _OLD_BUFFERS.search(key) and not (headless and _belongs_to_head(key, model))
    ]
    misshapen = [f"{key} {(*has,)} for {(*needs,)}" for key, has, needs in sorted(info["mismatched_keys"])]
    faults = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    if any(names for _, names in faults):
        found = "; ".join(f"{len(names)} {fault} ({_few(names)})" for fault, names in faults if names)
        raise ValueError(
            f"{place.role}: the tensors of {place.source!r} do not fit {type(model).__name__}: {found}. Weights and "
            "config.json must be of one model; strict=False takes them nonetheless, with random numbers for what "
            "is missing"
        )


def _belongs_to_head(key: str, body: Any) -> bool:
    first = key.partition(".")[0]
    return first != body.base_model_prefix and first not in dict(body.named_children())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _check_finite(model: Any, place: Location) -> None:
    """One pass over the weights: NaN and infinity show in the least and the greatest."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in DTYPES.values() and parameter.numel():
            ends = torch.stack(torch.aminmax(parameter.detach())).float()
            if not bool(torch.isfinite(ends).all()):
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise ValueError(f"{place.role}: {name} of {place.source!r} holds NaN or infinity as {dtype}")


def as_device(device: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: it is unknown, or not on this machine.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: {device!r} is unknown or not present on this machine") from error
    return found


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """One of the types in which models run.

    Raises:
        ValueError: it is another one.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    assert found is not None
    return found
