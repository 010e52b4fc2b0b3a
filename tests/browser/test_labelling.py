"""Labelling in a real browser: by mouse, by keys, without scripts, two at once, on a phone, with hostile texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.store import PreferenceStore

Visit = Callable[..., Any]
PAIRS = [Pair(f"prompt {i}", f"the first answer of {i}", f"the second answer of {i}") for i in range(1, 9)]


@pytest.fixture
def store(tmp_path: Path) -> PreferenceStore:
    store = PreferenceStore(tmp_path / "store.db")
    store.add(PAIRS)
    return store


def at(page: Any, number: int) -> None:
    """Wait for a pair, and for the script."""
    page.get_by_text(re.compile(rf"Pair {number} ·")).wait_for()
    page.wait_for_load_state()


def sides(page: Any) -> list[str]:
    """The texts of both responses, from left to right."""
    return [each.inner_text() for each in page.locator(".card .text").all()]


def chosen(store: PreferenceStore, number: int) -> str | None:
    """What was said of a pair: the text of the response, or "tie", …"""
    pair = next(p for p in store.pairs() if p.prompt == f"prompt {number}")
    return {"a": pair.a, "b": pair.b}.get(pair.choice or "", pair.choice)


BUTTONS = ["Left is better", "Right is better", "Tie", "Cannot tell"]
KEYS = ["ArrowLeft", "ArrowRight", "ArrowDown", "c"]


@pytest.mark.parametrize("by", ["mouse", "keys", "no script"])
def test_the_whole_flow(store: PreferenceStore, serve: Callable[..., str], visit: Visit, by: str):
    """Each choice, a skip, what was taken back, and the end; the same by mouse, by keys and without scripts."""
    page = visit(serve(store), java_script_enabled=by != "no script")

    def press(button: str, key: str) -> None:
        if by == "keys":
            page.keyboard.press(key)
        else:
            page.get_by_role("button", name=button).click()

    seen = {}
    for number, (button, key) in enumerate(zip(BUTTONS, KEYS, strict=True), 1):
        at(page, number)
        seen[number] = sides(page)
        press(button, key)
    at(page, 5)
    assert [chosen(store, n) for n in (1, 2, 3, 4)] == [seen[1][0], seen[2][1], "tie", "cannot tell"]
    press("Undo", "u")
    at(page, 4)
    assert sides(page) == seen[4]
    assert chosen(store, 4) is None
    press("Left is better", "ArrowLeft")
    at(page, 5)
    assert chosen(store, 4) == seen[4][0]
    press("Skip", "s")
    for number in (6, 7, 8, 5):  # what was skipped comes last
        at(page, number)
        press("Tie", "t")
    page.get_by_role("heading", name="Nothing to compare just now").wait_for()
    assert store.counts() == {"ann": 8}
    assert all(0 < (p.seconds or 0) < 60 for p in store.pairs())
    store.add([Pair("prompt 9", "x", "y")])
    if by == "no script":
        page.get_by_role("link", name="Look now").click()
    at(page, 9)  # by itself
    if by == "no script":
        page.get_by_role("radio", name="2").focus()
        page.keyboard.press("Enter")  # which sends the form, and must choose nothing
        at(page, 9)
        assert store.counts() == {"ann": 8}


def test_only_keys_are_needed(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    """The name, strength, a comment with letters that are keys, and a choice by Tab and Enter."""
    page = visit(serve(store), None)
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    at(page, 1)
    page.keyboard.press("4")
    assert page.get_by_role("radio", name="4").is_checked()
    page.get_by_label("Comment").focus()
    page.keyboard.type("such a dull text")  # s, u, c, d, t would be keys
    page.keyboard.press("Enter")
    page.keyboard.type("2")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    at(page, 2)
    pair = store.pairs()[0]
    assert (pair.columns["strength"], pair.columns["comment"]) == (4, "such a dull text\n2")
    page.get_by_role("radio", name="2").focus()
    page.keyboard.press("Enter")  # Enter in a field chooses nothing
    page.keyboard.press("ArrowRight")  # arrows move in the scale
    assert page.get_by_role("radio", name="3").is_checked()
    assert store.counts() == {"ann": 1}
    page.get_by_role("button", name="Tie").focus()
    page.keyboard.press("Enter")
    at(page, 3)
    assert chosen(store, 2) == "tie"


def test_shortcuts_can_be_switched_off_and_stay_off(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    page = visit(serve(store))
    page.get_by_label("Keyboard shortcuts").uncheck()
    for key in ("ArrowLeft", "t", "s", "d"):
        page.keyboard.press(key)
    assert store.said() == []
    page.get_by_role("button", name="Tie").click()
    at(page, 2)
    page.keyboard.press("ArrowLeft")
    assert not page.get_by_label("Keyboard shortcuts").is_checked()
    assert store.counts() == {"ann": 1}


def test_a_key_that_is_held_down_chooses_once(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    page = visit(serve(store))
    page.keyboard.down("ArrowLeft")
    for _ in range(3):
        page.keyboard.down("ArrowLeft")  # what a held key sends
    at(page, 2)
    page.keyboard.down("ArrowLeft")
    page.keyboard.up("ArrowLeft")
    at(page, 2)
    page.get_by_role("button", name="Left is better").dblclick()
    at(page, 3)
    assert len(store.said(withdrawn=True)) == 2


def test_differences_are_marked_on_demand(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    page = visit(serve(store))
    marks = page.locator(".card .d")
    assert sorted(marks.all_inner_texts()) == ["first", "second"]

    def colours() -> list[str]:
        return [each.evaluate("e => getComputedStyle(e).backgroundColor") for each in marks.all()]

    plain = colours()
    page.keyboard.press("d")
    assert all(now != before for now, before in zip(colours(), plain, strict=True))
    page.keyboard.press("ArrowLeft")
    at(page, 2)
    assert page.get_by_label("Mark differences").is_checked()  # it stays for the next pair
    page.get_by_label("Mark differences").uncheck()
    assert colours() == plain


def test_two_raters_at_once(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    address = serve(store)
    ann, bob = visit(address, "ann"), visit(address, "bob")
    at(ann, 1)
    at(bob, 2)
    for _ in range(4):
        for page in (ann, bob):
            page.keyboard.press("ArrowLeft")
            page.get_by_text("Saved").wait_for()
            page.locator(".headline, .quiet").wait_for()
        ann.wait_for_timeout(50)
    for page in (ann, bob):
        page.get_by_role("heading", name="Nothing to compare just now").wait_for()
    assert store.counts() == {"ann": 4, "bob": 4}
    assert len(store.said(withdrawn=True)) == 8


def test_a_reload_in_the_middle_shows_the_same(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    page = visit(serve(store))
    before = sides(page)
    page.get_by_label("Comment").fill("half a tho")
    page.wait_for_timeout(300)
    page.reload()
    at(page, 1)
    assert sides(page) == before
    page.keyboard.press("ArrowRight")
    at(page, 2)
    assert chosen(store, 1) == before[1]
    assert (store.pairs()[0].seconds or 0) > 0.3  # since the pair was given, not since the reload
    page.go_back()
    page.go_forward()
    page.reload()
    at(page, 2)
    assert store.counts() == {"ann": 1}


def test_the_page_goes_on_after_the_server_was_away(tmp_path: Path, store: PreferenceStore, visit: Visit, serve: Any):
    """An error page of the browser's, then back: the form is sent again, and counts once."""
    address = serve(store)
    page = visit(address)
    page.route("**/choose", lambda route: route.abort())
    page.get_by_role("button", name="Tie").click()
    page.wait_for_timeout(200)
    page.unroute("**/choose")
    page.goto(address + "/compare")
    at(page, 1)
    page.keyboard.press("ArrowDown")
    at(page, 2)
    assert len(store.said(withdrawn=True)) == 1


@pytest.fixture
def hostile(tmp_path: Path) -> PreferenceStore:
    store = PreferenceStore(tmp_path / "hostile.db", overlap=1)
    script = "<script>document.title='owned';alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    store.add(
        [
            Pair([{"role": "user<b>", "content": script}], f"{script} one", f"</div></form>{script}\"'>"),
            Pair("bidi", "abc \u202edlrow\u202c \u2067x\u2069", "שלום (עולם)! 123\nLatin line"),
            Pair("long", "word " * 20_000, "unbroken" * 12_500),
        ]
    )
    return store


def test_hostile_texts_do_nothing_but_be_read(hostile: PreferenceStore, serve: Callable[..., str], visit: Visit):
    address = serve(hostile)
    page = visit(address)
    at(page, 1)
    assert any("alert(1)</script>" in text for text in sides(page))
    assert page.title().startswith("Pair 1:")
    assert page.locator(".card img, .card svg, .card script, main script").count() == 0
    page.keyboard.press("ArrowLeft")
    at(page, 2)
    texts = sides(page)
    assert any("\\u202edlrow\\u202c" in text for text in texts)
    hebrew = page.locator(".card .text", has_text="שלום")
    assert hebrew.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator(".card .text", has_text="abc").evaluate("e => getComputedStyle(e).direction") == "ltr"
    assert page.locator("h1").evaluate("e => getComputedStyle(e).direction") == "ltr"
    page.keyboard.press("ArrowLeft")
    at(page, 3)
    assert sorted(map(len, sides(page))) == [100_000, 100_000]
    assert page.locator("html").evaluate("e => e.scrollWidth") <= 1200
    page.mouse.wheel(0, 9000)
    button = page.get_by_role("button", name="Left is better")
    box = button.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 760  # in reach however long the texts are
    button.click()
    page.get_by_role("heading", name="Nothing to compare just now").wait_for()
    for path in ("/choices", "/raters", "/disputed", "/pairs/1", "/pairs/2", "/pairs/3"):
        page.goto(address + path)
        assert page.locator("main img, main script").count() == 0


def test_on_a_phone(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    address = serve(store)
    page = visit(address, viewport={"width": 360, "height": 700}, has_touch=True, is_mobile=True)
    upper, lower = (each.bounding_box() for each in page.locator(".card").all())
    assert upper["y"] + upper["height"] <= lower["y"]
    seen = sides(page)
    for name in ("Upper is better", "Lower is better", "Tie", "Cannot tell", "Skip"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["height"] >= 44  # a finger's width
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 700  # without scrolling
    page.get_by_role("button", name="Lower is better").tap()
    at(page, 2)
    assert chosen(store, 1) == seen[1]
    for path in ("/compare", "/choices", "/raters", "/disputed", "/pairs/1"):
        page.goto(address + path)
        assert page.locator("html").evaluate("e => e.scrollWidth") <= 360


def test_what_a_screen_reader_is_told(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    """Names and roles, and that the focus is at the beginning of what is new."""
    address = serve(store)
    page = visit(address)
    assert page.locator("main").count() == 1
    assert page.get_by_role("heading", level=1).evaluate("e => e === document.activeElement")
    for role, name in [
        ("region", "Prompt"),
        ("region", "Left response"),
        ("region", "Right response"),
        ("group", "Your choice"),
        ("group", re.compile("How much better")),
        ("textbox", re.compile("Comment")),
        ("checkbox", re.compile("Mark differences")),
        ("progressbar", re.compile(r"Pair 1 · 0 of 8 done")),
        ("navigation", "Pages"),
        ("link", "All my choices"),
    ]:
        assert page.get_by_role(role, name=name).count() == 1, name
    page.keyboard.press("ArrowLeft")
    at(page, 2)
    status = page.get_by_role("status")
    status.get_by_text("Saved – pair 1").wait_for()
    assert status.evaluate("e => e.closest('form') !== null")
    page.keyboard.press("Tab")
    assert page.get_by_label("Mark differences").evaluate("e => e === document.activeElement")
    page.goto(address + "/name")
    page.get_by_label("Your name").fill("x" * 3 + "\u200b")
    page.get_by_role("button", name="Begin").click()
    assert "invisible" in page.get_by_role("alert").inner_text()
    field = page.get_by_label("Your name")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("aria-describedby") == "problem"


def contrast(page: Any, selector: str) -> float:
    """WCAG's ratio of a text and what lies behind it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = page.locator(selector).first.evaluate(
        """e => { let b = e; while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
                  return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor]; }"""
    )
    light, dark = sorted(map(luminance, found), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(
    store: PreferenceStore, serve: Callable[..., str], visit: Visit, scheme: str
):
    """4.5 to 1 (WCAG 2.2, 1.4.3)."""
    page = visit(serve(store), color_scheme=scheme)
    page.keyboard.press("d")
    for selector in (".card .text", ".card .d", ".card h2", ".prompt .text", "button.main", ".choices button >> nth=1"):
        assert contrast(page, selector) >= 4.5, selector
    for selector in (".progress label", ".top nav a >> nth=1", ".switch-label", ".who"):
        assert contrast(page, selector) >= 4.5, selector


def test_a_finished_run_is_replayed(store: PreferenceStore, serve: Callable[..., str], visit: Visit):
    from textgen_env.agents.preferences.store_records import Opinion

    for number in range(1, 9):
        store.choose(number, "ann", "a" if number % 2 else "tie", comment="shorter", left="a")
    store.put_opinions({number: Opinion("round-2", -1.5, 0.1) for number in range(1, 9)})
    page = visit(serve(store, replay=True), None)
    page.get_by_role("heading", name="Pair 1").wait_for()
    page.wait_for_load_state()
    left = page.get_by_role("region", name="Left response").inner_text()
    ann, model = page.locator(".opinions > li").all_inner_texts()
    assert ("left is better" in ann) == ("the first answer" in left)
    assert ("left is better" in model) == ("the second answer" in left)
    assert "82 %" in model  # σ(1.5)
    for number in range(2, 9):
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name=f"Pair {number}").wait_for()
        page.wait_for_load_state()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Pair 7").wait_for()
    page.get_by_role("link", name="Disputed pairs").click()
    assert "0 on which raters differ, 4 on which they and the reward model do" in page.locator("main").inner_text()
