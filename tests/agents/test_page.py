"""The labelling page over HTTP: what it shows and writes, without a browser and without scripts."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from benchmarks.robots import Rater, read
from textgen_env.agents.preferences.page import make_app
from textgen_env.agents.preferences.page_forms import clean_name
from textgen_env.agents.preferences.page_views import MOST_WORDS, WORDS, clipped, differing, marked, shown
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.store import PreferenceStore
from textgen_env.agents.preferences.store_records import Opinion, left_side

PAIRS = [Pair(f"prompt {i}", f"one {i}", f"two {i}") for i in range(1, 5)]
HOME = "http://127.0.0.1:8421"


def client(store: PreferenceStore, **options: Any) -> TestClient:
    return TestClient(make_app(store, **options), base_url=HOME, follow_redirects=False)


@pytest.fixture
def store(tmp_path: Path) -> PreferenceStore:
    store = PreferenceStore(tmp_path / "store.db")
    store.add(PAIRS)
    return store


# --- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("button", ["left", "right", "tie", "cannot tell"])
def test_a_choice_is_of_the_response_that_stood_there(store: PreferenceStore, button: str):
    bob = Rater(client(store), "bob")
    for number in (1, 2, 3, 4):
        page = bob.get()
        texts = {"a": f"one {number}", "b": f"two {number}"}
        assert page.number == number
        assert sorted(page.sides.values()) == sorted(texts.values())
        bob.press(page, button)
        said = store.pairs()[number - 1]
        assert said.who == "bob"
        assert said.seconds is not None
        if button in ("left", "right"):
            assert texts[said.choice or ""] == page.sides[button]
            assert texts[said.columns["left"]] == page.sides["left"]
        else:
            assert said.choice == button
    assert {p.columns["left"] for p in store.pairs()} == {"a", "b"}  # of these four
    assert bob.get().title.startswith("Nothing to compare just now")


def test_what_may_be_added_to_a_choice(store: PreferenceStore):
    ann = Rater(client(store))
    ann.press(ann.get(), "left", strength="4", comment=" warm\r\n<b>words</b> ", seconds="12.5")
    said = store.pairs()[0]
    assert (said.strength, said.columns["comment"], said.seconds) == (4, "warm\n<b>words</b>", 12.5)
    ann.press(ann.get(), "left", seconds="nonsense")
    assert (store.pairs()[1].seconds or 0) < 60  # since it was given
    page = ann.get("/choices")
    assert "warm <b>words</b>" in page.text
    assert "by 4 of 5" in page.text


def test_undo_asks_the_same_again_once(store: PreferenceStore):
    ann = Rater(client(store))
    first = ann.get()
    assert "/undo" not in first.buttons
    ann.press(first, "left")
    second = ann.get()
    assert "Saved – pair 1: left" in second.text
    answer = ann.press(second, "/undo")
    assert answer.headers["location"] == "/compare/1"
    ann.press(second, "/undo")  # the request came twice
    again = ann.get("/compare")
    assert (again.number, again.sides) == (1, first.sides)
    ann.press(again, "right")
    assert [s.number for s in store.said(withdrawn=True)] == [1, 1]
    assert ann.get().number == 2


def test_a_form_that_is_sent_twice_is_one_choice(store: PreferenceStore):
    ann = Rater(client(store))
    page = ann.get()
    ann.press(page, "left")
    ann.press(page, "left")
    assert len(store.said(withdrawn=True)) == 1
    ann.press(page, "right")  # back, and thought better of it
    assert [s.withdrawn is None for s in store.said(withdrawn=True)] == [False, True]


def test_raters_get_different_pairs_unless_overlap_is_asked_for(store: PreferenceStore):
    ann, bob = (Rater(client(store), name) for name in ("ann", "bob"))
    assert [ann.get().number, bob.get().number, ann.get().number] == [1, 2, 1]
    twice = PreferenceStore(store.path, overlap=2)
    ann, bob = (Rater(client(twice), name) for name in ("ann", "bob"))
    assert [ann.get().number, bob.get().number] == [1, 2]  # what they hold already
    ann.press(ann.get(), "left")
    bob.press(bob.get(), "left")
    assert [ann.get().number, bob.get().number] == [2, 1]


def test_judging_again_is_for_ones_own(store: PreferenceStore):
    ann, bob = (Rater(client(store), name) for name in ("ann", "bob"))
    ann.press(ann.get(), "tie")
    page = ann.get("/compare/1")
    assert "You said tie" in page.text
    ann.press(page, "left")
    assert ann.get().number == 2
    assert bob.client.get("/compare/1").status_code == 404
    assert bob.post("/choose", {"number": "1", "choice": "left"}).status_code == 409
    assert store.counts() == {"ann": 1}


def test_skipped_pairs_and_switches_that_travel(store: PreferenceStore):
    ann = Rater(client(store))
    page = ann.get()
    assert page.fields["keys"] == "on"
    page.fields.pop("keys")  # unticked
    answer = ann.press(page, "skip", marks="on")
    assert answer.headers["location"] == "/compare?marks=on&keys=off"
    page = ann.get(answer.headers["location"])
    assert page.number == 2
    assert page.fields["marks"] == "on"
    assert "keys" not in page.fields
    assert "Saved – pair 1: skipped" in page.text
    assert store.counts() == {}


def test_a_name_comes_first(store: PreferenceStore):
    nobody = Rater(client(store), None)
    for path in ("/compare", "/choices"):
        answer = nobody.client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/name")
    assert nobody.client.get("/").headers["location"] == "/name"
    for wrong in ("", "  ", "x" * 61, "a\u202eb", "a\x00b"):
        answer = nobody.post("/name", {"name": wrong})
        assert answer.status_code == 422
        assert "set-cookie" not in answer.headers
        assert "Please" in read(answer.text).text
    zoe = Rater(client(store), "  Zoë &\t<b>  ")
    assert "Rater: Zoë & <b>" in zoe.get().text
    zoe.press(zoe.get(), "left")
    assert store.counts() == {"Zoë & <b>": 1}
    assert clean_name("Zoe\u0308") == "Zoë"


def test_waiting_ends_when_there_is_something(store: PreferenceStore):
    ann = Rater(client(store))
    for _ in PAIRS:
        ann.press(ann.get(), "tie")
    assert ann.client.get("/ready").json() == {"ready": False}
    store.add([Pair("another", "x", "y")])
    assert ann.client.get("/ready").json() == {"ready": True}
    assert not PreferenceStore(store.path).said(number=5)  # asking gives nothing out
    assert Rater(client(store), None).client.get("/ready").json() == {"ready": False}


# --- what was said ----------------------------------------------------------------------------------------------------


def test_nobody_is_swayed(store: PreferenceStore):
    """What others and the model think is seen by those who have judged, and once enough have."""
    twice = PreferenceStore(store.path, overlap=2)
    twice.put_opinions({1: Opinion("m", 2.0)})
    ann, bob = (Rater(client(twice), name) for name in ("ann", "bob"))
    ann.press(ann.get(), "left", comment="because of the tone")
    for rater, sees in ((ann, True), (bob, False)):
        text = rater.get("/pairs/1").text
        assert ("because of the tone" in text, "88 %" in text) == (sees, sees)
    bob.press(bob.get(), "right")
    bob.press(bob.get(), "right")
    eve = Rater(client(twice), "eve")
    assert "because of the tone" in eve.get("/pairs/1").text


def test_disputes_agreement_and_lists(store: PreferenceStore):
    twice = PreferenceStore(store.path, overlap=2)
    for number, (a, b) in enumerate([("a", "b"), ("a", "a"), ("tie", "tie"), ("b", "b")], 1):
        twice.choose(number, "ann", a)  # type: ignore[arg-type]
        twice.choose(number, "bob", b, seconds=3)  # type: ignore[arg-type]
    twice.put_opinions({2: Opinion("round-1", -1.0), 4: Opinion("round-1", -1.0)})
    ann = Rater(client(twice))
    page = ann.get("/disputed")
    assert "1 on which raters differ, 1 on which they and the reward model do" in page.text
    assert page.text.index("Pair 1") < page.text.index("Pair 2")
    assert "Pair 4" not in page.text
    sides = [left_side(1, "ann"), left_side(2, "ann")]
    verdicts = re.findall(r"(ann|bob) (left|right)", page.text.replace(" upper", "").replace(" lower", ""))
    of = {"a": "left", "b": "right"} if sides[0] == "a" else {"a": "right", "b": "left"}
    assert verdicts[:2] == [("ann", of["a"]), ("bob", of["b"])]
    text = ann.get("/raters").text
    assert "Krippendorff’s α0.67" in text  # 1 − (2/8) / ((64 − 9 − 9 − 4)/56)
    assert "50 % ± 50" in text


def test_long_lists_come_in_parts(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db")
    store.add([Pair(f"p{i}", "x", "y") for i in range(120)])
    for number in range(1, 121):
        store.choose(number, "ann", "a")
    ann = Rater(client(store))
    found = [re.findall(r"Pair (\d+)", ann.get(f"/choices?page={page}").text) for page in ("1", "3", "9", "x")]
    assert [(numbers[0], numbers[-1]) for numbers in found] == [("120", "71"), ("20", "1"), ("20", "1"), ("120", "71")]


def test_a_replay_shows_all_and_takes_nothing(store: PreferenceStore):
    store.choose(1, "ann", "b", comment="truer")
    store.choose(1, "ann", "tie")
    store.put_opinions({1: Opinion("round-2", -2.0, 0.25)})
    eve = Rater(client(store, replay=True, title="a run"), None)
    assert eve.client.get("/").headers["location"] == "/pairs/1"
    text = eve.get("/pairs/1").text
    assert all(part in text for part in ("a run", "truer", "taken back", "tie", "88 %", "2.00 ± 0.25"))
    assert "Judge again" not in text
    for path, form in (("/choose", {"number": "2", "choice": "left"}), ("/undo", {"last": "1"})):
        eve.client.cookies.set("rater", "ann")
        assert eve.post(path, form).status_code == 403
    assert eve.client.get("/compare").status_code == 403
    assert len(store.said()) == 1


# --- texts ------------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}\u202eevil\x00\x1b[31m]]>&amp;"


def test_whatever_a_model_writes_is_shown_as_text(tmp_path: Path):
    """In all places: no element of a page comes from a text."""
    store = PreferenceStore(tmp_path / "store.db", overlap=1)
    bad = HOSTILE
    store.add([Pair([{"role": bad, "content": bad}], bad + "1", bad + "2", columns={"references": [bad]})])
    store.add([Pair("plain", "x", "y")])
    ann = Rater(client(store, title=bad), "<i>ann</i>")
    page = ann.get()
    assert page.sides["left"][:-1] == bad.replace("\u202e", "\\u202e").replace("\x00", "\\x00").replace("\x1b", "\\x1b")
    ann.press(page, "left", comment=bad)
    store.choose(1, bad.replace("\x00", ""), "b", comment=bad)
    store.put_opinions({1: Opinion(bad, 1.0)})
    tags = re.compile(r"<(script|img|i|b)\b[^>]*>")
    for path in ("/compare", "/compare/1", "/choices", "/disputed", "/raters", "/pairs/1", "/pairs/77", "/name"):
        html = ann.client.get(path).text
        found = {tag[0] for tag in tags.finditer(html) if not tag[0].startswith('<script src="/page.js?')} - {"<b>"}
        assert not found, path
        assert "{{" not in html.replace("{{7*7}}", "")
        assert "\u202e" not in html


def test_a_hundred_kilobytes_are_shown_whole(tmp_path: Path):
    store = PreferenceStore(tmp_path / "store.db")
    long = ["word " * 20_000 + "end", "Я" * 100_000]
    store.add([Pair("p", *long), Pair("q", "a " * 50_000, "a " * 50_001)])
    ann = Rater(client(store))
    page = ann.get()
    assert sorted(page.sides.values()) == sorted(long)
    ann.press(page, "left")
    assert sorted(map(len, ann.get().sides.values())) == [100_000, 100_002]


def test_differences_by_hand():
    cases = [
        ("the cat sat", "the dog sat", ([False] * 2 + [True] + [False] * 2,) * 2),
        ("a b", "a b c", ([False] * 3, [False] * 3 + [True] * 2)),
        ("日本語", "日語", ([False, True, False], [False, False])),
        ("don't", "", ([True] * 3, [])),
    ]
    for first, second, expected in cases:
        assert differing(WORDS.findall(first), WORDS.findall(second)) == expected
    long = ["w"] * MOST_WORDS
    flags = differing([*long, "x", "y"], [*long, "z", "y"])
    assert [i for i, flag in enumerate(flags[0]) if flag] == [MOST_WORDS]
    assert marked(["a", " <b>", "c"], [False, True, True]) == 'a<span class="d"> &lt;b&gt;c</span>'
    assert str(marked(WORDS.findall("any\n text"), [True] * 3)).count("span") == 2


def test_differing_leaves_a_longest_common_subsequence():
    """Against brute force over all subsequences of short texts."""

    def common(first: str, second: str) -> int:
        return max(
            len(some)
            for size in range(len(first) + 1)
            for some in itertools.combinations(first, size)
            if any(some == other for other in itertools.combinations(second, size))
        )

    for first, second in itertools.product(["", "ab", "abcab", "cabba", "bbbb"], repeat=2):
        flags = differing(list(first), list(second))
        kept = [
            "".join(c for c, f in zip(text, flag, strict=True) if not f)
            for text, flag in zip((first, second), flags, strict=True)
        ]
        assert kept[0] == kept[1]
        assert len(kept[0]) == common(first, second)


def test_right_to_left_marks_stay_and_overrides_do_not():
    assert shown("א\u200fב\tג\u202eד\u2066\r") == "א\u200fב\tג\\u202eד\\u2066\\r"
    assert clipped("one\ntwo  three", 9) == "one two …"
    assert clipped("one\ntwo", 9) == "one two"


def test_an_answer_says_where_a_text_begins(store: PreferenceStore):
    """For people who hear the page, or read from right to left."""
    html = client(store).get("/name").text
    assert '<html lang="en">' in html
    ann = Rater(client(store))
    html = ann.client.get("/compare").text
    for label in re.findall(r'<label for="([\w-]+)"', html):
        assert f'id="{label}"' in html
    inputs = [tag for tag in re.findall(r"<(?:input|textarea)\b[^>]*>", html) if 'type="hidden"' not in tag]
    assert len(inputs) == 8
    for tag in inputs:
        (name,) = re.findall(r'id="([\w-]+)"', tag)
        assert f'<label for="{name}"' in html
    assert html.count('class="text" dir="auto"') == 3
    assert json.dumps("Your choice") in html
