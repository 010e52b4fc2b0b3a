"""What people send to the labelling page, read and checked: names, choices, switches, pages of lists.

What lives here: from a request to values. What does not: what is done with them (``page.py``), and whether the request
is answered at all, and its size (``page_guard.py``).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import unquote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from textgen_env.render import visible

from .page_guard import read_form

MOST_NAME, MOST_COMMENT, MOST_SECONDS = 60, 2000, 86400.0
ROWS = 50
"""Lines per page of a list."""
RATER = "rater"
"""The cookie with the rater's name."""
SWITCHES = {"marks": "off", "keys": "on"}
"""What a rater may switch on or off, and how it is at first; it travels in the address."""
Form: TypeAlias = Mapping[str, str]


def clean_name(name: str) -> str:
    """A rater's name: one line without anything invisible.

    Raises:
        ValueError: it is empty, too long, or has what cannot be seen.
    """
    name = " ".join(unicodedata.normalize("NFC", name).split())
    if not name:
        raise ValueError("Please enter a name.")
    if len(name) > MOST_NAME:
        raise ValueError(f"Please take a name of at most {MOST_NAME} characters.")
    if visible(name) != name:
        raise ValueError("Please take a name without invisible characters.")
    return name


def endpoint(handler: Callable[[Request], Response]) -> Callable[[Request], Any]:
    """A handler of addresses, in a thread: a store waits for the disk."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(handler, request)

    return endpoint


def form_endpoint(handler: Callable[[Request, Form], Response]) -> Callable[[Request], Any]:
    """A handler of forms, once the form is there."""

    async def endpoint(request: Request) -> Response:
        form = await read_form(request)
        return await run_in_threadpool(handler, request, form)

    return endpoint


def rater_of(request: Request) -> str | None:
    """Who asks, by their cookie; None where nobody has said."""
    try:
        return clean_name(unquote(request.cookies.get(RATER, ""), errors="strict"))
    except ValueError:
        return None


def whole(text: str) -> int | None:
    """A whole number ≥ 0, or None."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text, re.ASCII) else None


def number_of(request: Request) -> int:
    """The pair that an address names."""
    number = whole(request.path_params["number"])
    if number is None:
        raise HTTPException(404, "there is no such pair")
    return number


def read_strength(form: Form) -> float | None:
    """How much better the preferred response is, 1 to 5, if it was said."""
    given = form.get("strength", "")
    if given not in ("", "1", "2", "3", "4", "5"):
        raise HTTPException(400, "strength must be 1 to 5")
    return float(given) if given else None


def read_comment(form: Form) -> str | None:
    """In the rater's own words, if there are any."""
    comment = form.get("comment", "").replace("\r\n", "\n").strip()
    if len(comment) > MOST_COMMENT:
        raise HTTPException(413, f"a comment has at most {MOST_COMMENT} characters")
    return comment or None


def read_seconds(form: Form) -> float | None:
    """What the script has counted; None: the store knows when the pair was given out."""
    try:
        seconds = float(form.get("seconds", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= MOST_SECONDS else None


def switches(given: Mapping[str, str]) -> dict[str, bool]:
    """What is switched on."""
    return {name: given.get(name, first) == "on" for name, first in SWITCHES.items()}


def with_switches(path: str, form: Form) -> str:
    """A page's address with what the rater has switched; an unticked box is not sent at all."""
    now = {name: form.get(name, "off") for name in SWITCHES}
    changed = {name: value for name, value in now.items() if value in ("on", "off") and value != SWITCHES[name]}
    return f"{path}?{urlencode(changed)}" if changed else path


def page_of(request: Request, rows: Sequence[Any]) -> tuple[int, Sequence[Any], int]:
    """The page of a list that is asked for: its number, its lines, and how many there are."""
    pages = max(1, math.ceil(len(rows) / ROWS))
    page = min(max(1, whole(request.query_params.get("page", "1")) or 1), pages)
    return page, rows[(page - 1) * ROWS : page * ROWS], pages
