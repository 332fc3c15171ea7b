"""`Drawing`: lines, marks and text at fixed positions, rendered as SVG or pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image, ImageColor, ImageDraw, ImageFont

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colour-blind safe; marks differ in shape as well.

Source: Okabe and Ito 2008, Color Universal Design. https://jfly.uni-koeln.de/color/
"""
SHAPES = ("circle", "square", "up", "diamond", "down", "cross")
PAPER, INK, SOFT, RULE = "#ffffff", "#20242c", "#5c6470", "#e5e1da"
_STYLES = {"grid": (RULE, 1.0), "front": (INK, 1.6), "bound": (SOFT, 1.2), "leader": (SOFT, 1.0)}
_CORNERS = {"square": (45, 90, 4, 1.25), "diamond": (0, 90, 4, 1.3), "up": (-90, 120, 3, 1.35), "down": (90, 120, 3, 1.35)}
"""First angle in degrees, angle between corners, number of corners, and size relative to a circle, so that shapes look equally large."""
_SMOOTH = 4
"""Supersampling factor."""


@dataclass(frozen=True)
class Mark:
    """One point of a chart."""

    x: float
    y: float
    kind: int
    """Index of its colour and shape."""
    size: float = 5.0
    faint: bool = False
    hollow: bool = False
    title: str = ""
    key: str = ""
    """Value of `data-sae` in a page."""


@dataclass(frozen=True)
class Words:
    """Text anchored at the start, middle or end of its baseline."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    style: str = "tick"
    """`tick`, `axis` or `name`: coloured by the page's style sheet."""


@dataclass
class Drawing:
    """`width` by `height` points, from the top left."""

    width: float
    height: float
    label: str
    lines: list[tuple[str, Sequence[tuple[float, float]]]] = field(default_factory=list)
    """Style and corners; `bound` is dashed."""
    marks: list[Mark] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)

    def svg(self, extra: str = "") -> str:
        """Inline SVG; `extra` are additional CSS classes."""
        out = [f'<svg class="chart {extra}" viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.label)}">']
        for style, corners in self.lines:
            out.append(f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}"/>')
        for mark in self.marks:
            colour = COLOURS[mark.kind % len(COLOURS)]
            classes = "mark" + " hollow" * mark.hollow + " faint" * mark.faint
            look = f'class="{classes}" stroke="{colour}"' + ("" if mark.hollow else f' fill="{colour}"')
            d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in outline(mark)) + "z"
            key = f' data-sae="{escape(mark.key)}"' if mark.key else ""
            out.append(f'<path {look}{key} d="{d}"><title>{escape(mark.title)}</title></path>')
        for word in self.words:
            out.append(
                f'<text class="{word.style}" x="{word.x:.1f}" y="{word.y:.1f}" text-anchor="{word.anchor}">{escape(word.text)}</text>'
            )
        return "".join(out) + "</svg>"

    def picture(self, scale: float = 2.0) -> Image.Image:
        """Rasterised on white, `scale` pixels per point."""
        fine = scale * _SMOOTH / 2
        page = Image.new("RGB", (round(self.width * fine), round(self.height * fine)), PAPER)
        draw = ImageDraw.Draw(page)

        def at(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
            return [(x * fine, y * fine) for x, y in corners]

        for style, corners in self.lines:
            ink, width = _STYLES[style]
            for part in _dashes(corners) if style == "bound" else [corners]:
                draw.line(at(part), ink, round(width * fine), joint="curve")
        for mark in self.marks:
            colour = _mixed(COLOURS[mark.kind % len(COLOURS)], 0.45 if mark.faint else 1.0)
            corners = at(outline(mark))
            draw.polygon(corners, PAPER if mark.hollow else colour)
            draw.line([*corners, corners[0], corners[1]], colour, round((2 if mark.hollow else 1) * fine), joint="curve")
        for word in self.words:
            font = ImageFont.load_default(size_of(word.style) * fine)
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[word.anchor]
            draw.text((word.x * fine, word.y * fine), word.text, SOFT if word.style == "tick" else INK, font, anchor=anchor)
        return page.resize((round(self.width * scale), round(self.height * scale)), Image.Resampling.LANCZOS)


def outline(mark: Mark) -> list[tuple[float, float]]:
    """A mark's corners."""
    shape = SHAPES[(mark.kind + mark.kind // len(COLOURS)) % len(SHAPES)]  # beyond six kinds, colours repeat with another shape
    if shape == "cross":
        a, b = mark.size * 1.2, mark.size * 0.42
        corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
        return [(mark.x + x, mark.y + y) for x, y in corners]
    first, step, n, grow = _CORNERS.get(shape, (0, 15, 24, 1.0))
    angles = [math.radians(first + i * step) for i in range(n)]
    return [(mark.x + mark.size * grow * math.cos(a), mark.y + mark.size * grow * math.sin(a)) for a in angles]


def size_of(style: str) -> float:
    """Font size in points."""
    return 14.0 if style == "axis" else 13.0


def width_of(text: str, style: str = "name") -> float:
    """Approximate width of a text in points."""
    return float(ImageFont.load_default(size_of(style)).getlength(text))


def _dashes(corners: Sequence[tuple[float, float]], on: float = 5, off: float = 4) -> list[Sequence[tuple[float, float]]]:
    (x0, y0), (x1, y1) = corners[0], corners[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    n = max(1, int(length / (on + off)))
    part = [((i * (on + off)) / length, min(1.0, (i * (on + off) + on) / length)) for i in range(n + 1)]
    return [((x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0))) for a, b in part if a < 1]


def _mixed(colour: str, share: float) -> tuple[int, ...]:
    """A colour blended with white."""
    return tuple(round(part * share + 255 * (1 - share)) for part in ImageColor.getrgb(colour)[:3])
