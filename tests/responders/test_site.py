"""The site of documents and the browser on it."""

from __future__ import annotations

import json
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

pytest.importorskip("inscriptis", reason="the layout is the extra 'tools'")
pytest.importorskip("bm25s", reason="the index is the extra 'tools'")

from textgen_env.episode import Prompt
from textgen_env.responders.site import Pages, Server, Site, served
from textgen_env.testing import ResponderContract

DOCUMENTS = [
    {"title": "A & <b>", "text": "cats <i>sleep</i> & eat"},
    "dogs bark at cats",
    {"title": "C", "text": "cats"},
]
CALLS = {"search": r"^find (?P<query>.+)", "open": r"^(?!find )(?P<link>.+)"}


@pytest.fixture
def address() -> Iterator[str]:
    server = Server(Pages(DOCUMENTS, 2))
    yield f"http://{server.place}"
    server.close()


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        return str(response.read().decode())


def test_pages(address: str) -> None:
    assert "<form action='/search'>" in fetch(address + "/")
    assert "<title>A &amp; &lt;b&gt;</title>" in fetch(address + "/document/1")
    assert "<p>cats &lt;i&gt;sleep&lt;/i&gt; &amp; eat</p>" in fetch(address + "/document/1")
    assert "<title>document 2</title>" in fetch(address + "/document/2")
    results = fetch(address + "/search?query=cats+sleep")  # 1 and 3 fit best, and are shown in their order
    assert "found: <a href='/document/1'>A &amp; &lt;b&gt;</a> and <a href='/document/3'>C</a>" in results
    for query in ("", "?query=", "?query=zebra", "?other=cats"):
        assert "found: nothing" in fetch(address + "/search" + query)


@pytest.mark.parametrize("path", ["/document/0", "/document/4", "/document/", "/document/x", "/document/²", "/../x"])
def test_there_is_nothing_else(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(address + urllib.request.quote(path))  # type: ignore[attr-defined]


def test_a_server_per_documents_and_process() -> None:
    assert served("entries", 2) is served("entries", 2)
    assert served("entries", 2) is not served("entries", 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_serves_itself() -> None:
    before = served(DOCUMENTS, 2).place
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(writer, served(DOCUMENTS, 2).place.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).decode() not in ("", before)
    os.close(reader)
    os.close(writer)


class TestSite(ResponderContract):
    texts = ("find cats", "C", "find C", "document 9", "http://site/document/2", "find zebra", "/document/1")

    def make_responder(self) -> Any:
        return Site(DOCUMENTS, results=2, calls=CALLS, actions=["search", "open"], opening=True)


def test_addresses_do_not_tell_the_port(tmp_path: Path) -> None:
    site = Site(DOCUMENTS, calls=CALLS, actions=["search", "open"])
    site.reset([0], [Prompt("p")], [0])
    site.respond([0], ["find cats"])
    state = json.dumps(site.state_dict())
    assert "127.0.0.1" not in state
    assert "http://site/document/3" in state
    other = pickle.loads(pickle.dumps(site))
    assert other.respond([0], ["C"]) == site.respond([0], ["C"])


def test_a_look_up_by_hand() -> None:
    """Three turns: search, open the link that fits, answer."""
    env: Any = gym.make("textgen/Browse-v0")
    end = env.unwrapped.language_model.end_token_id
    encode = env.unwrapped.language_model.encode_plain
    number = next(n for n, p in enumerate(env.unwrapped.prompts) if p.extra["call"] == "find Tom Baker")
    right = env.unwrapped.prompts[number]
    for link, answer, score in (("Tom Baker.", right.references[0], 1.0), ("Tom Chen", "Tom Baker is a vet.", 0.0)):
        env.reset(options={"prompt": number})
        replies, ended = [], False
        for text in ("find Tom Baker", link, answer):
            assert not ended
            *_, ended, _, info = env.unwrapped.step_tokens([*encode(f" {text}"), end])
            replies.append(info.get("reply"))
        assert replies == ["found: Tom Baker and Tom Chen", replies[1], None]
        assert replies[1].startswith(f"{link.strip('.')}, a ")
        assert (replies[1] == right.extra["reply"]) == (score == 1)
        assert (ended, info["score"]) == (True, score)
