"""Line charts as SVG inside of a page: colours are the page's, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastmeta.report.markup import Markup, element

WIDTH, HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38
#: colours and dashes in turn; the page has a rule for each
LOOKS = 4
#: points of a line, at most
_MOST = 300


@dataclass(frozen=True)
class Line:
    """y over x; with `low` and `high`, a band around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> Markup | None:
    """None where there is nothing to draw; a line without points is left out."""
    drawn = [(number % LOOKS, line) for number, line in enumerate(lines) if len(line.x)]
    if not drawn:
        return None
    lines = [line for _, line in drawn]
    xs = [v for line in lines for v in line.x]
    ys = [v for line in lines for part in (line.y, line.low or (), line.high or ()) for v in part]
    x_low, x_high = x_range or (min(xs), max(max(xs), min(xs) + 1e-9))
    low, high = y_range or _around(min(ys), max(ys))

    def at(x: float, y: float) -> str:
        px = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        py = HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        return f"{px:.1f},{py:.1f}"

    parts: list[Markup] = []
    for tick in _ticks(low, high, 5):
        x, y = at(x_low, tick).split(",")
        parts.append(element("line", x1=x, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", _number(tick), x=_LEFT - 6, y=y, dy="0.35em", text_anchor="end"))
    for tick in _ticks(x_low, x_high, 6):
        x, _ = at(tick, low).split(",")
        parts.append(element("text", _number(tick), x=x, y=HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    middle = (WIDTH + _LEFT - _RIGHT) / 2
    parts.append(element("text", x_label, x=middle, y=HEIGHT - 4, text_anchor="middle", class_="label"))
    turn = f"rotate(-90) translate({-(HEIGHT - _BOTTOM + _TOP) / 2:.0f} 11)"
    parts.append(element("text", y_label, transform=turn, text_anchor="middle", class_="label"))
    for look, line in drawn:
        keep = _thinned(len(line.x))
        if line.low is not None and line.high is not None:
            edge = [at(line.x[k], line.low[k]) for k in keep] + [at(line.x[k], line.high[k]) for k in reversed(keep)]
            parts.append(element("polygon", points=" ".join(edge), class_=f"band look{look}"))
        points = [at(line.x[k], line.y[k]) for k in keep]
        if len(points) == 1:
            for x, y in (point.split(",") for point in points):
                parts.append(element("circle", cx=x, cy=y, r=3.5, class_=f"mark look{look}"))
        else:
            parts.append(element("polyline", points=" ".join(points), class_=f"line look{look}"))
    keys = [element("span", element("i", class_=f"key look{look}"), line.label) for look, line in drawn]
    drawing = element("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title), drawing, element("div", keys, class_="keys"))


def _around(low: float, high: float) -> tuple[float, float]:
    room = max(0.05 * (high - low), 1e-6 * max(abs(low), abs(high), 1.0))
    return low - room, high + room


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    step = 10 ** math.floor(math.log10(raw))
    step = next(k * step for k in (1, 2, 5, 10) if k * step >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _thinned(count: int) -> list[int]:
    if count <= _MOST:
        return list(range(count))
    return sorted({round(k * (count - 1) / (_MOST - 1)) for k in range(_MOST)})
