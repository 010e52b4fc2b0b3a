"""A rater without a browser: follows the labelling page's own forms and links, as a browser without scripts does.

What lives here: reading a page, and pressing its buttons over HTTP. What does not: what a robot prefers
(``labelling.py``), the page (``agents/preferences/page.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Shown:
    """What a page of the labelling page says."""

    title: str = ""
    number: int | None = None
    prompt: str = ""
    sides: dict[str, str] = field(default_factory=dict)  # texts of the responses
    fields: dict[str, str] = field(default_factory=dict)  # of the form for a choice
    buttons: dict[str, str] = field(default_factory=dict)  # value → address
    text: str = ""


class Reader(HTMLParser):
    """Reads a page."""

    VOID = {"meta", "link", "input", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.page, self._open, self._action = Shown(), list[tuple[str, dict[str, Any]]](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self._open.append((tag, given))
        if tag == "form":
            self._action = given["action"]
        elif tag == "input" and "name" in given:
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self.page.fields[given["name"]] = given.get("value", "")
        elif tag == "button" and "hidden" not in given:
            self.page.buttons[given.get("value") or given.get("formaction", "")] = given.get("formaction", self._action)
        elif tag == "section" and given.get("class", "").startswith("card"):
            self.page.sides[given["class"].split()[1]] = ""

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        classes = [given.get("class", "") for _, given in self._open]
        if any(tag == "title" for tag, _ in self._open):
            self.page.title += data
        elif "text" in classes and "prompt" in classes:
            self.page.prompt += data
        elif "text" in classes and any(name.startswith("card") for name in classes):
            self.page.sides[next(reversed(self.page.sides))] += data
        self.page.text += data


def read(html: str) -> Shown:
    """What a page says."""
    reader = Reader()
    reader.feed(html)
    page = reader.page
    if "number" in page.fields:
        page.number = int(page.fields["number"])
    page.text = re.sub(r"\s+", " ", page.text)
    return page


class Rater:
    """Somebody at the page, by way of an HTTP client that keeps cookies.

    Args:
        client: of httpx's kind, with a base address, which follows no redirects.
        name: to give; None gives none.
    """

    def __init__(self, client: Any, name: str | None = "ann") -> None:
        self.client, self.origin = client, str(client.base_url).rstrip("/")
        if name is not None:
            self._acknowledged(self.post("/name", {"name": name}), 303)

    def post(self, path: str, form: dict[str, str], **headers: str) -> Any:
        """A form, as a browser sends it."""
        return self.client.post(path, data=form, headers={"origin": self.origin, **headers})

    def get(self, path: str = "/compare") -> Shown:
        """A page."""
        return read(self._acknowledged(self.client.get(path), 200).text)

    def press(self, page: Shown, button: str, **typed: str) -> Any:
        """A button of a page's form; the answer, once it is acknowledged."""
        return self._acknowledged(self.post(page.buttons[button], {**page.fields, "choice": button, **typed}), 303)

    def _acknowledged(self, answer: Any, code: int) -> Any:
        if answer.status_code != code:
            raise RuntimeError(f"the page answered {answer.status_code}, not {code}: {answer.text[:500]}")
        return answer
