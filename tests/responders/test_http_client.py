"""The client against real servers: whom it asks, and what it takes from them."""

from __future__ import annotations

import gzip
import itertools
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from web import Web, html, raw, serving, status

from textgen_env.responders import Unavailable
from textgen_env.responders.http_client import Client, Document, Refused

BOMB = gzip.compress(bytes(200_000_000), 9)  # 200 kB


def flood(handler: Any) -> None:
    """100 MB, unless the reader has had enough."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x" * 1_000_000)
        handler.server.sent += 1


@pytest.fixture
def web() -> Iterator[Web]:
    answers = {
        "/": html("<p>home", Content_Type="Text/HTML; charset=UTF-8"),
        "/kind": html("x", Content_Type="image/png"),
        "/flood": flood,
        "/gzip": html(gzip.compress(b"small"), Content_Encoding="gzip"),
        "/deflate": html(zlib.compress(b"small"), Content_Encoding="deflate"),
        "/bomb": html(BOMB, Content_Encoding="gzip"),
        "/no-gzip": html("plain", Content_Encoding="gzip"),
        "/brotli": html("plain", Content_Encoding="br"),
        "/loop": status(302, Location="/loop"),
        "/far": status(301, Location="http://example.org/"),
        "/file": status(301, Location="file:///etc/passwd"),
        "/broken": status(301, Location="http://[oops/"),
        "/nowhere": status(304),
        "/odd": status(299),
        "/forbidden": status(403),
        "/teapot": status(499),
        "/busy": status(429),
        "/down": status(503),
    }
    answers |= {f"/{n}": status(307, Location=str(n - 1) if n > 1 else "/?a=b c") for n in range(1, 8)}
    with serving(answers) as web:
        web.sent = 0  # type: ignore[attr-defined]
        yield web


def client(host: str, **more: Any) -> Client:
    return Client({host: None}, **{"seconds": 5.0, "most_bytes": 1_000, "redirects": 3} | more)


def test_a_document(web: Web) -> None:
    found = client(web.host).get(web.at("/?q=ä b#part"))
    assert found == Document(web.at("/?q=%C3%A4%20b"), "text/html", "utf-8", b"<p>home")
    assert web.asked == ["/?q=%C3%A4%20b"]
    assert web.headers[0]["Host"] == web.host
    assert set(web.headers[0]) == {"Host", "Accept", "Accept-Encoding"}  # nothing of who asks
    assert client(web.host).get(web.at("/kind")).kind == "image/png"
    assert client(web.host).get(web.at("/odd")).content == b""


def test_redirects(web: Web) -> None:
    assert client(web.host).get(web.at("/3")).address == web.at("/?a=b%20c")
    assert web.asked == ["/3", "/2", "/1", "/?a=b%20c"]
    for path in ("/4", "/loop"):
        with pytest.raises(Refused, match="more than 3 redirects"):
            client(web.host).get(web.at(path))
    with pytest.raises(Refused, match="more than 0 redirects"):
        client(web.host, redirects=0).get(web.at("/1"))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/far", "example.org:80 is not among the hosts"),
        ("/file", "'file:///etc/passwd' is no address of a web page"),
        ("/broken", "is no address"),
        ("/missing", "^404 Not Found$"),
        ("/forbidden", "^403 Forbidden$"),
        ("/teapot", "^499$"),
        ("/nowhere", "^304 Not Modified$"),
        ("/no-gzip", "cannot be decompressed"),
        ("/brotli", "encoded as 'br'"),
    ],
)
def test_what_the_agent_is_told(web: Web, path: str, told: str) -> None:
    with pytest.raises(Refused, match=told):
        client(web.host).get(web.at(path))


@pytest.mark.parametrize("path", ["/busy", "/down"])
def test_what_is_nobodys_mistake(web: Web, path: str) -> None:
    with pytest.raises(Unavailable, match="429 Too Many Requests|503 Service Unavailable"):
        client(web.host).get(web.at(path))


def test_no_more_is_read_than_needed(web: Web) -> None:
    tracemalloc.start()
    for path in ("/flood", "/bomb"):
        content = client(web.host).get(web.at(path)).content
        assert len(content) == 1_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert web.sent < 50, "the flood was read to its end"  # type: ignore[attr-defined]
    assert peak < 20_000_000
    for path in ("/gzip", "/deflate"):
        assert client(web.host).get(web.at(path)).content == b"small"


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://{host}/",
        "gopher://{host}/",
        "//{host}/",
        "/path",
        "",
        "http://",
        "http:///x",
        "http://user@{host}/",
        "http://user:word@{host}/",
        "http://[::1",
        "http://{host}0000/",
        "http://a b/",
        "http://\x00/",
        "http://{host}/" + "x" * 3_000,
    ],
)
def test_what_is_no_address(web: Web, address: str) -> None:
    with pytest.raises(Refused, match="address|host"):
        client(web.host).get(address.replace("{host}", web.host))
    assert not web.asked


def test_other_hosts_and_ports_are_not_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it connects"))
    port = web.host.partition(":")[2]
    for place in ("127.0.0.1:1", "127.0.0.1", f"localhost:{port}", f"[::1]:{port}", f"127.0.0.2:{port}", "2130706433"):
        with pytest.raises(Refused, match="not among the hosts"):
            client(web.host).get(f"http://{place}/")
    with pytest.raises(Refused, match="not among"):  # a name without a port is for the web's own two
        client("127.0.0.1").get(web.at("/"))


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("example.org", ["127.0.0.1"]),
        ("example.org", ["10.1.2.3"]),
        ("example.org", ["169.254.169.254"]),
        ("example.org", ["93.184.216.34", "192.168.0.1"]),
        ("example.org", ["::1"]),
        ("example.org", ["::ffff:127.0.0.1"]),
        ("example.org", ["fe80::1%2"]),
        ("example.org", ["224.0.0.1"]),
        ("example.org", ["0.0.0.0"]),
        ("localhost", ["93.184.216.34"]),
    ],
)
def test_a_name_that_means_a_forbidden_address(
    name: str, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (one, 80)) for one in addresses])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it connects"))
    with pytest.raises(Refused, match="not where it may be"):
        client(name).get(f"http://{name}/")


def test_a_name_is_resolved_once(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is connected to is the address that was checked, not the name, which could mean another by then."""
    seen = []

    def connect(place: Any, timeout: float) -> Any:
        seen.append(place)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("93.184.216.34", 80))])
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Unavailable, match="ConnectionRefused"):
        client("example.org").get("http://Example.ORG/")
    assert seen == [("93.184.216.34", 80)]


def test_localhost_and_a_place_to_connect_to(web: Web) -> None:
    port = web.host.partition(":")[2]
    assert client(f"localhost:{port}").get(f"http://localhost:{port}/").content == b"<p>home"
    elsewhere = Client({"pages.example": web.host}, 5.0, 100, 0)
    assert elsewhere.get("http://pages.example/").address == "http://pages.example/"
    assert web.headers[-1]["Host"] == "pages.example"


@pytest.mark.parametrize("hosts", ["", "a/b", "http://a", "a:port", "a b", 5, "u@a"])
def test_hosts_that_are_none(hosts: Any) -> None:
    with pytest.raises(ValueError, match='must be "host" or "host:port"'):
        client(hosts)


@pytest.mark.parametrize("place", ["localhost:80", "127.0.0.1", "127.0.0.1:x", ":80", "[::1:80"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(ValueError, match="with an IP address"):
        Client({"a": place}, 1.0, 1, 0)


def drip(connected: socket.socket, text: bytes) -> None:
    """Never ends, and never lets one read wait for long."""
    connected.sendall(text)
    while True:
        connected.sendall(b"x")
        time.sleep(0.02)


@pytest.mark.parametrize(
    "speak",
    [
        lambda connected: connected.recv(1),  # says nothing
        lambda connected: drip(connected, b""),
        lambda connected: drip(connected, b"HTTP/1.1 200 OK\r\nHeader: "),
        lambda connected: drip(connected, b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"),
        lambda connected: [connected.sendall(b"HTTP/1.1 100 Go on\r\n\r\n") for _ in itertools.count()],
    ],
)
def test_one_time_limit_for_all(speak: Any) -> None:
    with raw(speak) as host:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="did not answer within 0.4 seconds"):
            client(host, seconds=0.4).get(f"http://{host}/")
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\x00 what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\ntoo short",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"Header: 1\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nHeader: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_quite_http(text: bytes) -> None:
    with raw(lambda connected: connected.sendall(text)) as host, pytest.raises(Unavailable, match=host):
        client(host).get(f"http://{host}/")


def test_nobody_is_there() -> None:
    with raw(lambda connected: None) as host:
        pass
    with pytest.raises(Unavailable, match="ConnectionRefused"):
        client(host).get(f"http://{host}/")
    with raw(lambda connected: connected.sendall(b"no TLS")) as host, pytest.raises(Unavailable, match="SSL"):
        client(host).get(f"https://{host}/")
