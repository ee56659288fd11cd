"""A line plot in SVG: x on a logarithmic scale, y from zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 580, 44, 300  # edges of the field
COLOURS = ("#1a6fb5", "#777777")
MOST_TICKS = 6
LINE_HEIGHT = 15


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its name and its points, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_plot(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Draw at most as many lines as there are colours, over at least two values of x."""
    return "\n".join(_elements(title, x_title, y_title, lines)) + "\n"


def _elements(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> Iterator[str]:
    xs = sorted({x for line in lines for x, _ in line.points})
    step = _step(max(y for line in lines for _, y in line.points))
    ticks = math.ceil(max(y for line in lines for _, y in line.points) / step)

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(x / xs[0]) / math.log(xs[-1] / xs[0])

    def down(y: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * y / (step * ticks)

    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    yield _text(LEFT, 20, title, "start")
    yield _text(LEFT, 36, y_title, "start", "#777777")
    yield _text((LEFT + RIGHT) / 2, HEIGHT - 16, x_title, "middle")
    for y in (step * tick for tick in range(ticks + 1)):
        yield f'<path d="M{LEFT} {down(y):.1f}H{RIGHT}" stroke="#dddddd"/>'
        yield _text(LEFT - 8, down(y) + 4, f"{y:g}", "end")
    for x in xs:
        yield f'<path d="M{across(x):.1f} {BOTTOM}v5" stroke="#777777"/>'
        yield _text(across(x), BOTTOM + 20, f"{x:,.0f}", "middle")
    label = -math.inf
    for line, colour in sorted(zip(lines, COLOURS, strict=False), key=_last_y, reverse=True):
        places = [(across(x), down(y)) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)
        label = max(label + LINE_HEIGHT, places[-1][1] + 4)  # names do not cover each other
        yield _text(RIGHT + 8, label, line.name, "start", colour)
    yield "</svg>"


def _last_y(line_and_colour: tuple[Line, str]) -> float:
    return line_and_colour[0].points[-1][1]


def _text(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _step(highest: float) -> float:
    """Return a round distance of ticks that has no more of them than there is room for."""
    power = 10.0 ** math.floor(math.log10(highest / MOST_TICKS))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * MOST_TICKS >= highest)
