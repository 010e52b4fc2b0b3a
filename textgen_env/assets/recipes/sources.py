"""Reads the real texts: food reviews of the R package modeldata (MIT).

It downloads nothing: the path of the installed or unpacked Debian package ``r-cran-modeldata`` is an argument. Needs
``rdata``.
"""

from __future__ import annotations

import html
import lzma
import random
import re
import warnings
from pathlib import Path
from typing import Any

import rdata

# R's lazy-load databases (R Internals, "lazy loading"; lazyload.R): an index of (offset, length) per object, and blocks
# of a 4-byte size, a type letter ("Z" = raw LZMA2 at preset 6 extreme) and the packed serialisation.
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6 | lzma.PRESET_EXTREME}]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def _read_r(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It says that the type was guessed, and guesses rightly.
        return rdata.conversion.convert(rdata.parser.parse_data(data))


def read_food_reviews(modeldata: Path, split: str) -> list[tuple[str, bool]]:
    """Reads (review, whether it has five stars).

    Args:
        modeldata: folder of the R package modeldata (the one that contains ``data/Rdata.rdb``).
        split: "training" (4,000 reviews) or "testing" (1,000).

    Raises:
        ValueError: the block is packed in another way than this reader knows.
    """
    index = _read_r((modeldata / "data" / "Rdata.rdx").read_bytes())["variables"]
    offset, length = (int(number) for number in index[f"{split}_data"])
    block = (modeldata / "data" / "Rdata.rdb").read_bytes()[offset : offset + length]
    if block[4:5] != b"Z":
        raise ValueError(f"modeldata: {split}_data is packed as {block[4:5]!r}, this reader knows b'Z' (LZMA) alone")
    frame = _read_r(lzma.decompress(block[5:], format=lzma.FORMAT_RAW, filters=_LZMA))
    return [(clean(text), score == "great") for text, score in zip(frame["review"], frame["score"], strict=True)]


def clean(text: str) -> str:
    """Plain text on one line: no tags, entities, links or runs of spaces and dots."""
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    text = re.sub(r"https?://\S+", "", text)
    text = re.sub(r"\.{2,}", ". ", text)
    return re.sub(r"\s+", " ", text).strip()


def short_reviews(reviews: list[tuple[str, bool]], *, max_words: int = 24) -> list[tuple[str, bool]]:
    """The first one or two sentences of each review, and its last one, where they are short and plain."""
    chosen = []
    for text, great in reviews:
        sentences = [s for s in _SENTENCE_END.split(text) if s]
        for part in {" ".join(sentences[:2]), sentences[0], sentences[-1]} if sentences else ():
            words = part.split()
            plain = part.isascii() and part[-1] in ".!" and part[0].isupper() and not part.isupper() and '"' not in part
            if 4 <= len(words) <= max_words and plain and not re.search(r"\d{3}|[()\[\]*/]", part):
                chosen.append((part, great))
    return sorted(set(chosen))


class RealReviews:
    """Short parts of the real reviews.

    Args:
        modeldata: folder of the R package modeldata.

    Attributes:
        held_out: (text, whether its review has five stars) of the testing split.
    """

    def __init__(self, modeldata: Path) -> None:
        training, self.held_out = (
            short_reviews(read_food_reviews(modeldata, split)) for split in ("training", "testing")
        )
        self._pools = {great: [text for text, label in training if label == great] for great in (False, True)}

    def draw(self, five_stars: bool, rng: random.Random) -> str:
        """Draws a short part of a training review with five stars, or with fewer."""
        return rng.choice(self._pools[five_stars])
