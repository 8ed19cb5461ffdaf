"""The charts of a report as inline SVG, drawn by hand: no plotting library, no script."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from firstlight.preflight._axis import Axis
from firstlight.preflight._words import clean, number

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 10, 38
_POINTS = 300  # of a line; more cannot be told apart
_ROWS = 32  # of the chart of layers
_ROW = 19


@dataclass(frozen=True)
class Line:
    """A curve, with the class that gives it color and dashes."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str, zero: bool = False) -> str:
    """Return curves over one axis, with a legend; a wide range is drawn by logarithm."""
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    log = not zero and bool(ys) and min(ys) > 0 and max(ys) / min(ys) > 20
    across = Axis.over((x for line in lines for x in line.xs), _LEFT, _WIDTH - _RIGHT, zero=True)
    up = Axis.over(ys, _HEIGHT - _BOTTOM, _TOP, log=log, zero=zero)
    across = Axis(0.0, max((x for line in lines for x in line.xs), default=1.0) or 1.0, across.start, across.end)
    parts = [*_grid(across, up, x_label, f"{y_label}{', logarithmic' if log else ''}")]
    for line in lines:
        points = [(x, y) for x, y in zip(line.xs, line.ys, strict=False) if math.isfinite(y)]
        broken = next((x for x, y in zip(line.xs, line.ys, strict=False) if not math.isfinite(y)), None)
        placed = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in _thinned(points))
        if len(points) == 1:
            parts.append(
                f'<circle class="dot {line.style}" cx="{placed.split(",")[0]}" cy="{placed.split(",")[1]}" r="3"/>'
            )
        elif points:
            parts.append(f'<polyline class="line {line.style}" points="{placed}"/>')
        if broken is not None:
            x, y = across.at(broken), _HEIGHT - _BOTTOM - 6
            parts.append(f'<path class="line {line.style} solid" d="M{x - 4:.1f},{y - 4}l8,8m0,-8l-8,8"/>')
            anchor = "end" if x > _WIDTH / 2 else "start"
            parts.append(
                f'<text x="{x + (-8 if anchor == "end" else 8):.1f}" y="{y + 4}" text-anchor="{anchor}">'
                f"not finite from step {number(float(broken))}</text>"
            )
    return _legend(lines) + _svg(title, parts, _HEIGHT)


def histogram(title: str, edges: Sequence[float], counts: Sequence[float], *, x_label: str) -> str:
    """Return bars of counts between edges."""
    across = Axis(edges[0], edges[-1] if edges[-1] > edges[0] else edges[0] + 1.0, _LEFT, _WIDTH - _RIGHT)
    up = Axis.over(counts, _HEIGHT - _BOTTOM, _TOP, zero=True)
    parts = [*_grid(across, up, x_label, "values")]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        x, y = across.at(low), up.at(count)
        width = max(across.at(high) - x - 0.8, 0.5)
        parts.append(
            f'<rect class="fill own" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{up.start - y:.1f}"/>'
        )
    return _svg(title, parts, _HEIGHT)


def layer_chart(title: str, names: Sequence[str], columns: Sequence[tuple[str, Sequence[float], str]]) -> str:
    """Return a row of logarithmic bars a layer, one column for each ``(label, values, style)``.

    A value of zero has no bar and is written; of many layers those with the smallest and largest values are shown.
    """
    shown = _most_telling(columns, len(names))
    left, gap = 16 + 6.8 * max(len(_short(names[index])) for index in shown), 44
    width = (_WIDTH - 24 - left - gap * (len(columns) - 1)) / len(columns)
    foot = _TOP + 20 + _ROW * len(shown)
    parts = []
    for row, index in enumerate(shown):
        y = _TOP + 20 + _ROW * row + 13
        parts.append(
            f'<text class="code" x="{left - 8:.1f}" y="{y}" text-anchor="end">{escape(_short(names[index]))}</text>'
        )
    for position, (label, values, style) in enumerate(columns):
        start = left + position * (width + gap)
        axis = Axis.over((values[index] for index in shown), start, start + width, log=True)
        axis = Axis(axis.low / 10, axis.high, axis.start, axis.end, log=True)  # so that the smallest has a bar
        parts.append(f'<text class="strong" x="{start:.1f}" y="{_TOP + 8}">{escape(label)}</text>')
        for tick in _few(axis.ticks(), 3):
            x = axis.at(tick)
            parts.append(f'<path class="grid" d="M{x:.1f},{_TOP + 18}V{foot + 2}"/>')
            parts.append(f'<text x="{x:.1f}" y="{foot + 16}" text-anchor="middle">{_tick(tick)}</text>')
        for row, index in enumerate(shown):
            y, value = _TOP + 20 + _ROW * row + 4, values[index]
            if not math.isfinite(value) or value <= 0:
                parts.append(
                    f'<text class="bad" x="{start + 3:.1f}" y="{y + 10}">{"0" if value == 0 else number(value)}</text>'
                )
            else:
                length = axis.at(value) - start
                said = f"<title>{escape(clean(names[index]))}: {number(value)}</title>"
                parts.append(
                    f'<rect class="fill {style}" x="{start:.1f}" y="{y}" width="{length:.1f}" height="11">{said}</rect>'
                )
    left_out = len(names) - len(shown)
    note = f"<p class='muted'>{left_out} layers between these are in the JSON.</p>" if left_out else ""
    return _svg(title, parts, foot + 24) + note


def _most_telling(columns: Sequence[tuple[str, Sequence[float], str]], count: int) -> list[int]:
    if count <= _ROWS:
        return list(range(count))
    chosen: set[int] = set()
    orders = [sorted(range(count), key=lambda index: values[index]) for _, values, _ in columns]
    for rank in range(count):
        for order in orders:
            for index in (order[rank], order[-1 - rank]):
                if len(chosen) < _ROWS:
                    chosen.add(index)
    return sorted(chosen)


def _grid(across: Axis, up: Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in across.ticks():
        if across.low <= tick <= across.high:
            x, y = across.at(tick), _HEIGHT - _BOTTOM + 16
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_tick(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<path class="axis" d="M{_LEFT},{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text class="name" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    height = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {height})"'
    parts.append(f'<text class="name" x="12" y="{height}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return parts


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="line {line.style}" d="M1,5H27"/></svg>'
        f"{escape(clean(line.label))}</li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _svg(title: str, parts: Sequence[str], height: float) -> str:
    box = f'viewBox="0 0 {_WIDTH} {height:g}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return few points that keep the lowest and highest of each stretch."""
    if len(points) <= _POINTS:
        return points
    size = math.ceil(2 * len(points) / _POINTS)
    kept = [points[0]]
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [point for point, _ in itertools.groupby([*kept, points[-1]])]


def _few(ticks: list[float], most: int) -> list[float]:
    return ticks[:: math.ceil(len(ticks) / most)]


def _tick(value: float) -> str:
    """Return a tick in few signs.

    >>> _tick(0.2), _tick(15000.0), _tick(1e-05)
    ('0.2', '15000', '1e-5')
    """
    text = f"{value:g}"
    mantissa, e, power = text.partition("e")
    return f"{mantissa}e{int(power)}" if e else text


def _short(name: str) -> str:
    name = clean(name)
    return name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}"
