"""Where the packaged and the fetched models and prompt sets lie on disk.

Here: names, folders and look-up, with the standard library alone, so that asking for a path costs nothing.
Not here: downloading (``fetch.py``), the command line (``__main__.py``), and loading a model or a prompt set
(``lm/language_model.py``, ``prompts.py``).

An asset is *packaged* (it comes with the distribution) or *fetched* (``python -m textgen_env.assets fetch NAME``
puts it into :func:`cache_dir`). Both are asked for by the same name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType

__all__ = ["MODELS", "PROMPT_SETS", "Asset", "cache_dir", "model_path", "prompt_path", "resolve_model"]

# transformers reads true folders only, so the distribution must be installed unpacked, which is what pip does.
_PACKAGED_ROOT = Path(str(resources.files(__name__)))


@dataclass(frozen=True, slots=True)
class Asset:
    """One model or prompt set that has a name.

    Attributes:
        name: What users write.
        about: One line that says what it is.
        packaged_at: Path below this package, or ``None`` for an asset that is fetched.
        fetched_at: Path below :func:`cache_dir` for an asset that is fetched; unused for a packaged one.
    """

    name: str
    about: str
    packaged_at: str | None = None
    fetched_at: str = ""

    @property
    def path(self) -> Path:
        """Folder of a model, or JSONL file of a prompt set. It need not exist yet."""
        return cache_dir() / self.fetched_at if self.packaged_at is None else _PACKAGED_ROOT / self.packaged_at


def _named(*assets: Asset) -> Mapping[str, Asset]:
    return MappingProxyType({asset.name: asset for asset in assets})


MODELS: Mapping[str, Asset] = _named(
    Asset("tiny", "causal LM of a few million parameters, for tests and examples", packaged_at="models/tiny"),
    Asset("tiny-sentiment", "sentiment reward model that goes with tiny", packaged_at="models/tiny-sentiment"),
    Asset("smollm2-135m", "causal LM SmolLM2-135M-Instruct", fetched_at="smollm2-135m"),
    Asset("imdb-sentiment", "spaCy text classifier of film reviews", fetched_at="imdb-sentiment"),
    Asset("minilm", "sentence encoder all-MiniLM-L6-v2", fetched_at="minilm"),
)
"""Every model with a name: directories that the matching library loads."""

PROMPT_SETS: Mapping[str, Asset] = _named(
    Asset("reviews", "openings of reviews", packaged_at="prompts/reviews.jsonl"),
    Asset("summaries", "documents with summaries", packaged_at="prompts/summaries.jsonl"),
    Asset("translations", "sentences with translations", packaged_at="prompts/translations.jsonl"),
    Asset("descriptions", "inputs with several descriptions each", packaged_at="prompts/descriptions.jsonl"),
    Asset("calculations", "questions for a calculator, as messages", packaged_at="prompts/calculations.jsonl"),
    Asset("look-ups", "questions about an entry to look up, as messages", packaged_at="prompts/look-ups.jsonl"),
    Asset("talks", "what a user says and then asks, as messages", packaged_at="prompts/talks.jsonl"),
    Asset("imdb-reviews", "openings of 200 labelled film reviews", fetched_at="imdb-reviews/prompts.jsonl"),
    Asset("reviews-food", "openings of 5,000 food reviews", fetched_at="reviews-food/prompts.jsonl"),
    Asset("bible-en-es", "7,900 parallel verses, Spanish and English", fetched_at="bible-en-es/prompts.jsonl"),
    Asset("xsum", "1,000 news articles with one-line summaries", fetched_at="xsum/prompts.jsonl"),
    Asset("factual-pairs", "371 sentences with a right and a wrong summary", fetched_at="factual-pairs/prompts.jsonl"),
)
"""Every prompt set with a name: files with one ``{"prompt": …, "references": […], …}`` a line."""


DOCUMENTS: Mapping[str, Asset] = _named(
    Asset(
        "entries",
        "what there is to know about the people and places of look-ups",
        packaged_at="documents/entries.jsonl",
    )
)
"""Every set of documents with a name: files with one ``{"title": …, "text": …}`` a line."""


def cache_dir() -> Path:
    """Folder of the fetched assets; it need not exist yet.

    ``TEXTGEN_ENV_CACHE`` if set, else ``textgen_env`` below ``XDG_CACHE_HOME``, else ``~/.cache/textgen_env``.
    As the XDG base directory specification asks, a relative ``XDG_CACHE_HOME`` is ignored.
    """
    if own := os.environ.get("TEXTGEN_ENV_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "textgen_env"


def model_path(name: str) -> Path:
    """Folder of the model called ``name``.

    Raises:
        ValueError: No model has that name.
        FileNotFoundError: The model is one to be fetched, and has not been; the message names the command.
    """
    return _existing_path(name, MODELS, "model")


def prompt_path(name: str) -> Path:
    """JSONL file of the prompt set called ``name``; raises as :func:`model_path` does."""
    return _existing_path(name, PROMPT_SETS, "prompt set")


def document_path(name: str) -> Path:
    """JSONL file of the set of documents called ``name``; raises as :func:`model_path` does."""
    return _existing_path(name, DOCUMENTS, "set of documents")


def resolve_model(source: str | Path) -> str | Path:
    """Folder of a named model; any other ``source`` (a path, a hub id) as it is.

    A string that is a model's name means that model, even where a folder of the same name lies in the working
    directory: write ``"./tiny"`` or ``Path("tiny")`` for the folder.

    Raises:
        FileNotFoundError: As :func:`model_path`.
    """
    return model_path(source) if isinstance(source, str) and source in MODELS else source


def _existing_path(name: str, known: Mapping[str, Asset], kind: str) -> Path:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; expected one of {', '.join(sorted(known))}")
    asset = known[name]
    if not asset.path.exists():
        if asset.packaged_at is None:
            remedy = f"fetch it once with: python -m textgen_env.assets fetch {name}"
        else:
            remedy = "the installation is incomplete; reinstall textgen_env"
        raise FileNotFoundError(f"{kind} {name!r} is not at {asset.path}; {remedy}")
    return asset.path
