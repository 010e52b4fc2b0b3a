"""Search among texts by BM25: the tool "search". The index is that of the library bm25s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textgen_env.assets import DOCUMENTS, document_path
from textgen_env.notices import shown
from textgen_env.prompt_files import read_rows
from textgen_env.scorers.words import ptb_tokenize

_MISSING = "the tool 'search' needs bm25s ({}): pip install 'textgen_env[tools]'"


class Search:
    """The tool "search": the passages that fit a query best, by BM25 (Robertson & Zaragoza 2009).

    Args:
        documents: texts, or mappings with a "text" and perhaps a "title"; or a file with one of these per line as JSON,
            or the name of a packaged set.
        k: passages at most; those without a word of the query are left out.
        template: how a passage is written; "{text}", "{title}" and "{number}" (from 1, that of the document, so that it
            can be cited) stand for what it has.

    Raises:
        ImportError: bm25s is not installed.
        TypeError, ValueError, OSError: documents that are none, k or template out of range; names them.
    """

    description = "Finds the passages that fit a query best."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "words to look for"}},
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(self, documents: Sequence[Any] | str | Path, k: int = 3, template: str = "[{number}] {text}") -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"search: k={shown(k)} must be a whole number ≥ 1")
        if not isinstance(template, str) or "{text}" not in template:
            raise ValueError(f"search: template={shown(template)} must be a text with '{{text}}' in it")
        try:
            import bm25s  # optional
        except ImportError as error:
            raise ImportError(_MISSING.format(error), name="bm25s") from error
        self.documents = _read(documents)
        self.k, self.template = min(k, len(self.documents)), template
        words = [ptb_tokenize(f"{title} {text}") for title, text in self.documents]
        if not any(words):
            raise ValueError("search: the documents have no words to look for")
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)
        self._known = frozenset(word for text in words for word in text)

    def __call__(self, query: str) -> str:
        return "\n".join(map(self._passage, self.found(query))) or "nothing found"

    def found(self, query: str) -> list[int]:
        """Which documents fit a query, the best one first, by their index; those with a word of it, at most k."""
        words = [word for word in ptb_tokenize(query) if word in self._known]
        if not words:
            return []
        scores = self._index.get_scores(words)
        best = np.argsort(-scores, kind="stable")[: self.k]  # of equal ones the first
        return [int(number) for number in best if scores[number] > 0]

    def _passage(self, number: int) -> str:
        title, text = self.documents[number]
        parts = {"{number}": str(number + 1), "{title}": title, "{text}": text}
        passage = self.template
        for mark, part in parts.items():
            passage = passage.replace(mark, part)
        return passage


def _read(documents: Any) -> list[tuple[str, str]]:
    """(title, text) of each document."""
    if isinstance(documents, (str, Path)):
        path = document_path(documents) if isinstance(documents, str) and documents in DOCUMENTS else Path(documents)
        rows = list(read_rows(path))
    elif isinstance(documents, Sequence):
        rows = [(f"documents[{number}]", document) for number, document in enumerate(documents)]
    else:
        raise TypeError(f"search: documents={shown(documents)} must be a list of texts or a file of them")
    if not rows:
        raise ValueError(f"search: documents={shown(documents)} holds none")
    return [_document(row, where) for where, row in rows]


def _document(row: Any, where: str) -> tuple[str, str]:
    title, text = ("", row) if isinstance(row, str) else ("", None)
    if isinstance(row, Mapping):
        title, text = row.get("title", ""), row.get("text")
    if not isinstance(text, str) or not isinstance(title, str):
        raise ValueError(f'search: {where} must be a text, or have a "text" and perhaps a "title", got {shown(row)}')
    return title, text
