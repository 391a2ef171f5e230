"""Curves as SVG within the page: they take its colours, in the dark too, and need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax_mnv2.report.html import Html, element, joined

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 230  # of the drawing; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 10, 26
_MAX_POINTS = 600  # drawn of a curve; of more, the lowest and the highest of each stretch
_MARKED = 40  # points that are drawn as dots too, which say their value when pointed at
_X_TICKS, _Y_TICKS = 5, 6  # at most
_COLORS = 6  # classes c0 … in the style sheet


def chart(title: str, curves: Mapping[str, Points], *, x_range: tuple[float, float]) -> Html:
    """Returns a figure of named curves by step, of finite numbers, at least one; a legend where there are several."""
    drawn = {name: thinned(points) for name, points in curves.items()}
    values = [y for points in drawn.values() for _, y in points]
    y_ticks = ticks(min(values), max(values), _Y_TICKS)
    x_ticks = ticks(*x_range, _X_TICKS, whole=True)
    low, high = min(*values, y_ticks[0]), max(*values, y_ticks[-1])
    plane = _Plane(x_range, (low, high if high > low else low + 1.0))
    parts = [*plane.grid(x_ticks, y_ticks)]
    for at, (name, points) in enumerate(drawn.items()):
        parts.append(plane.curve(points, color=f"c{at % _COLORS}", name=name, marked=len(points) <= _MARKED))
    svg = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return element("figure", element("figcaption", title, _legend(drawn)), svg, class_="chart")


def _legend(curves: Mapping[str, Any]) -> Html:
    if len(curves) < 2:
        return Html()
    return joined(
        element("span", element("i", class_=f"c{at % _COLORS}"), name, class_="key") for at, name in enumerate(curves)
    )


class _Plane:
    """The drawing's own coordinates."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        (self._x0, x1), (self._y0, y1) = x_range, y_range
        self._x_scale = (_WIDTH - _LEFT - _RIGHT) / ((x1 - self._x0) or 1.0)
        self._y_scale = (_HEIGHT - _TOP - _BOTTOM) / (y1 - self._y0)

    def place(self, x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + (x - self._x0) * self._x_scale, 1), round(
            _HEIGHT - _BOTTOM - (y - self._y0) * self._y_scale, 1
        )

    def grid(self, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[Html]:
        parts = []
        for value in y_ticks:
            _, y = self.place(self._x0, value)
            parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(element("text", f"{value:g}", x=_LEFT - 6, y=y + 4, text_anchor="end"))
        for value in x_ticks:
            x, _ = self.place(value, self._y0)
            parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid"))
            parts.append(
                element(
                    "text",
                    f"{value:g}" if value < 1e5 else f"{value / 1e3:g}k",
                    x=x,
                    y=_HEIGHT - 8,
                    text_anchor="middle",
                )
            )
        return parts

    def curve(self, points: Points, *, color: str, name: str, marked: bool) -> Html:
        places = [self.place(x, y) for x, y in points]
        line = element("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places))
        dots = [
            element("circle", element("title", f"{name}: {value:.6g} at step {step:g}"), cx=x, cy=y, r=2.6)
            for (step, value), (x, y) in zip(points, places, strict=True)
        ]
        return element("g", line, *(dots if marked else ()), class_=color)


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Returns up to ``count`` + 1 round numbers from ``low`` to ``high``, one at least; whole ones if asked for."""
    span = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size * count >= span * 0.999)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(at * step, digits) for at in range(first, last + 1)] or [low]


def thinned(points: Points) -> Points:
    """Returns points, ascending, of which few enough remain to be drawn; peaks stay."""
    if len(points) <= _MAX_POINTS:
        return points
    size = -(-2 * len(points) // _MAX_POINTS)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept
