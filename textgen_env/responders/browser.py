"""A browser as the environment: pages as text, read part by part, and links, by number, by their text, or by address.

Where an agent can go is decided here; where it has been is kept as `visits.py` has it. Asking servers is
`http_client.py`'s, reading what they send `page_text.py`'s, how calls are written and what becomes of mistakes
`tools.py`'s and `calls.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from textgen_env.notices import shown

from .calls import ToolCall
from .http_client import Client, Refused, joined, split_address
from .in_time import outcome
from .page_text import Page, lay_out, read_page
from .tool import Tool
from .tools import Tools
from .visits import Session, Visit, session_of

if TYPE_CHECKING:
    from textgen_env.episode import Prompt

MOST_VISITS = 20  # that can be gone back
GRACE = 1.0  # seconds beyond a client's own time limit, after which its thread is left behind
_LINK = {"type": ["string", "integer"], "description": "a link's number on this page, its text, or an address"}
_TEXT, _QUERY = ({"type": "string", "description": about} for about in ("what to look for", "words to look for"))
ACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "open": ("Opens a page.", {"link": _LINK}),
    "back": ("Goes back to the page before.", {}),
    "find": ("Goes on to where a text is on this page.", {"text": _TEXT}),
    "next": ("Goes on to the next part of this page.", {}),
    "search": ("Searches the site.", {"query": _QUERY}),
}


class Browser(Tools):
    """Shows an agent pages of the web, which it moves through by calls, one in a turn; see `Tools` for turns and calls.

    The calls are `open(link)`, `back()`, `find(text)`, `next()`, and where there is an address to search at
    `search(query)`. Each is answered by what the agent sees then. What is wrong with a call, and a document that is not
    there, not text or not allowed, is told to the agent as "error: …". A server that does not answer, or fails, fails
    the episode: it is no score.

    Only GET is used, without cookies; scripts are not run. No host but the start's is asked unless `hosts` has it, on
    redirects neither; see `Client` for what their names may stand for.

    Args:
        start: the address of the page where every episode begins.
        hosts: further hosts that may be asked: "host", or "host:port"; in a mapping, each with None or with the
            "address:port" that it is connected to.
        search: an address with "{query}" in it.
        actions: those of the calls that the agent has; None: all.
        tools: further tools, which can be called as well.
        calls, reply, role, error_reward, retries, backoff, workers: as of `Tools`.
        mark: is put before each link; "{number}" stands for its number.
        template: what the agent sees of a page: "{text}" for the part, "{title}", "{address}", and "{more}" for a line
            that says how much is left.
        page_characters: of a part.
        opening: whether each episode opens with the start page, behind a prompt that is a text.
        timeout: seconds for a document, with all redirects.
        most_bytes, redirects: of a document.

    Raises:
        ImportError: inscriptis is not installed.
        TypeError, ValueError: an argument of another kind or out of range; names it.
    """

    most_calls = 1

    def __init__(
        self,
        start: str,
        *,
        hosts: Sequence[str] | Mapping[str, str | None] = (),
        search: str | None = None,
        actions: Sequence[str] | None = None,
        tools: Mapping[str, Any] | None = None,
        calls: Any = "json",
        reply: str = "{result}",
        role: str = "tool",
        error_reward: float = 0.0,
        mark: str = "[{number}] ",
        template: str = "{title}\n{address}\n\n{text}{more}",
        page_characters: int = 2_000,
        opening: bool = False,
        timeout: float = 10.0,
        retries: int = 0,
        backoff: float = 0.5,
        workers: int = 16,
        most_bytes: int = 500_000,
        redirects: int = 5,
    ) -> None:
        lay_out(None)  # at the door: without the library there is no browser
        _check_numbers(timeout=timeout, page_characters=page_characters, most_bytes=most_bytes, redirects=redirects)
        self._check_texts(mark, template, search, opening)
        self.start, self.search, self._mark, self._template = start, search, mark, template
        self.page_characters, self._says_first = page_characters, opening
        own = [self._tool(name) for name in _chosen(actions, search)]
        patience: dict[str, Any] = {"retries": retries, "backoff": backoff, "workers": workers}
        super().__init__(
            {tool.name: tool for tool in own} | dict(tools or {}),
            calls=calls,
            reply=reply,
            role=role,
            error_reward=error_reward,
            timeout=timeout + GRACE,
            **patience,
        )
        self._own = frozenset(tool.name for tool in own) - set(tools or {})
        self.client = Client(_with_start(start, hosts), timeout, most_bytes, redirects)
        self._sessions: dict[int, Session] = {}

    def _check_texts(self, mark: Any, template: Any, search: Any, opening: Any) -> None:
        for name, value, part in (("mark", mark, ""), ("template", template, "{text}"), ("search", search, "{query}")):
            if not (isinstance(value, str) and part in value) and not (name == "search" and value is None):
                raise ValueError(f"browser: {name}={shown(value)} must be a text{f' with {part!r} in it' * bool(part)}")
        if not isinstance(opening, bool):
            raise TypeError(f"browser: opening={shown(opening)} must be True or False")

    def _tool(self, name: str) -> Tool:
        description, arguments = ACTIONS[name]
        schema = {
            "type": "object",
            "properties": arguments,
            "required": list(arguments),
            "additionalProperties": False,
        }
        return Tool(name, getattr(self, f"_{name}"), description, schema)

    # --- the protocol -------------------------------------------------------------------------------------------------

    def reset(self, slots: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Any]:
        """Begin at the start page, and show it if episodes open with it; an exception where it is not there."""
        self._sessions |= {slot: Session() for slot in slots}
        return [outcome(partial(self._opened, slot)) if self._says_first else "" for slot in slots]

    def _opened(self, slot: int) -> str:
        return self._seen(self._present(self._sessions[slot]))

    def _call(self, slot: int, call: ToolCall) -> Any:
        """What the agent sees after a call; a session that is over by then, since it was too late, is nobody's."""
        if call.name not in self._own:
            return super()._call(slot, call)
        session = self._sessions[slot]
        visit = self.tools[call.name].function(session, **call.arguments)
        return self._seen(visit)

    def _seen(self, visit: Visit) -> str:
        page, end = visit.page, visit.end(self.page_characters)
        left = len(page.text) - end
        parts = {
            "title": page.title,
            "address": page.address,
            "text": page.text[visit.begin : end].rstrip("\n"),
            "more": f"\n({left:,} more characters)" if left else "",
        }
        return re.sub(r"\{(title|address|text|more)\}", lambda found: parts[found[1]], self._template).strip("\n")

    # --- the calls ----------------------------------------------------------------------------------------------------
    # Each changes the session at its end, when nothing can fail any more, so that it can be tried again.

    def _present(self, session: Session) -> Visit:
        if not session.visits:
            session.visits = [Visit(self._read(self.start))]
        return session.visits[-1]

    def _read(self, address: str) -> Page:
        return read_page(self.client.get(address), self._mark)

    def _visit(self, session: Session, address: str) -> Visit:
        visit = Visit(self._read(address))
        session.visits = [*session.visits, visit][-MOST_VISITS:]
        return visit

    def _open(self, session: Session, link: str | int) -> Visit:
        return self._visit(session, self._address(self._present(session).page, str(link).strip()))

    def _address(self, page: Page, link: str) -> str:
        """Where a link leads.

        Raises:
            Refused: there is no such link.
        """
        if number := re.fullmatch(r"\[?\s*([0-9]{1,6})\s*\]?", link):
            if not 1 <= int(number[1]) <= len(page.links):
                raise Refused(f"this page has {len(page.links)} links, and none with the number {number[1]}")
            return page.links[int(number[1]) - 1].address
        if link.startswith(("http://", "https://", "/")):
            return joined(page.address, link)
        for wanted in (link, link.rstrip(" .")):
            for one in page.links:
                if one.text.casefold() == wanted.casefold() != "":
                    return one.address
        raise Refused(f"there is no link {shown(link)} on this page")

    def _back(self, session: Session) -> Visit:
        if len(session.visits) < 2:
            raise Refused("there is no page before this one")
        session.visits = session.visits[:-1]
        return session.visits[-1]

    def _find(self, session: Session, text: str) -> Visit:
        visit = self._present(session)
        if not text.strip():
            raise Refused("there is nothing to look for")
        pattern = re.compile(re.escape(text.strip()), re.IGNORECASE)
        found = pattern.search(visit.page.text, max(visit.begin, visit.found + 1)) or pattern.search(visit.page.text)
        if found is None:
            raise Refused(f"{shown(text.strip())} is not on this page")
        line = visit.page.text.rfind("\n", 0, found.start()) + 1
        visit.begin = line if found.end() - line <= self.page_characters else found.start()
        visit.found = found.start()
        return visit

    def _next(self, session: Session) -> Visit:
        visit = self._present(session)
        if (end := visit.end(self.page_characters)) == len(visit.page.text):
            raise Refused("this is the end of the page")
        visit.begin = end
        return visit

    def _search(self, session: Session, query: str) -> Visit:
        assert self.search is not None  # or there is no such call
        before = self._present(session).page.address
        return self._visit(session, joined(before, self.search.replace("{query}", quote_plus(query.strip()))))

    # --- keeping ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where each slot is and has been, with all that can be read there."""
        return {str(slot): asdict(session) for slot, session in self._sessions.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            TypeError, ValueError: no such state; nothing has changed.
        """
        self._sessions = {int(slot): session_of(one) for slot, one in state.items()}

    def clone_state(self, slot: int) -> Any:
        """Where a slot is and has been."""
        return asdict(self._sessions[slot])

    def restore_state(self, slot: int, state: Any) -> None:
        """Go on from there; see `load_state_dict`."""
        self._sessions[slot] = session_of(state)


def _chosen(actions: Any, search: str | None) -> list[str]:
    """The names of the calls that there are.

    Raises:
        TypeError, ValueError: no such calls.
    """
    possible = [name for name in ACTIONS if name != "search" or search is not None]
    if actions is None:
        return possible
    if isinstance(actions, str) or not isinstance(actions, Sequence) or not actions:
        raise TypeError(f"browser: actions={shown(actions)} must be a list of some of {', '.join(possible)}")
    for name in actions:
        if name not in possible:
            hint = ", which needs search=" if name == "search" else ""
            raise ValueError(f"browser: {shown(name)} of actions must be one of {', '.join(possible)}{hint}")
    return list(actions)


def _with_start(start: Any, hosts: Any) -> dict[str, str | None]:
    """All hosts that may be asked.

    Raises:
        TypeError, ValueError: an address or hosts that are none.
    """
    if isinstance(hosts, str) or not isinstance(hosts, (Mapping, Sequence)):
        raise TypeError(f"browser: hosts={shown(hosts)} must be a list of hosts, or a mapping from hosts")
    try:
        parts, host, port = split_address(start)
    except (Refused, AttributeError, TypeError) as error:
        raise ValueError(f"browser: start={shown(start)} must be the address of a page: {error}") from error
    allowed: dict[str, str | None] = dict(hosts) if isinstance(hosts, Mapping) else dict.fromkeys(hosts)
    if not (host in allowed and parts.port is None):
        allowed.setdefault(f"{host}:{port}", None)
    return allowed


def _check_numbers(**numbers: Any) -> None:
    """Check limits.

    Raises:
        ValueError: one out of range; names it.
    """
    for name, value in numbers.items():
        kinds, least = ((int, float), 0.0) if name == "timeout" else ((int,), 0 if name == "redirects" else 1)
        fine = isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")
        if not fine or (name == "timeout" and value == 0):
            wanted = "a number of seconds > 0" if name == "timeout" else f"a whole number ≥ {least}"
            raise ValueError(f"browser: {name}={shown(value)} must be {wanted}")
