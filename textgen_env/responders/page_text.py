"""What a document of the web reads like: its text, with links numbered. Layout is the library inscriptis' business.

Getting documents is `http_client.py`'s, showing a page part by part `browser.py`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .http_client import Document, Refused, joined

MISSING = "a browser needs inscriptis ({}): pip install 'textgen_env[tools]'"
PLAIN_KINDS = ("application/json", "application/xml")  # and text/*
HTML_KINDS = ("text/html", "application/xhtml+xml")
MOST_LINKS = 1_000
MOST_CHARACTERS = 50_000
_CHARSETS = re.compile(
    r"utf-?(8|16(le|be)?)|us-ascii|ascii|(iso-?8859|windows|cp)-?\d{1,4}|latin-?1|koi8-[ru]"
    r"|gb18030|gbk|gb2312|big5|shift_jis|euc-(jp|kr)"
)
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w-]{1,20})""", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all but tab and line feed
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """A link of a page: what it reads like, and where it leads."""

    text: str
    address: str


@dataclass(frozen=True)
class Page:
    """A document as it is read.

    Attributes:
        address: where it is.
        title: of one line; may be empty.
        text: without control characters but line feeds; at most `MOST_CHARACTERS`.
        links: in the order of the text, at most `MOST_LINKS`; the first one has the number 1.
    """

    address: str
    title: str
    text: str
    links: tuple[Link, ...] = field(default=())


def read_page(document: Document, mark: str = "[{number}] ") -> Page:
    """The text of a document.

    Args:
        document: HTML, or plain text.
        mark: is put before each link; "{number}" stands for its number.

    Raises:
        Refused: a document of another kind.
    """
    text = _decoded(document)
    if document.kind in HTML_KINDS:
        return _read_html(document.address, text, mark)
    if document.kind.startswith("text/") or document.kind in PLAIN_KINDS:
        return Page(document.address, "", _tidy(text))
    raise Refused(f"this is {document.kind[:80]}, not a page of text")


def _decoded(document: Document) -> str:
    """The characters, whatever the bytes are; what is no character becomes U+FFFD."""
    declared = _META_CHARSET.search(document.content[:2_048]) if document.kind in HTML_KINDS else None
    charset = document.charset or (declared[1].decode("ascii", "replace").lower() if declared else "")
    known = _CHARSETS.fullmatch(charset)  # of all codecs: some are none of texts, or slow
    try:
        text = document.content.decode(charset if known else "utf-8", errors="replace")
    except LookupError:
        text = document.content.decode("utf-8", errors="replace")
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _read_html(address: str, html: str, mark: str) -> Page:
    from lxml import etree  # comes with inscriptis
    from lxml.html import HTMLParser, document_fromstring

    try:
        parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
        tree = document_fromstring(html.encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:  # nothing in it
        return Page(address, "", "")
    title = " ".join((tree.findtext(".//title") or "").split())[:200]
    _make_plain(tree)
    links = _number_links(tree, _base(tree, address), mark)
    return Page(address, _CONTROLS.sub("", title), _tidy(lay_out(tree)), tuple(links))


def _make_plain(tree: Any) -> None:
    """Take away what is not to be seen, and layout by which a small page could become a huge text.

    Cells of a table are written one after the other: in columns, one long cell would widen every row.
    """
    hidden = [e for e in tree.iter() if e.get("hidden") is not None or _HIDDEN.search(e.get("style", ""))]
    for element in hidden:
        if element.getparent() is not None:
            element.drop_tree()
    for element in tree.iter("table", "tr", "td", "th", "caption"):
        cell = element.tag in ("td", "th")
        element.tag = "span" if cell else "div"
        if cell and element.getnext() is not None:
            element.tail = f" | {element.tail or ''}"
    for element in tree.iter():
        kept = {name: element.get(name) for name in ("href", "start") if name in element.attrib}
        element.attrib.clear()
        element.attrib.update(kept)


def _base(tree: Any, address: str) -> str:
    """What links are relative to."""
    base = tree.find(".//base")
    return joined(address, base.get("href", "")) if base is not None else address


def _number_links(tree: Any, base: str, mark: str) -> list[Link]:
    """The links of a page, each marked in its text; those that lead to no page are left as text."""
    links: list[Link] = []
    for element in tree.iter("a"):
        if (reference := element.get("href")) is None or len(links) == MOST_LINKS:
            continue
        try:
            address = joined(base, reference.strip())
        except Refused:
            continue
        if not address.startswith(("http://", "https://")):
            continue
        links.append(Link(" ".join(element.text_content().split())[:200], address))
        element.text = mark.replace("{number}", str(len(links))) + (element.text or "")
    return links


def lay_out(tree: Any) -> str:
    """The text of a tree of lxml's.

    Raises:
        ImportError: inscriptis is not installed.
    """
    try:
        from inscriptis import Inscriptis  # optional
        from inscriptis.css_profiles import CSS_PROFILES
        from inscriptis.model.config import ParserConfig
    except ImportError as error:
        raise ImportError(MISSING.format(error), name="inscriptis") from error
    config = ParserConfig(css=CSS_PROFILES["strict"])  # its default indents every `div`
    return "" if tree is None else Inscriptis(tree, config).get_text()


def _tidy(text: str) -> str:
    """Without control characters, white space at the ends of lines, and more than one empty line at a time."""
    lines = [line.rstrip() for line in _CONTROLS.sub("", text).expandtabs(4).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")[:MOST_CHARACTERS]
