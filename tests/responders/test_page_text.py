"""What pages read like, against texts written by hand; and pages that were made to do harm."""

from __future__ import annotations

import time
import tracemalloc
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("inscriptis", reason="the layout is the extra 'tools'")

from textgen_env.responders.http_client import Document, Refused
from textgen_env.responders.page_text import MOST_CHARACTERS, MOST_LINKS, Page, read_page

HERE = "http://site/folder/page"


def read(content: str | bytes, kind: str = "text/html", charset: str = "utf-8", **more: Any) -> Page:
    content = content.encode() if isinstance(content, str) else content
    return read_page(Document(HERE, kind, charset, content), **more)


def test_a_page() -> None:
    page = read("""<!doctype html><html><head><title> A
        title </title><style>p {color: red}</style><script>alert("no")</script></head><body>
        <h1>Heading</h1><p>Some   <b>bold</b> text with <a href="other">a
        link</a>, and <a href="/top">another</a>.</p><!-- a remark -->
        <ul><li>one</li><li>two</li></ul>
        <table><tr><th>name</th><th>age</th></tr><tr><td>Anna</td><td>5</td></tr></table>
        <pre>as  it
  is</pre><noscript>no script</noscript></body></html>""")
    assert page.title == "A title"
    assert page.text.splitlines() == [
        "Heading",
        "",
        "Some bold text with [1] a link, and [2] another.",
        "",
        "  * one",
        "  * two",
        "name | age",
        "Anna | 5",
        "as  it",
        "  is",
        "no script",
    ]
    assert [(link.text, link.address) for link in page.links] == [
        ("a link", "http://site/folder/other"),
        ("another", "http://site/top"),
    ]


def test_links_lead_somewhere() -> None:
    page = read(
        '<base href="http://site/base/"><a href="mailto:a@b.c">mail</a> <a href="javascript:alert(1)">no</a> '
        '<a name="x">anchor</a> <a href="http://[">broken</a> <a href=" x ">yes</a> <a href="#part">part</a> '
        '<a href="https://other.example/é">far</a>'
    )
    assert page.text == "mail no anchor broken [1] yes [2] part [3] far"
    wanted = ["http://site/base/x", "http://site/base/#part", "https://other.example/é"]
    assert [link.address for link in page.links] == wanted
    assert read('<a href="/x">go</a>', mark="").text == "go"
    assert read('<a href="/x">go</a>', mark="<{number}>").text == "<1>go"


def test_what_is_hidden_is_not_read() -> None:
    body = "<p hidden>a<p style='color: red; DISPLAY : none'>b<i>c</i><p style='visibility:hidden'>d<p>e"
    page = read(f"{body}<div style='display:none'><a href=/x>f</a></div>")
    assert (page.text, page.links) == ("e", ())


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        ("<p>naïve 日本 🙂".encode(), "utf-8", "naïve 日本 🙂"),
        ("<p>naïve".encode("latin-1"), "iso-8859-1", "naïve"),
        ("<meta charset=windows-1251><p>привет".encode("cp1251"), "", "привет"),
        ("<meta charset='shift_jis'><p>日本".encode("shift_jis"), "", "日本"),
        (b"<p>a\xff\xfeb\xc3", "utf-8", "a\ufffd\ufffdb\ufffd"),
        (b"<p>ab", "zlib_codec", "ab"),
        (b"<p>ab", "iso-8859-77", "ab"),
        (b"<p>ab", "punycode", "ab"),
        (b"<meta charset=base64><p>ab", "", "ab"),
        ("<?xml version='1.0' encoding='latin-1'?><p>é".encode(), "", "é"),
    ],
)
def test_charsets(content: bytes, charset: str, text: str) -> None:
    assert read(content, charset=charset).text == text


def test_control_characters_are_left_out() -> None:
    page = read("<title>a\x1b[2J\x00</title><p>b\x00\x1b]0;x\x07\x85&#27;&#0;&#155;&#xD800;c\r\nd\te")
    assert page.title == "a[2J"
    assert not [letter for letter in page.text if unicodedata.category(letter) in ("Cc", "Cs")]
    assert page.text.startswith("b]0;x")
    assert read("a\x00b\x1bc\r\nd\re\tf", kind="text/plain").text == "abc\nd\ne   f"


def test_other_kinds() -> None:
    assert read('{"a": 1}', kind="application/json").text == '{"a": 1}'
    assert read("<b>x", kind="text/plain") == Page(HERE, "", "<b>x")
    for kind in ("image/png", "application/pdf", "application/octet-stream", "x" * 500):
        with pytest.raises(Refused, match="not a page of text"):
            read("x", kind=kind)


@pytest.mark.parametrize("content", ["", " ", "<", "<!-- -->", "<html>", "<frameset><frame src=x>", "<title>"])
def test_pages_of_nothing(content: str) -> None:
    assert read(content).text in ("", "<")


N = 500_000
HOSTILE = {
    "deep": "<div>" * (N // 5),
    "deep tables": "<table><tr><td>" * (N // 15),
    "deep lists": "<ul><li>x" * (N // 9),
    "a wide cell in many rows": "<table><tr><td>" + "x" * 10_000 + "<td>y" + "<tr><td>z<td>w" * (N // 15),
    "many cells": "<table><tr>" + "<td>x" * (N // 5),
    "many links": "<a href=x>y</a>" * (N // 15),
    "nested links": "<a href=x><div>" * (N // 15),
    "margins": "<p style='margin-top: 99999999em; padding-left: 99999999em'>x",
    "a line": "x" * N,
    "lines": "<pre>" + "\n" * N + "x",
    "tabs": "<pre>" + "\t" * N + "x",
    "entities": "&amp;" * (N // 5),
    "unclosed": "<" * N,
    "attributes": "<p " + "a=1 " * (N // 4) + ">x",
    "many styles": "<p style='" + "display" * (N // 7) + "'>x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_cost_little(name: str) -> None:
    begun = time.process_time()
    tracemalloc.start()
    page = read(HOSTILE[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(page.text) <= MOST_CHARACTERS
    assert len(page.links) <= MOST_LINKS
    assert peak < 200_000_000
    assert time.process_time() - begun < 20  # traced, and perhaps on a slow machine


PIECES = st.sampled_from(
    [*"<>&;/='\" \n\t\x00\x1bé🙂ab", "<a href=", "</a>", "<table>", "<tr>", "<td>", "<p>", "<title>", "<base href=//>"]
    + ["&#", "&amp;", "<!--", "-->", "<![CDATA[", "<?", "<svg>", "<math>", "<select>", "<a href=/x>", "<li>", "<pre>"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join), st.binary(max_size=40))
def test_any_bytes_are_a_page(text: str, noise: bytes) -> None:
    page = read(text.encode() + noise)
    assert page == read(text.encode() + noise)
    assert not {letter for letter in page.text + page.title if unicodedata.category(letter) in ("Cc", "Cs")} - {"\n"}
    assert all(link.address.startswith(("http://", "https://")) for link in page.links)
    numbers = [f"[{number}]" for number in range(1, len(page.links) + 1)]
    assert [number for number in numbers if number not in page.text] == [] or "<" in text
