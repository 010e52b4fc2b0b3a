"""Gets one document by HTTP for an agent that is not to be trusted, from servers that are not either.

Which hosts may be asked, and how long, how much and how often redirected an answer may be, is decided here. What a
document says is `page_text.py`'s, going from page to page `browser.py`'s.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from textgen_env.notices import shown

from .base import Unavailable

PORTS = {"http": 80, "https": 443}
TRY_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}  # and all from 500: the server's own trouble
LONGEST_ADDRESS = 2_000
CHUNK = 65_536
_KEPT = "/%:@!$&'()*+,;=~-._"  # of a path; all else is quoted, "%" stays for what is quoted already


class Refused(ValueError):
    """There is no document for the agent at an address; says why, in words for the agent."""


@dataclass(frozen=True)
class Document:
    """What a server sent.

    Attributes:
        address: where it was in the end, without a fragment.
        kind: the content type, in lower case, without parameters; "text/html" if the server did not say.
        charset: as the content type has it, or "".
        content: at most `most_bytes` of it, decompressed.
    """

    address: str
    kind: str
    charset: str
    content: bytes


class Client:
    """Asks allowed hosts, and no others, for documents by GET.

    A name is resolved once, its addresses are checked, and one of these is connected to, so that the name cannot mean
    another the next moment: "localhost" must be a loopback address and any other name a public one. A private address
    can only be allowed as such ("10.0.0.5"), or as what a host is to be connected to.

    Args:
        hosts: what may be asked: "host" for the ports 80 and 443, or "host:port"; each with "address:port" to connect
            to instead, or None.
        seconds: for a whole document, from the look-up of the name to the last byte, with all redirects.
        most_bytes: of a document, decompressed; what is longer is cut.
        redirects: to follow.

    Raises:
        TypeError, ValueError: hosts that are none.
    """

    def __init__(self, hosts: Mapping[str, str | None], seconds: float, most_bytes: int, redirects: int) -> None:
        self.hosts = {_host(name): None if place is None else _place(place) for name, place in hosts.items()}
        self.seconds, self.most_bytes, self.redirects = seconds, most_bytes, redirects

    def connect_to(self, host: str, place: str) -> None:
        """From now on, connect to an "address:port" for a host that may be asked."""
        self.hosts[_host(host)] = _place(place)

    def get(self, address: str) -> Document:
        """The document at an address.

        Raises:
            Refused: an address that is none or not allowed, a document that is not there, or no end of redirects.
            TimeoutError: it took too long.
            Unavailable: no server answered, or it failed.
        """
        end = time.monotonic() + self.seconds
        for _ in range(self.redirects + 1):
            found = self._ask(address, end)
            if isinstance(found, Document):
                return found
            address = found
        raise Refused(f"there are more than {self.redirects} redirects")

    def _ask(self, address: str, end: float) -> Document | str:
        """The document, or the address that the server sent us to."""
        parts, host, port = split_address(address)
        key = f"{host}:{port}"
        allowed = key if key in self.hosts else host
        if allowed not in self.hosts or (allowed == host and port != PORTS[parts.scheme]):
            raise Refused(f"{key} is not among the hosts that may be asked")
        try:
            with _connect(parts.scheme, host, port, self.hosts[allowed], end) as connection:
                return self._exchange(connection, parts)
        except TimeoutError as error:
            raise TimeoutError(f"{address} did not answer within {self.seconds:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{address}: {type(error).__name__}: {error}"[:500]) from error

    def _exchange(self, connection: Connection, parts: SplitResult) -> Document | str:
        address = urlunsplit(parts)
        headers = {"Host": parts.netloc, "Accept": "text/html, text/*;q=0.8", "Accept-Encoding": "identity"}
        connection.request("GET", urlunsplit(("", "", parts.path or "/", parts.query, "")), headers=headers)
        response = connection.getresponse()
        location = response.getheader("Location")
        if 300 <= response.status < 400 and location is not None:
            return joined(address, location)
        if response.status >= 500 or response.status in TRY_AGAIN:
            raise Unavailable(f"{address} answered {_told(response.status)}")
        if not 200 <= response.status < 300:
            raise Refused(_told(response.status))
        kind = response.headers.get_content_type() if "Content-Type" in response.headers else "text/html"
        charset = response.headers.get_content_charset("")
        return Document(address, kind, charset, self._content(response))

    def _content(self, response: http.client.HTTPResponse) -> bytes:
        """The first bytes of a body, and no more of them read than needed."""
        encoding = response.getheader("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise Refused(f"the document is encoded as {shown(encoding)}, which cannot be read")
        inflate = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
        content = b""
        while (left := self.most_bytes - len(content)) > 0 and not (inflate and inflate.eof):
            chunk = response.read1(CHUNK)
            if not chunk:
                if response.length:  # of what was announced
                    raise ConnectionError(f"the connection ended {response.length} bytes early")
                break
            try:
                content += (chunk if inflate is None else inflate.decompress(chunk, left))[:left]
            except zlib.error as error:
                raise Refused(f"the document cannot be decompressed: {error}") from error
        return content


# --- addresses ----------------------------------------------------------------------------------------------------


def split_address(address: str) -> tuple[SplitResult, str, int]:
    """The parts of an address, quoted as they are sent and without fragment; the host, and the port.

    Raises:
        Refused: it is no address of a web page.
    """
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").lower(), parts.port
        host.encode("idna" if not host.isascii() else "ascii")
    except ValueError as error:
        raise Refused(f"{shown(address)} is no address: {error}") from error
    if parts.scheme not in PORTS or not host:
        raise Refused(f"{shown(address)} is no address of a web page, which begins with http:// or https://")
    if parts.username is not None or len(address) > LONGEST_ADDRESS:
        raise Refused(f"the address {shown(address)} must have no user name and {LONGEST_ADDRESS} characters at most")
    if not re.fullmatch(r"[\w.:-]+", host):
        raise Refused(f"{shown(host)} is no name of a host")
    name = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
    netloc = name if port is None else f"{name}:{port}"
    path, query = (quote(part, safe=_KEPT + "?", errors="replace") for part in (parts.path, parts.query))
    return (
        SplitResult(parts.scheme, netloc, path or "/", query, ""),
        name,
        PORTS[parts.scheme] if port is None else port,
    )


def joined(base: str, reference: str) -> str:
    """The address that a reference on a page means.

    Raises:
        Refused: it means none.
    """
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise Refused(f"{shown(reference)} is no address: {error}") from error


def _host(name: Any) -> str:
    """A host, with or without port, as `split_address` writes it."""
    try:
        if not isinstance(name, str) or "/" in name:
            raise Refused("it is a name, perhaps with a port")
        parts, host, port = split_address(f"http://{name}")
    except Refused as error:
        raise ValueError(f'browser: {shown(name)} of hosts must be "host" or "host:port": {error}') from error
    return host if parts.netloc == host else f"{host}:{port}"


def _place(place: str) -> tuple[str, int]:
    """An IP address and a port.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(f"//{place}")
        return str(ipaddress.ip_address(parts.hostname or "")), int(parts.port or "")
    except ValueError as error:
        raise ValueError(f'browser: {shown(place)} of hosts must be "address:port" with an IP address') from error


def _told(status: int) -> str:
    """A status in words of our own: what the server calls it is not shown."""
    return f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)


# --- connections --------------------------------------------------------------------------------------------------


class Connection(http.client.HTTPConnection):
    """A connection over a socket that is there already, all of whose reads have one time to end together."""

    def __init__(self, host: str, port: int, connected: socket.socket, end: float) -> None:
        super().__init__(host, port)
        self.sock: Any = _Timed(connected, end)
        self._connected = connected

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._connected.close()


class _Timed:
    """What `http.client` needs of a socket, with one time to end for everything."""

    def __init__(self, connected: socket.socket, end: float) -> None:
        self._socket, self._end = connected, end

    def sendall(self, content: bytes) -> None:
        self._socket.settimeout(_left(self._end))
        self._socket.sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._socket, self._end))

    def close(self) -> None:
        """Leave it open: a response is read after `http.client` has closed its connection."""


class _Reader(io.RawIOBase):
    """Reads a socket, each time for no longer than what is left."""

    def __init__(self, connected: socket.socket, end: float) -> None:
        self._socket, self._end = connected, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self._end))
        return self._socket.recv_into(buffer)


def _left(end: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    return left


def _connect(scheme: str, host: str, port: int, place: tuple[str, int] | None, end: float) -> Connection:
    """Connect to a place, or to one of the addresses that a host has and may have.

    Raises:
        Refused: it has others.
        OSError: nobody is there.
    """
    failed: OSError = ConnectionError(f"{host} has no address")
    for address in [place] if place else _addresses(host, port):
        try:
            connected = socket.create_connection(address, timeout=_left(end))
        except TimeoutError:
            raise
        except OSError as error:
            failed = error
            continue
        if scheme == "https":
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host.strip("[]"))
        return Connection(host, port, connected, end)
    raise failed


def _addresses(host: str, port: int) -> list[tuple[str, int]]:
    """All addresses of a host.

    Raises:
        Refused: one of them is not of the kind that its name allows.
    """
    with suppress(ValueError):
        return [(str(ipaddress.ip_address(host.strip("[]"))), port)]  # allowed as such
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys((str(entry[4][0]), port) for entry in found))
    for text, _ in addresses:
        ip: Any = ipaddress.ip_address(text.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not (ip.is_loopback if host == "localhost" else ip.is_global and not ip.is_multicast):
            raise Refused(f"{host} is at {text}, which is not where it may be")
    return addresses
