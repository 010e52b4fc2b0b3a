"""Drawings of episodes, against colours and layouts worked out by hand; hostile text cannot steer what shows it.

Not here: that environments fill a frame with the right numbers (``test_env.py``).
"""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgen_env.render import FRAME_SIZE, Frame, render_ansi, render_html, render_rgb, summary, tints, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
OWN_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "nav", "label", "input", "i"}
OWN_TAGS |= {"article", "p", "q", "b", "footer"}
BLUE, RED = (33, 102, 172), (178, 24, 43)
# Tokens " bad" and "." with rewards −0.25 and 1 have tints −sqrt(0.25) = −0.5 and 1. Half way from the neutral
# (247, 247, 247) to red is (212.5, 135.5, 145), which rounds half to even.
HALF_RED = (212, 136, 145)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    pieces = draw(st.lists(ANY_TEXT, max_size=6))
    series = st.lists(NUMBERS, min_size=len(pieces), max_size=len(pieces))
    return Frame(
        draw(ANY_TEXT),
        pieces,
        draw(series),
        kls=draw(st.none() | series),
        values=draw(st.none() | series),
        finish_reason=draw(st.none() | ANY_TEXT),
        score=draw(st.none() | NUMBERS),
        reward_parts=draw(st.dictionaries(ANY_TEXT, NUMBERS, max_size=2)),
    )


class TestFrame:
    def test_series_must_have_one_number_a_piece(self) -> None:
        with pytest.raises(ValueError, match="KL series has 1 numbers; expected 2, one a piece"):
            Frame("p", ["a", "b"], [0.0, 0.0], kls=[1.0])

    def test_numpy_numbers_will_do(self) -> None:
        frame = Frame("p", ["a", "b"], list(np.array([0.0, 1.0], dtype=np.float32)))
        assert render_ansi(frame).startswith("\x1b[2mp\x1b[0ma\x1b[38;2;255;255;255;48;2;33;102;172mb\x1b[0m")


class TestVisible:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain, naïve – 漢字 🙂\n", "plain, naïve – 漢字 🙂\n"),
            ("\x1b[31m", r"\x1b[31m"),
            ("\x9b31m", r"\x9b31m"),  # the one-character form of ESC [
            ("a\tb\r\x00\x7f", r"a\tb\r\x00\x7f"),
            ("\u202eevil\u2066", r"\u202eevil\u2066"),
            ("\u2028\u2029", r"\u2028\u2029"),
            ("\ud800\U000e0001", r"\ud800\U000e0001"),
            ("👩\u200d🚀", "👩\u200d🚀"),
        ],
    )
    def test_examples(self, text: str, shown: str) -> None:
        assert visible(text) == shown


class TestTints:
    def test_signed_root_of_the_share_of_the_largest(self) -> None:
        assert tints([4.0, -1.0, 0.25, 0.0]) == [1.0, -0.5, 0.25, 0.0]

    def test_nothing_to_scale(self) -> None:
        assert tints([]) == []
        assert tints([0.0, 0.0]) == [0.0, 0.0]

    def test_what_is_not_finite_gets_no_colour(self) -> None:
        assert [abs(tint) for tint in tints([math.nan, math.inf, -math.inf, -2.0])] == [0.0, 0.0, 0.0, 1.0]

    @given(st.lists(NUMBERS))
    def test_stay_in_range(self, numbers: list[float]) -> None:
        assert all(-1.0 <= tint <= 1.0 for tint in tints(numbers))


class TestSummary:
    def test_ended(self) -> None:
        parts = {"sentiment": 0.9, "length": -0.03}
        frame = Frame("p", ["a", "b"], [-0.05, 0.87], kls=[0.5, -0.25], finish_reason="eos", score=0.87)
        frame = Frame("p", frame.pieces, frame.rewards, None, frame.kls, None, "eos", 0.87, parts)
        expected = "score 0.87 (sentiment 0.9, length -0.03) · finish eos · 2 tokens · return 0.82 · KL 0.25"
        assert summary(frame) == expected

    def test_running(self) -> None:
        assert summary(Frame("p", ["a"], [0.0])) == "running · 1 token · return 0"


class TestAnsi:
    def test_codes_by_hand(self) -> None:
        frame = Frame("It is", [" bad", " as", "."], [-0.25, 0.0, 1.0])
        assert render_ansi(frame) == (
            "\x1b[2mIt is\x1b[0m"
            "\x1b[38;2;0;0;0;48;2;212;136;145m bad\x1b[0m"
            " as"
            "\x1b[38;2;255;255;255;48;2;33;102;172m.\x1b[0m"
            "\n\nrunning · 3 tokens · return 0.75"
        )

    def test_colour_ends_before_a_line_break_and_breaks_are_marked(self) -> None:
        start = "\x1b[38;2;255;255;255;48;2;33;102;172m"
        drawn = render_ansi(Frame("a\nb", ["c\nd"], [1.0])).split("\n\n")[0]
        assert drawn == f"\x1b[2ma\x1b[0m\n\x1b[2mb\x1b[0m{start}c↵\x1b[0m\n{start}d\x1b[0m"

    @settings(max_examples=100, deadline=None)
    @given(frames())
    def test_only_our_own_codes_reach_the_terminal(self, frame: Frame) -> None:
        drawn = render_ansi(frame)
        rest = re.sub(r"\x1b\[(0|2|38;2(;\d{1,3}){3};48;2(;\d{1,3}){3})m", "", drawn)
        assert all(character == "\n" or not _is_control(character) for character in rest)
        drawn.encode("utf-8")


class TestRgb:
    def test_shape_is_the_same_for_every_episode(self) -> None:
        width, height = FRAME_SIZE
        for frame in (Frame("", [], []), Frame("word " * 3000, ["x" * 5000], [1.0])):
            picture = render_rgb(frame)
            assert picture.shape == (height, width, 3)
            assert picture.dtype == np.uint8
            assert picture.flags.writeable

    def test_tokens_lie_on_their_colours_in_reading_order(self) -> None:
        picture = render_rgb(Frame("It is", [" bad", " as", "."], [-0.25, 0.0, 1.0]))
        left, right = _columns(picture, HALF_RED), _columns(picture, BLUE)
        assert left.size
        assert right.size
        assert left.max() < right.min()
        assert not _columns(picture, RED).size

    def test_long_text_scrolls_to_its_end(self) -> None:
        early = render_rgb(Frame("", ["start", *["word "] * 2000], [1.0] + [0.0] * 2000))
        late = render_rgb(Frame("", [*["word "] * 2000, "end"], [0.0] * 2000 + [1.0]))
        assert not _columns(early, BLUE).size
        assert _columns(late, BLUE).size

    def test_nothing_is_drawn_beyond_the_margins(self) -> None:
        picture = render_rgb(Frame("x" * 999, ["y" * 999, " " * 999, "z z " * 99], [1.0, -1.0, 1.0]))
        assert (picture[:, :20] == 255).all()
        assert (picture[:, -20:] == 255).all()

    @settings(max_examples=25, deadline=None)
    @given(frames())
    def test_any_text(self, frame: Frame) -> None:
        assert render_rgb(frame).shape == (*reversed(FRAME_SIZE), 3)


class _Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tips: list[str] = []
        self.styles: list[str] = []
        self.tokens: list[str] = []
        self.in_token = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "b":
            values = dict(attrs)
            assert set(values) == {"style", "data-tip"}
            self.tips.append(values["data-tip"] or "")
            self.styles.append(values["style"] or "")
            self.tokens.append("")
            self.in_token = True

    def handle_data(self, data: str) -> None:
        if self.in_token:
            self.tokens[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_token = False


class TestHtml:
    def test_tips_and_tints_by_hand(self) -> None:
        frame = Frame("It is", [" bad", "."], [-0.25, 1.0], kls=[0.04, 0.0], finish_reason="stop")
        page = _Page(render_html([frame]))
        assert page.styles == ["--reward:-0.50;--KL:1.00", "--reward:1.00;--KL:0.00"]
        assert page.tips[0] == "token 1\nreward    -0.25\nKL         0.04"
        assert page.tokens == [" bad", "."]

    def test_only_known_series_are_offered(self) -> None:
        page = render_html([Frame("p", ["a"], [1.0]), Frame("p", ["a"], [1.0], values=[0.5])])
        assert re.findall(r'id="by-(\w+)"( checked)?', page) == [("reward", " checked"), ("value", "")]
        assert re.findall(r"#by-(\w+):checked\) b { --tint: var\(--(\w+), 0\)", page) == [
            ("reward", "reward"),
            ("value", "value"),
        ]

    def test_self_contained_and_without_script(self) -> None:
        page = render_html([Frame("p", ["a"], [1.0])])
        assert "default-src 'none'" in page
        assert not re.search(r"https?:|<script|<link|<img|url\(|@import", page)
        assert "prefers-color-scheme: dark" in page

    def test_no_episodes(self) -> None:
        assert "<article>" not in render_html([])

    def test_markup_in_text_stays_text(self) -> None:
        hostile = "</p><script>alert(1)</script><b style='x' onclick=\"y\">&amp;"
        frame = Frame(hostile, [hostile], [1.0], finish_reason=hostile, score=1.0, reward_parts={hostile: 1.0})
        page = render_html([frame], title=hostile)
        assert _Page(page).tags.count("script") == 0
        assert _Page(page).tokens == [hostile]
        assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6  # title, heading, prompt, token, two in footer

    @settings(max_examples=50, deadline=None)
    @given(st.lists(frames(), max_size=3), ANY_TEXT)
    def test_text_adds_no_markup(self, episodes: list[Frame], title: str) -> None:
        source = render_html(episodes, title=title)
        source.encode("utf-8")
        page = _Page(source)
        assert page.tags.count("b") == sum(len(frame.pieces) for frame in episodes)
        assert page.tags.count("article") == page.tags.count("footer") == len(episodes)
        assert set(page.tags) <= OWN_TAGS
        assert not any(_is_control(character) for character in source.replace("\n", ""))


def test_sums_beyond_the_range_of_floats_are_drawn() -> None:
    huge = [8.907615146523955e302, 1.7976842272471693e308]
    frame = Frame(prompt="", pieces=["", ""], rewards=huge, kls=huge)
    assert "return inf" in summary(frame)
    assert "KL inf" in summary(frame)


def _is_control(character: str) -> bool:
    """By ranges, so as not to share the code's use of Unicode categories."""
    point = ord(character)
    return (
        point < 0x20
        or 0x7F <= point < 0xA0
        or 0x202A <= point <= 0x202E
        or 0x2066 <= point <= 0x2069
        or point in (0x2028, 0x2029, 0xFEFF)
        or 0xD800 <= point <= 0xDFFF
    )


def _columns(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns in which a pixel of this very colour is found."""
    return np.unique(np.nonzero((picture == colour).all(axis=-1))[1])
