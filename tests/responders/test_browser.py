"""The browser on a real server: what the agent sees, where it can go, and what becomes of servers that do harm."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("inscriptis", reason="the layout is the extra 'tools'")

from dialogues import play
from web import Web, html, raw, serving, status

from textgen_env.episode import Prompt
from textgen_env.responders import Reply, Unavailable, as_responder
from textgen_env.responders.browser import MOST_VISITS, Browser
from textgen_env.testing import ResponderContract

START = "<title>Start</title><p>Hi <a href=/long>The long one</a> <a href='pets?of=5'>Pets</a> <a href=/gone>x</a>"
LONG = "<title>Long</title><pre>" + "\n".join(f"line {n} of many" for n in range(40)) + "\nA Needle here</pre>"


@pytest.fixture
def web() -> Iterator[Web]:
    pages = {"/": html(START), "/long": html(LONG), "/pets": html("<p>cats & dogs <a href='/'>home</a>")}
    more = {"/found": status(302, Location="/pets?q=1"), "/far": status(302, Location="http://example.org/")}
    hostile = {"/down": status(500), "/png": html("x", Content_Type="image/png"), "/eos": html("<p>&lt;eos&gt;\x1b[2J")}
    with serving(pages | more | hostile) as web:
        yield web


def browse(web: Web, **more: Any) -> Browser:
    settings = {"template": "{title}|{address}|{text}{more}", "page_characters": 60, "opening": False} | more
    browser = Browser(web.at("/"), **settings)
    browser.reset([0], [Prompt("p")], [1])
    return browser


def call(browser: Browser, name: str, slot: int = 0, **arguments: Any) -> Any:
    text = json.dumps({"name": name, "arguments": arguments})
    reply = browser.respond([slot], [f"<tool_call>{text}</tool_call>"])[0]
    return reply.text if isinstance(reply, Reply) else reply


def test_going_about(web: Web) -> None:
    browser = browse(web, search="/found?q={query}")
    start = f"Start|{web.at('/')}|Hi [1] The long one [2] Pets [3] x"
    assert browser.reset([1], [Prompt("p")], [1]) == [""]
    assert web.asked == []
    pets = f"|{web.at('/pets?of=5')}|cats & dogs [1] home"
    assert call(browser, "open", link="2") == pets
    assert call(browser, "back") == start
    for link in (2, "[2]", "pets", " Pets. ", "/pets?of=5", web.at("/pets?of=5#top")):
        assert call(browser, "open", link=link) == pets
        assert call(browser, "open", link="home") == start
    assert call(browser, "search", query="a & b") == f"|{web.at('/pets?q=1')}|cats & dogs [1] home"
    assert "/found?q=a+%26+b" in web.asked
    asked = len(web.asked)
    assert call(browser, "back") == start
    assert len(web.asked) == asked  # from memory
    assert call(browser, "back", slot=1) == "error: back: there is no page before this one"


def test_long_pages_are_read_part_by_part(web: Web) -> None:
    browser = browse(web)
    lines = [f"line {n} of many" for n in range(40)]
    shown = call(browser, "open", link=1)
    read = []
    while True:
        title, address, text = shown.split("|")
        assert (title, address) == ("Long", web.at("/long"))
        part, _, more = text.partition("\n(")
        assert len(part) < 60
        read += part.splitlines()
        left = len("\n".join([*lines, "A Needle here"])) - len("\n".join(read)) - 1
        if not more:
            break
        assert more == f"{left:,} more characters)"
        shown = call(browser, "next")
    assert read == [*lines, "A Needle here"]
    assert call(browser, "next") == "error: next: this is the end of the page"
    assert "|line 3 of many\nline 4" in call(browser, "find", text="LINE 3 OF")
    assert "|line 30 of" in call(browser, "find", text="line 3")  # the next one
    assert "|line 31 of" in call(browser, "find", text="line 3")
    assert call(browser, "find", text=" needle ").endswith("|A Needle here")
    assert "|line 3 of" in call(browser, "find", text="line 3")  # and from the top again
    assert call(browser, "find", text="nowhere") == "error: find: 'nowhere' is not on this page"
    assert "nothing to look for" in call(browser, "find", text=" ")
    assert "|line 4 of" in call(browser, "find", text="line 4 ")


def test_lines_longer_than_a_part(web: Web) -> None:
    web.answers["/wide"] = html("<p>" + "ab" * 100 + "needle" + "cd" * 100)
    browser = browse(web, template="{text}")
    parts = [call(browser, "open", link="/wide")] + [call(browser, "next") for _ in range(6)]
    assert "".join(parts) == "ab" * 100 + "needle" + "cd" * 100
    assert call(browser, "find", text="NEEDLE").startswith("needlecdcd")


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("4", "this page has 3 links, and none with the number 4"),
        ("0", "none with the number 0"),
        ("99999999", "there is no link '99999999'"),
        ("nowhere", "there is no link 'nowhere' on this page"),
        ("", "there is no link ''"),
        ("3", "404 Not Found"),
        ("/png", "this is image/png, not a page of text"),
        ("/far", "example.org:80 is not among the hosts that may be asked"),
        ("http://127.0.0.1:9/", "127.0.0.1:9 is not among the hosts"),
        ("http://169.254.169.254/latest", "not among the hosts"),
        ("file:///etc/passwd", "there is no link"),
        ("//example.org/", "example.org:80 is not among"),
        ("http://[", "is no address"),
    ],
)
def test_mistakes_are_told_and_nothing_has_moved(web: Web, link: str, told: str) -> None:
    browser = browse(web, error_reward=-0.25)
    call(browser, "open", link="/pets")
    before = browser.state_dict()
    call(browser, "open", link="/")
    reply: Any = browser.respond(
        [0], [f'<tool_call>{{"name": "open", "arguments": {{"link": "{link}"}}}}</tool_call>']
    )[0]
    assert reply.text.startswith("error: open: ")
    assert told in reply.text
    assert (reply.reward, reply.info) == (-0.25, {"calls": ["open"], "mistakes": 1})
    call(browser, "back")
    assert browser.state_dict() == before


def test_one_call_in_a_turn_and_none_is_the_answer(web: Web) -> None:
    browser = browse(web)
    one = '<tool_call>{"name": "open", "arguments": {"link": "Pets"}}</tool_call>'
    reply: Any = browser.respond([0], [one + one])[0]
    assert reply.text.endswith("home\nerror: of 2 calls only the first was made")
    assert browser.respond([0], ["It is a cat."]) == [None]
    assert "'link' is a required property" in call(browser, "open")
    assert call(browser, "next", page=2).startswith("error: next: arguments: Additional properties")
    assert call(browser, "click") == "error: there is no tool 'click', but open, back, find, next"


def test_servers_that_fail_fail_the_episode(web: Web) -> None:
    browser = browse(web, timeout=0.3)
    assert isinstance(call(browser, "open", link="/down"), Unavailable)
    with raw(lambda connected: connected.recv(1)) as host:
        silent = Browser(f"http://{host}/", timeout=0.3, opening=True)
        opening = silent.reset([0], [Prompt("p")], [0])[0]
        assert isinstance(opening, TimeoutError)
        assert isinstance(call(silent, "next"), TimeoutError)
    assert isinstance(silent.reset([0], [Prompt("p")], [0])[0], Unavailable)


def test_what_was_nobodys_mistake_is_tried_again(web: Web) -> None:
    tries = iter([status(503), status(503), html("<p>at last")])
    web.answers["/flaky"] = lambda handler: next(tries)(handler)
    assert call(browse(web, retries=2, backoff=0.0), "open", link="/flaky").endswith("|at last")


def test_an_opening_and_its_pages_as_plain_text(web: Web, make: Any) -> None:
    """Special tokens of a page are text, and control characters are none of it."""
    responder = Browser(
        web.at("/eos"), opening=True, template="{text}", calls={"open": r"(?P<link>\w)"}, actions=["open"]
    )
    env = make(responder, max_reply_tokens=60)
    observation, info = env.reset(seed=0)
    assert info["opening"] == "<eos>[2J"
    assert (observation["input_ids"] == env.unwrapped.language_model.end_token_id).sum() == 0
    steps = play(env, "x$")
    assert steps[-1][-1]["reply"] == "error: open: there is no link 'x' on this page"


def test_a_failed_server_is_no_score(web: Web, make: Any) -> None:
    responder = Browser(web.at("/down"), calls={"open": r"(?P<link>\w)"}, actions=["open"])
    env = make(responder, kl_coef=0.0)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="the environment failed"):
        *_, terminated, truncated, info = play(env, "1$")[-1]
    assert (terminated, truncated, info["finish_reason"]) == (False, True, "failed")
    assert "score" not in info
    assert "500 Internal Server Error" in info["error"]
    env.reset(seed=1)  # and goes on


def test_visits_are_bounded(web: Web) -> None:
    browser = browse(web)
    for _ in range(3 * MOST_VISITS):
        call(browser, "open", link="/pets")
    assert len(browser.state_dict()["0"]["visits"]) == MOST_VISITS


def test_further_tools_beside_the_pages(web: Web) -> None:
    browser = browse(web, tools={"calculator": "calculator"})
    assert call(browser, "calculator", expression="2 + 3") == "5"
    assert call(browser, "open", link="Pets").endswith("home")


class TestBrowser(ResponderContract):
    texts = tuple(
        json.dumps({"name": name, "arguments": arguments}).join(("<tool_call>", "</tool_call>"))
        for name, arguments in (
            ("open", {"link": 1}),
            ("find", {"text": "line 7"}),
            ("next", {}),
            ("open", {"link": 9}),
            ("back", {}),
            ("open", {"link": "/pets"}),
            ("back", {}),
        )
    )

    @pytest.fixture(autouse=True)
    def _serve(self, web: Web) -> None:
        self.web = web

    def make_responder(self) -> Browser:
        return Browser(self.web.at("/"), page_characters=100, opening=True)


def test_copies_and_branches_go_their_own_ways(web: Web) -> None:
    browser = browse(web)
    call(browser, "open", link=1)
    state = json.loads(json.dumps(browser.clone_state(0)))
    other = copy.deepcopy(browser)
    expected = call(browser, "next")
    browser.restore_state(3, state)
    assert call(browser, "next", slot=3) == call(other, "next") == expected
    assert call(browser, "next") != expected


@pytest.mark.parametrize("state", [5, {"0": 5}, {"0": {}}, {"0": {"visits": [{}]}}, {"0": {"visits": [5]}}, {"x": {}}])
def test_states_that_are_none(web: Web, state: Any) -> None:
    browser = browse(web)
    before = browser.state_dict()
    with pytest.raises((ValueError, TypeError, AttributeError)):
        browser.load_state_dict(state)
    assert browser.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"start": "site"}, "start='site' must be the address of a page"),
        ({"start": 5}, "start=5 must be the address"),
        ({"start": "file:///etc"}, "start='file:///etc'"),
        ({"hosts": "example.org"}, "hosts='example.org' must be a list"),
        ({"hosts": ["a/b"]}, "'a/b' of hosts"),
        ({"hosts": {"a": "b"}}, "'b' of hosts"),
        ({"search": "/find"}, "search='/find' must be a text with '{query}' in it"),
        ({"actions": "open"}, "actions='open' must be a list of some of open, back, find, next"),
        ({"actions": []}, r"actions=\[\]"),
        ({"actions": ["search"]}, "'search' of actions .* needs search="),
        ({"actions": ["click"]}, "'click' of actions must be one of"),
        ({"mark": 5}, "mark=5 must be a text"),
        ({"template": "x"}, "template='x' must be a text with '{text}' in it"),
        ({"opening": 1}, "opening=1 must be True or False"),
        ({"timeout": 0}, "timeout=0 must be a number of seconds > 0"),
        ({"timeout": None}, "timeout=None"),
        ({"page_characters": 0}, "page_characters=0 must be a whole number ≥ 1"),
        ({"most_bytes": 1.5}, "most_bytes=1.5"),
        ({"redirects": -1}, "redirects=-1 must be a whole number ≥ 0"),
        ({"retries": -1}, "retries=-1"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        as_responder({"name": "browser", "start": "http://127.0.0.1:1/"} | arguments)
