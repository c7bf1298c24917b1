"""A line plot as SVG: both axes logarithmic, readable on light and on dark pages, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 40, 56, 92
_STYLE = """\
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .title { font-weight: 600; font-size: 15px; }
  .grid { stroke: #d0d7de; stroke-width: 1; }
  .line { fill: none; stroke-width: 2; }
  .dashed { stroke-dasharray: 5 4; opacity: 0.8; }
  .s0 { stroke: #0969da; } .f0 { fill: #0969da; }
  .s1 { stroke: #1a7f37; } .f1 { fill: #1a7f37; }
  .s2 { stroke: #9a6700; } .f2 { fill: #9a6700; }
  .s3 { stroke: #cf222e; } .f3 { fill: #cf222e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .grid { stroke: #3d444d; }
    .s0 { stroke: #58a6ff; } .f0 { fill: #58a6ff; }
    .s1 { stroke: #3fb950; } .f1 { fill: #3fb950; }
    .s2 { stroke: #d29922; } .f2 { fill: #d29922; }
    .s3 { stroke: #ff7b72; } .f3 { fill: #ff7b72; }
  }"""
_COLOURS = 4


@dataclass(frozen=True, slots=True)
class Series:
    """A solid line and a dashed one of the same colour, at the same places."""

    name: str
    places: Sequence[float]
    solid: Sequence[float]
    dashed: Sequence[float]


def svg(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """The picture. Up to four series, all values above 0."""
    if not 0 < len(series) <= _COLOURS:
        raise ValueError(f"{len(series)} series, 1 to {_COLOURS} can be told apart")
    x = _Axis([place for one in series for place in one.places], _LEFT, WIDTH - _RIGHT)
    y = _Axis([value for one in series for value in (*one.solid, *one.dashed)], HEIGHT - _BOTTOM, _TOP, steps=(1, 2, 5))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>\n{_STYLE}\n</style>",
        _text(_LEFT, 24, title, css="title"),
        _text(_LEFT, 44, y_name),
        *_grid(x, y),
        _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - _BOTTOM + 40, x_name, anchor="middle"),
        *(part for number, one in enumerate(series) for part in _drawn(number, one, x, y)),
        *_legend([one.name for one in series]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axis:
    """A logarithmic axis that holds all values, with marks at round numbers."""

    def __init__(self, values: Sequence[float], begin: float, end: float, *, steps: Sequence[int] = (1,)) -> None:
        marks = [step * 10.0**power for power in range(-4, 10) for step in steps]
        lowest = max(mark for mark in marks if mark <= min(values))
        highest = min(mark for mark in marks if mark >= max(values))
        self.marks = [mark for mark in marks if lowest <= mark <= highest]
        self._from, self._begin = math.log10(lowest), begin
        self._scale = (end - begin) / (math.log10(highest) - self._from or 1)

    def at(self, value: float) -> float:
        """Where a value lies, in units of the picture."""
        return round(self._begin + (math.log10(value) - self._from) * self._scale, 1)


def _grid(x: _Axis, y: _Axis) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for mark in x.marks:
        parts.append(f'<line class="grid" x1="{x.at(mark)}" y1="{_TOP}" x2="{x.at(mark)}" y2="{bottom}"/>')
        parts.append(_text(x.at(mark), bottom + 20, f"{mark:,.0f}", anchor="middle"))
    for mark in y.marks:
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y.at(mark)}" x2="{WIDTH - _RIGHT}" y2="{y.at(mark)}"/>')
        parts.append(_text(_LEFT - 8, y.at(mark) + 4, f"{mark:g}", anchor="end"))
    return parts


def _drawn(number: int, series: Series, x: _Axis, y: _Axis) -> list[str]:
    parts = []
    for values, css in ((series.solid, "line"), (series.dashed, "line dashed")):
        points = " ".join(f"{x.at(place)},{y.at(value)}" for place, value in zip(series.places, values, strict=True))
        parts.append(f'<polyline class="{css} s{number}" points="{points}"/>')
    for place, value in zip(series.places, series.solid, strict=True):
        parts.append(f'<circle class="f{number}" cx="{x.at(place)}" cy="{y.at(value)}" r="3"/>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    """Two columns below the picture."""
    parts = []
    for number, name in enumerate(names):
        left, top = _LEFT + number % 2 * 340, HEIGHT - 30 + number // 2 * 20
        parts.append(f'<line class="line s{number}" x1="{left}" y1="{top - 4}" x2="{left + 26}" y2="{top - 4}"/>')
        parts.append(_text(left + 34, top, name))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    named = f' class="{css}"' if css else ""
    return f'<text{named} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
