"""A real server on loopback for the browser's tests: friendly pages by path, and sockets that do as a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


def html(body: str | bytes, **headers: str) -> Answer:
    """200 with a document of HTML, or of what the headers say."""
    content = body.encode() if isinstance(body, str) else body

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Type": "text/html", "Content-Length": str(len(content))} | named).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def status(number: int, **headers: str) -> Answer:
    """A status without a document."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(number, "<eos> of the server's own words")
        for name, value in ({"Content-Length": "0"} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


class Web(ThreadingHTTPServer):
    """Serves answers by path; what was asked is in `asked`."""

    daemon_threads = True

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers, self.asked, self.headers = dict(answers), list[str](), list[dict[str, str]]()
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Readers who go away early are what is tested."""

    def at(self, path: str) -> str:
        return f"http://{self.host}{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        web: Any = self.server
        web.asked.append(self.path)
        web.headers.append(dict(self.headers))
        web.answers.get(self.path.partition("?")[0], status(404))(self)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(answers: Mapping[str, Answer]) -> Iterator[Web]:
    web = Web(answers)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.shutdown()
        web.server_close()


@contextmanager
def raw(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """ "host:port" of a socket that speaks as it likes after it was asked, and goes away when the test is over."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connected, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[connected], daemon=True).start()

        def answer(connected: socket.socket) -> None:
            with connected:
                try:
                    connected.recv(65_536)
                    speak(connected)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
