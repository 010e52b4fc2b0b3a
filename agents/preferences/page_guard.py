"""What a request must be before the labelling page looks at it, and what every answer tells the browser.

What lives here: whose requests are answered (Host, Origin, token), how large a form may be, and the headers that keep a
page to itself. What does not: what is answered (``page.py``).

A browser may be made to send requests by any page that it has open. Such a page can choose neither ``Origin``, which
says whose page it is, nor ``Host``, which says whose address the browser believes it asks: a name that was made to
point here (DNS rebinding) is not one of ours. Addresses need no list, since there is nothing to rebind in them.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs, parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MOST_BYTES = 32 * 1024
"""Of a form, as it is sent."""
MOST_SECONDS = 10.0
"""For a form to arrive."""
COOKIE = "label_token"

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with "no-referrer" a browser sends no Origin with its own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Middleware: refuses what does not belong here, and adds `HEADERS` to every answer.

    Args:
        app: whom the rest is for.
        names: host names under which the page is asked for, beside `LOOPBACK`; with a token also any address.
        token: that every request must know, from a cookie or, once, from ``?token=``; None asks for none.
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str] = (), token: str | None = None) -> None:
        self.app, self.names, self.token = app, LOOPBACK | {name.lower() for name in names}, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the page speaks HTTP alone, not {scope['type']}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("cache-control", "no-store")
                headers.update(HEADERS)
            await send(message)

        answer = self._refusal(scope) or self.app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            return PlainTextResponse(f"Host {host!r} is not served here", 421)
        origins = headers.getlist("origin")
        if scope["method"] not in ("GET", "HEAD") and origins not in ([f"http://{host}"], [f"https://{host}"]):
            return PlainTextResponse("a form of another site is not taken (Origin)", 403)
        return None if self.token is None else self._without_token(scope, headers, self.token)

    def _is_ours(self, host: str) -> bool:
        try:
            split = urlsplit(f"//{host}")
            name = split.hostname or ""
            split.port  # noqa: B018 - raises where it is none
        except ValueError:
            return False
        if split.netloc != host or split.username is not None:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.token is not None

    def _without_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if _same(given, token) and scope["method"] == "GET":
            answer = RedirectResponse(scope["path"] if scope["path"].startswith("/compare") else "/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="lax")
            return answer
        if _same(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), token):
            return None
        return PlainTextResponse("this page asks for its token: open the address that it printed, with ?token=", 401)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


async def read_form(request: Request) -> Mapping[str, str]:
    """The fields of a form.

    Raises:
        HTTPException: it is too large, takes too long, or is no form.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "a form as browsers send it is wanted")
    body = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"a form has at most {MOST_BYTES} bytes")

    try:
        await asyncio.wait_for(read(), MOST_SECONDS)
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20))
    except asyncio.TimeoutError:
        raise HTTPException(408, "the form did not arrive") from None
    except ValueError:
        raise HTTPException(400, "this is no form") from None
