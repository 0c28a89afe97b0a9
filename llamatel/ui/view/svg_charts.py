"""Small charts as SVG, for a page that has to work without a network and without scripts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from llamatel.ui.view.number_format import seconds

_WIDTH, _HEIGHT = 760, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 24

_GAP_S = 75.0
"""Exports and scrapes sample once a minute; a longer pause is a gap."""

_SHORT_S = 60.0

Points = Sequence[tuple[float, float]]
Gaps = Sequence[tuple[float, float | None]]
"""Values that may be unknown."""


def _ceiling(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


class _Frame:
    """Maps values to positions in the picture."""

    def __init__(self, times: Sequence[float], top: float) -> None:
        self.begin, self.end = min(times), max(times)
        self.span = max(self.end - self.begin, 1e-6)
        self.top = top

    def x(self, at: float) -> float:
        return _LEFT + (at - self.begin) / self.span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - min(value / self.top, 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> str:
        parts = []
        for share in (0.0, 0.5, 1.0):
            y = self.y(self.top * share)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(self.top * share)}</text>'
            )
        for at, anchor in ((self.begin, "start"), (self.end, "end")):
            clock = time.strftime("%H:%M:%S", time.localtime(at))
            if anchor == "end" and self.span < _SHORT_S:  # the clock of both ends would be nearly the same
                clock = f"{seconds(self.span)} later"
            parts.append(f'<text x="{self.x(at):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{clock}</text>')
        return " ".join(parts)  # JupyterLab leaves the labels of a notebook that is not trusted, as text


def _svg(title: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title> {body}</svg>"
    )


def stacked_areas(title: str, series: Sequence[tuple[str, Gaps]], limit: float | None = None) -> str:
    """Series on top of each other, with the same times; ``limit`` is drawn as a dashed line.

    Nothing is drawn where a value is None, and in gaps of more than a minute between samples.
    """
    times = [at for at, _ in series[0][1]]
    columns = [[points[index][1] for _, points in series] for index in range(len(times))]
    sums = [sum(value for value in column if value is not None) for column in columns]
    frame = _Frame(times, _ceiling(max([*sums, limit or 0.0])))
    parts = [frame.axes()]
    for run in _stretches(times, [None not in column for column in columns]):
        below = [0.0] * len(run)
        for number, (colour, _) in enumerate(series):
            above = [base + (columns[index][number] or 0.0) for base, index in zip(below, run, strict=True)]
            edge = [
                f"{frame.x(times[index]):.1f},{frame.y(value):.1f}" for index, value in zip(run, above, strict=True)
            ]
            back = [
                f"{frame.x(times[index]):.1f},{frame.y(value):.1f}" for index, value in zip(run, below, strict=True)
            ]
            points = " ".join(edge + back[::-1])
            parts.append(f'<polygon points="{points}" fill="{colour}" fill-opacity=".7" stroke="{colour}"/>')
            below = above
    if limit:
        y = frame.y(limit)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#888" stroke-dasharray="5 4"/>'
        )
    return _svg(title, "".join(parts))


def _stretches(times: Sequence[float], known: Sequence[bool]) -> list[list[int]]:
    """Indices of neighbours that are known and not far from each other."""
    found: list[list[int]] = []
    for index, is_known in enumerate(known):
        if not is_known:
            continue
        if found and found[-1][-1] == index - 1 and times[index] - times[index - 1] < _GAP_S:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def dots(title: str, points: Points, colour: str) -> str:
    """One dot for each event."""
    frame = _Frame([at for at, _ in points], _ceiling(max(value for _, value in points)))
    marks = [
        f'<circle cx="{frame.x(at):.1f}" cy="{frame.y(value):.1f}" r="3.5" fill="{colour}" fill-opacity=".75"/>'
        for at, value in points
    ]
    return _svg(title, frame.axes() + "".join(marks))
