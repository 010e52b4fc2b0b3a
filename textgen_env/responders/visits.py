"""Where an agent has been in an episode of browsing, and the part of a page that it sees; as values that can be saved.

Where it can go from there is `browser.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from textgen_env.notices import shown

from .page_text import Link, Page


@dataclass
class Visit:
    """A page that is being read.

    Attributes:
        page: it.
        begin: where the part that is seen begins in its text.
        found: where in its text something was found last; −1 if nothing was.
    """

    page: Page
    begin: int = 0
    found: int = -1

    def end(self, most: int) -> int:
        """Where a part of at most so many characters ends: at the end of a line, if that can be."""
        text, limit = self.page.text, self.begin + most
        if len(text) <= limit:
            return len(text)
        return text.rfind("\n", self.begin, limit) + 1 or limit


@dataclass
class Session:
    """Where the agent has been; the last visit is the present one, and before the first there is none."""

    visits: list[Visit] = field(default_factory=list)


def session_of(state: Any) -> Session:
    """What `dataclasses.asdict` made of a session, also by way of JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return Session([_visit(visit) for visit in state["visits"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"browser: {shown(state)} is no state of an episode: {error}") from error


def _visit(state: Mapping[str, Any]) -> Visit:
    begin, found, content = int(state["begin"]), int(state["found"]), dict(state["page"])
    links = tuple(Link(str(link["text"]), str(link["address"])) for link in content.pop("links"))
    page = Page(**{name: str(text) for name, text in content.items()}, links=links)
    if not 0 <= begin <= len(page.text):
        raise ValueError(f"begin={begin} is not in the text")
    return Visit(page, begin, found)
