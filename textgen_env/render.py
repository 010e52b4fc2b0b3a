"""Draw episodes: tokens coloured by what they earned, as terminal text, as a picture and as an HTML page.

Here: pure functions of a :class:`Frame`. Not here: collecting what a frame holds (the environment does) and
deciding where the drawing goes. No torch, no gymnasium; Pillow is needed for pictures alone.

The text is a model's and therefore untrusted: whatever could steer a terminal or a browser is drawn as a visible
escape (:func:`visible`).
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRAME_SIZE", "Frame", "render_ansi", "render_html", "render_rgb", "summary", "tints", "visible"]

FRAME_SIZE = (960, 540)
"""Width and height of a picture in pixels: the same for every step, as video writers ask."""

RGB = tuple[int, int, int]

# The ends and the middle of ColorBrewer's RdBu, a diverging scale that colour-blind readers can tell apart.
_NEGATIVE: RGB = (178, 24, 43)
_NEUTRAL: RGB = (247, 247, 247)
_POSITIVE: RGB = (33, 102, 172)
_BLACK: RGB = (0, 0, 0)
_WHITE: RGB = (255, 255, 255)
_GREY: RGB = (120, 120, 120)

_FONT_SIZE, _MARGIN, _LINE_HEIGHT = 17, 24, 26


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to draw of one episode, running or ended.

    Attributes:
        prompt: Text of the prompt.
        pieces: Text of each response token, or of what the environment wrote in between; T of them.
        rewards: Reward of each token (T,).
        ref_log_probs: Log probability of each token under the reference model, in nats (T,), if known.
        kls: KL of policy and reference at each token, in nats (T,), if known.
        values: Value estimate before each token (T,), if known.
        advantages: By how much each token changed what is to be expected (T,), if known.
        finish_reason: "eos", "stop", "length", or ``None`` while the episode runs.
        score: Score of the whole response, once there is one.
        reward_parts: Named parts that add up to the score.
        by_agent: Whether each piece is a token of the agent's (T,); ``None`` where all are. The numbers of the others
            are not looked at.

    Raises:
        ValueError: A series has not one number a piece.
    """

    prompt: str
    pieces: Sequence[str]
    rewards: Sequence[float]
    ref_log_probs: Sequence[float] | None = None
    kls: Sequence[float] | None = None
    values: Sequence[float] | None = None
    finish_reason: str | None = None
    score: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    by_agent: Sequence[bool] | None = None
    advantages: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, numbers in self.series().items():
            if len(numbers) != len(self.pieces):
                raise ValueError(f"{name} series has {len(numbers)} numbers; expected {len(self.pieces)}, one a piece")
        if self.by_agent is not None and len(self.by_agent) != len(self.pieces):
            raise ValueError(f"by_agent has {len(self.by_agent)} entries; expected {len(self.pieces)}, one a piece")

    @property
    def agent_pieces(self) -> list[int]:
        """Which pieces are the agent's tokens, in order."""
        return [at for at in range(len(self.pieces)) if self.by_agent is None or self.by_agent[at]]

    def tints(self, numbers: Sequence[float]) -> list[float | None]:
        """The colour of each piece (:func:`tints`); ``None`` where the environment wrote it."""
        own = self.agent_pieces
        colours = dict(zip(own, tints([numbers[at] for at in own]), strict=True))
        return [colours.get(at) for at in range(len(self.pieces))]

    def series(self) -> dict[str, Sequence[float]]:
        """The per-token numbers that are known, by the name shown to readers."""
        known = {"reward": self.rewards, "KL": self.kls, "reference": self.ref_log_probs}
        known |= {"value": self.values, "advantage": self.advantages}
        return {name: numbers for name, numbers in known.items() if numbers is not None}


def visible(text: str) -> str:
    r"""``text`` with everything that is obeyed instead of shown turned into something shown.

    Control characters (ESC becomes ``\x1b``), bidirectional overrides and invisible format characters, line
    separators, lone surrogates, private and unassigned code points become Python's backslash escapes. Newlines stay,
    and so do the two joiners without which emoji and Indic scripts fall apart.
    """
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in "\n\u200c\u200d":
        return character
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode("ascii")
    return character


def tints(numbers: Sequence[float]) -> list[float]:
    """Strength of each number's colour in [−1, 1]: sign(x) · sqrt(|x| / max |x|).

    The root keeps per-token KL penalties visible beside a score that is a hundred times larger. What is not finite
    gets no colour.
    """
    sizes = [abs(number) if math.isfinite(number) else 0.0 for number in numbers]
    largest = max(sizes, default=0.0)
    if largest == 0.0:
        return [0.0] * len(sizes)
    return [math.copysign(math.sqrt(size / largest), number) for size, number in zip(sizes, numbers, strict=True)]


def summary(frame: Frame) -> str:
    """The line below a drawing: score and its parts, how the episode ended, length, return and sum of KL."""
    facts = []
    if frame.score is not None:
        parts = ", ".join(f"{visible(name)} {part:.3g}" for name, part in frame.reward_parts.items())
        facts.append(f"score {frame.score:.3g}" + (f" ({parts})" if parts else ""))
    if frame.finish_reason is not None:
        facts.append(f"finish {visible(frame.finish_reason)}")
    elif frame.score is None:
        facts.append("running")
    own = frame.agent_pieces
    facts.append(f"{len(own)} token{'' if len(own) == 1 else 's'}")
    facts.append(f"return {sum(frame.rewards[at] for at in own):.3g}")
    if frame.kls is not None:
        facts.append(f"KL {sum(frame.kls[at] for at in own):.3g}")
    return " · ".join(facts).replace("\n", "↵")


def _colours(tint: float) -> tuple[RGB, RGB]:
    """Background and legible text colour for a tint."""
    pole = _POSITIVE if tint > 0 else _NEGATIVE
    background = tuple(round(n + abs(tint) * (p - n)) for n, p in zip(_NEUTRAL, pole, strict=True))
    red, green, blue = background
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return (red, green, blue), _WHITE if luma < 140 else _BLACK


def _marked(piece: str) -> str:
    """A token's text with its line breaks marked: they are actions too."""
    return visible(piece).replace("\n", "↵\n")


# --- terminal -----------------------------------------------------------------------------------------------------


def render_ansi(frame: Frame, *, by: str = "reward") -> str:
    """The episode as text with 24-bit colour codes: prompt dim, each token on its number's colour, summary below.

    Red is negative, blue positive, exactly 0 the terminal's own colours. What the environment wrote is dim and italic.

    Args:
        frame: the episode.
        by: which of the frame's series is shown ("KL", "value", …); a ValueError says which there are.
    """
    if by not in (series := frame.series()):
        raise ValueError(f"by={by!r} must be one of {', '.join(series)}, which are known of this episode")
    response = "".join(
        _ansi_token(_marked(piece), tint) if tint is not None else _ansi_lines("\x1b[2;3m", visible(piece))
        for piece, tint in zip(frame.pieces, frame.tints(series[by]), strict=True)
    )
    prompt = _ansi_lines("\x1b[2m", visible(frame.prompt))
    return f"{prompt}{response}\n\n{summary(frame)}"


def _ansi_token(text: str, tint: float) -> str:
    if tint == 0.0:
        return text
    background, ink = _colours(tint)
    return _ansi_lines("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*ink, *background), text)


def _ansi_lines(style: str, text: str) -> str:
    """Text in a style, which ends before each line break: terminals would paint the rest of the line."""
    return "\n".join(f"{style}{line}\x1b[0m" if line else "" for line in text.split("\n"))


# --- picture ------------------------------------------------------------------------------------------------------


def render_rgb(frame: Frame) -> NDArray[np.uint8]:
    """The episode as a picture of fixed size: uint8 (height, width, 3), see :data:`FRAME_SIZE`.

    Text that needs more lines than there is room for scrolls: the last lines are shown. Characters outside the font
    (DejaVu Sans where it is installed, else the one inside Pillow) appear as boxes.

    Raises:
        ImportError: Pillow is not installed.
    """
    from PIL import Image, ImageDraw, ImageFont  # optional: text modes do without

    try:
        font: Any = ImageFont.truetype("DejaVuSans.ttf", _FONT_SIZE)
    except OSError:
        font = ImageFont.load_default(_FONT_SIZE)
    width, height = FRAME_SIZE
    picture = Image.new("RGB", FRAME_SIZE, _WHITE)
    canvas = ImageDraw.Draw(picture)
    footer_top = height - _MARGIN - _LINE_HEIGHT
    room = (footer_top - _MARGIN) // _LINE_HEIGHT

    runs = list(_lay_out(frame, font, width - 2 * _MARGIN))
    hidden = max(0, runs[-1][0] + 1 - room) if runs else 0
    for line, left, right, text, background, ink in runs:
        x, y = _MARGIN + left, _MARGIN + (line - hidden) * _LINE_HEIGHT
        if line >= hidden:
            if background is not None:
                canvas.rectangle((x, y, max(x, _MARGIN + right - 1), y + _LINE_HEIGHT - 3), fill=background)
            canvas.text((x, y + 2), text, font=font, fill=ink)
    canvas.line((_MARGIN, footer_top, width - _MARGIN, footer_top), fill=_GREY)
    canvas.text((_MARGIN, footer_top + 8), summary(frame), font=font, fill=_BLACK)
    return np.asarray(picture, dtype=np.uint8).copy()


Run = tuple[int, float, float, str, RGB | None, RGB]
"""A piece of text on one line: line, left edge, right edge, text, background, text colour."""


def _lay_out(frame: Frame, font: Any, width: int) -> Iterator[Run]:
    """Break prompt and tokens into lines at most ``width`` pixels wide."""
    line, left = 0, 0.0
    for text, background, ink in _coloured(frame):
        for row, part in enumerate(text.split("\n")):
            if row:
                line, left = line + 1, 0.0
            for chunk in _fitting(part, font, width):
                length = font.getlength(chunk)
                if left > 0.0 and left + length > width:
                    line, left, chunk = line + 1, 0.0, chunk.removeprefix(" ") or chunk
                    length = font.getlength(chunk)
                yield line, left, left + length, chunk, background, ink
                left += length


def _coloured(frame: Frame) -> Iterator[tuple[str, RGB | None, RGB]]:
    """Text, background and ink of each word of the prompt and of the environment, which are grey, and each token."""
    yield from ((word, None, _GREY) for word in _words(visible(frame.prompt)))
    for piece, tint in zip(frame.pieces, frame.tints(frame.rewards), strict=True):
        if tint is None:
            yield from ((word, None, _GREY) for word in _words(visible(piece)))
        else:
            yield (_marked(piece), *(_colours(tint) if tint else (None, _BLACK)))


def _words(text: str) -> list[str]:
    """``text`` cut before each space, so that the pieces together are the text."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _fitting(text: str, font: Any, width: int) -> Iterator[str]:
    """``text`` in chunks that fit one line: itself, unless it is longer than a line."""
    while text:
        count = _fitting_count(text, font, width)
        yield text[:count]
        text = text[count:]


def _fitting_count(text: str, font: Any, width: int) -> int:
    """How many characters of ``text`` fit one line; at least one."""
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(text[:count])))


# --- page ---------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #667085; --page: #f5f6f8; --card: #fff; --line: #dfe3ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --dim: #98a2b3; --page: #14161a; --card: #1c1f25; --line: #32373f; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--page); color: var(--ink);
       font: 16px/1.7 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; color: var(--dim); font-size: .9rem; }
nav i { width: 8rem; border-radius: .3rem; text-align: center; font-style: normal; color: var(--ink);
        background: linear-gradient(90deg, rgb(214 69 80 / .75), transparent, rgb(67 133 214 / .75)); }
article { margin: 1.2rem 0; padding: 1.1rem 1.3rem; background: var(--card); border: 1px solid var(--line);
          border-radius: .7rem; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
p > q { color: var(--dim); quotes: none; }
p > q.reply { font-style: italic; }
footer { margin-top: .8rem; padding-top: .6rem; border-top: 1px solid var(--line); color: var(--dim);
         font-size: .88rem; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
b { font-weight: inherit; position: relative; border-radius: .2rem; background:
      linear-gradient(rgb(67 133 214 / calc(.75 * var(--tint))) 0 0),
      linear-gradient(rgb(214 69 80 / calc(-.75 * var(--tint))) 0 0); }
b:hover { outline: 1px solid var(--dim); }
b:hover::after { content: attr(data-tip); position: absolute; left: 0; top: 100%; z-index: 1; padding: .4rem .7rem;
  width: max-content; white-space: pre; font: 13px/1.5 ui-monospace, monospace; color: var(--page);
  background: var(--ink); border-radius: .4rem; pointer-events: none; }
"""


def render_html(frames: Sequence[Frame], *, title: str = "Episodes") -> str:
    """A self-contained page of episodes: no script, nothing loaded; follows the reader's light or dark scheme.

    Tokens are coloured by reward; buttons choose another series where frames have one. Pointing at a token shows all
    of its numbers. Colours are scaled within each episode (:func:`tints`).
    """
    names = list(dict.fromkeys(name for frame in frames for name in frame.series()))
    heading = escape(visible(title))
    chosen = "\n".join(f"body:has(#by-{name}:checked) b {{ --tint: var(--{name}, 0); }}" for name in names)
    choices = "".join(
        f'<label><input type="radio" name="by" id="by-{name}"{" checked" * (name == names[0])}> {name}</label>'
        for name in names
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{heading}</title>\n<style>{_STYLE}{chosen}\n</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        f"<nav>Colour by {choices}<i>− 0 +</i></nav>\n{''.join(map(_html_episode, frames))}</body>\n</html>\n"
    )


def _html_episode(frame: Frame) -> str:
    tinted = {name: frame.tints(numbers) for name, numbers in frame.series().items()}
    own = {at: number for number, at in enumerate(frame.agent_pieces, 1)}
    tokens = "".join(
        _html_token(frame, tinted, at, own[at]) if at in own else f'<q class="reply">{escape(visible(piece))}</q>'
        for at, piece in enumerate(frame.pieces)
    )
    prompt = escape(visible(frame.prompt))
    return f"<article>\n<p><q>{prompt}</q>{tokens}</p>\n<footer>{escape(summary(frame))}</footer>\n</article>\n"


def _html_token(frame: Frame, tinted: Mapping[str, Sequence[float | None]], at: int, number: int) -> str:
    style = ";".join(f"--{name}:{strengths[at]:.2f}" for name, strengths in tinted.items())
    numbers = [f"{name:<10}{series[at]: .4g}" for name, series in frame.series().items()]
    tip = escape("\n".join([f"token {number}", *numbers])).replace("\n", "&#10;")
    return f'<b style="{style}" data-tip="{tip}">{escape(_marked(frame.pieces[at]))}</b>'
