"""A small site of documents, served by this process to itself, and the browser on it: the responder "site".

A page per document, a page of results per query, and a start page that says where to search. The documents and their
index are `search.py`'s, browsing is `browser.py`'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from html import escape
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .browser import Browser
from .search import Search

HOST = "site"  # what addresses call it, whatever its port is
_SERVED: dict[tuple[int, str, int], Server] = {}  # by process, documents and results
_LOCK = threading.Lock()


class Pages:
    """What the site says at each address.

    Args:
        documents: as of `Search`; a document without a title is called by its number.
        results: of a search at most, in the order of the documents.
    """

    def __init__(self, documents: Sequence[Any] | str | Path, results: int) -> None:
        self.search = Search(documents, k=results)
        self.titles = [title or f"document {n + 1}" for n, (title, _) in enumerate(self.search.documents)]

    def page(self, path: str) -> str | None:
        """The HTML at an address without its host; None where there is none."""
        parts = urlsplit(path)
        if parts.path == "/":
            return _html("search", "<form action='/search'><input name='query'></form>")
        if parts.path == "/search":
            return _html("results", self._results(" ".join(parse_qs(parts.query).get("query", []))))
        folder, _, number = parts.path[1:].partition("/")
        if folder == "document" and number.isascii() and number.isdigit() and 1 <= int(number) <= len(self.titles):
            title, (_, text) = self.titles[int(number) - 1], self.search.documents[int(number) - 1]
            return _html(title, f"<p>{escape(text)}</p>")
        return None

    def _results(self, query: str) -> str:
        found = sorted(self.search.found(query))
        links = [f"<a href='/document/{n + 1}'>{escape(self.titles[n])}</a>" for n in found]
        return f"<p>found: {' and '.join(links) or 'nothing'}</p>"


def _html(title: str, body: str) -> str:
    head = f"<head><meta charset='utf-8'><title>{escape(title)}</title></head>"
    return f"<!doctype html><html>{head}<body>{body}</body></html>"


class _Listening(ThreadingTCPServer):  # `http.server`'s own asks for the name of the host, which can take long
    daemon_threads = True
    request_queue_size = 128  # of the default, 5, all slots at once leave some to knock again a second later


class Server:
    """Serves pages on a port of the loopback interface that was free, in threads of this process, until it ends.

    Args:
        pages: to serve.
    """

    def __init__(self, pages: Pages) -> None:
        self._server = _Listening(("127.0.0.1", 0), _handler(pages))
        threading.Thread(target=self._server.serve_forever, daemon=True, name="site").start()

    @property
    def place(self) -> str:
        """ "address:port"."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


def _handler(pages: Pages) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # named so by the library
            page = pages.page(self.path)
            content = (_html("not found", "") if page is None else page).encode()
            self.send_response(404 if page is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def served(documents: Sequence[Any] | str | Path, results: int) -> Server:
    """The server of documents in this process, which is started if there is none: a forked one has no threads."""
    with _LOCK:
        key = os.getpid(), repr(documents), results
        if key not in _SERVED:
            _SERVED[key] = Server(Pages(documents, results))
        return _SERVED[key]


class Site(Browser):
    """A browser on a site of documents that this process serves: start page, search, and a page per document.

    Addresses begin with "http://site/", whatever the port is, so that an episode can be saved here and go on elsewhere.

    Args:
        documents: a list, a file, or a packaged set's name, as of `Search`.
        results: of a search at most, in the order of the documents.
        browsing: as of `Browser`, but for `start`, `hosts` and `search`.

    Raises:
        TypeError, ValueError, ImportError, OSError: as of `Search` and `Browser`.
    """

    def __init__(self, documents: Sequence[Any] | str | Path, results: int = 3, **browsing: Any) -> None:
        self.documents, self.results = documents, results
        place = served(documents, results).place
        super().__init__(
            f"http://{HOST}/", hosts={HOST: place}, search=f"http://{HOST}/search?query={{query}}", **browsing
        )

    def __getstate__(self) -> Mapping[str, Any]:
        """Copies and pickles hold the documents; where they wake up, the site is served."""
        return self.__dict__

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.client.connect_to(HOST, served(self.documents, self.results).place)
