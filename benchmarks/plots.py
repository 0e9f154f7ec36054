"""Curves on two logarithmic axes, as small SVG pictures that are the same wherever they are drawn."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 250, 58, 30, 42
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # told apart by the colour-blind, too


class Panel(NamedTuple):
    """Curves by name, each of (place, cost), and what the axes say."""

    title: str
    across: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


def drawn(panels: Sequence[Panel]) -> str:
    """Panels beside each other over one legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    width, height = WIDTH * len(panels), HEIGHT + 18 * len(names) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts += [f'<g transform="translate({WIDTH * index} 0)">', *_panel(panel, colours), "</g>"]
    for index, (name, colour) in enumerate(colours.items()):
        y = HEIGHT + 18 * index + 8
        parts.append(f'<path d="M{LEFT} {y}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 32}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, colours: Mapping[str, str]) -> list[str]:
    points = [point for curve in panel.curves.values() for point in curve]
    places, costs = (sorted({point[axis] for point in points}) for axis in (0, 1))
    decades = range(math.floor(math.log10(costs[0])), math.ceil(math.log10(costs[-1])) + 1)
    low, high = decades[0], max(decades[-1], decades[0] + 1)
    right, bottom = WIDTH - 16, HEIGHT - BOTTOM
    span = math.log(places[-1] / places[0]) or 1.0

    def x(place: float) -> float:
        return round(LEFT + math.log(place / places[0]) / span * (right - LEFT), 1)

    def y(cost: float) -> float:
        return round(bottom - (math.log10(cost) - low) / (high - low) * (bottom - TOP), 1)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    for decade in decades:
        parts.append(f'<path d="M{LEFT} {y(10.0**decade)}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(10.0**decade) + 4}" text-anchor="end">{10.0**decade:g}</text>')
    last = -math.inf
    for place in places:
        if x(place) - last > 26:  # or the numbers would touch
            parts.append(f'<text x="{x(place)}" y="{bottom + 15}" text-anchor="middle">{place:g}</text>')
            last = x(place)
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 32}" text-anchor="middle">{escape(panel.across)}</text>')
    for name, curve in panel.curves.items():
        line = " L".join(f"{x(place)} {y(cost)}" for place, cost in curve)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="2.5" fill="{colours[name]}"/>' for a, b in curve]
    return parts
