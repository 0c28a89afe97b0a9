"""Traces and reports as PNG, drawn by matplotlib (extra ``plot``)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llamatel.errors import UsageError, install_command
from llamatel.telemetry.kept_spans import KeptSpan
from llamatel.ui.view.number_format import seconds
from llamatel.ui.view.run_report import slowest
from llamatel.ui.view.trace_view import COLOURS, bars, total

_DPI = 110


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"pictures need matplotlib; install it with: {install_command('plot')}") from None
    # Not pyplot: it would keep every figure, and choose a backend for the whole program.
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def trace_png(spans: Sequence[KeptSpan]) -> bytes:
    """A waterfall."""
    rows = bars(spans)
    figure = _figure(9, 0.9 + 0.3 * max(len(rows), 1))
    axes = figure.add_subplot()
    whole = total(rows) or 1.0
    for index, bar in enumerate(rows):
        axes.barh(index, max(bar.length, whole * 0.002), left=bar.start, color=COLOURS[bar.kind], height=0.6)
        label = seconds(bar.length) + (f"  {bar.facts}" if bar.facts else "")
        axes.annotate(label, (bar.start + bar.length, index), (4, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(range(len(rows)), ["  " * bar.depth + bar.name for bar in rows], size=8)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    axes.tick_params(axis="y", pad=190, length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, whole * 1.35)
    axes.set_xlabel("seconds", size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if spans:
        axes.set_title(f"trace {spans[0].trace_id}", size=8, loc="left")
    return _png(figure)


def report_png(document: Mapping[str, Any], histories: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """The report's charts."""
    figure = _figure(10, 7)
    figure.suptitle(title.replace("$", r"\$"), size=12)
    (cache, speed), (latency, slow) = figure.subplots(2, 2)
    _cache(cache, histories)
    requests = document["requests"]
    points = [(one["ended_at"], one["tokens_per_second"]) for one in requests if one["tokens_per_second"] is not None]
    _titled(speed, "tokens a second, by request")
    if points:
        begin = min(at for at, _ in points)
        speed.plot([at - begin for at, _ in points], [value for _, value in points], "o", color=COLOURS["decode"], ms=4)
        speed.set_ylim(bottom=0)
        _times(speed, begin)
    else:
        _nothing(speed, "no request has generated two tokens")
    _latency(latency, document["summary_of_all"])
    _titled(slow, "slowest requests, seconds")
    ordered = slowest(requests)[::-1]
    for name, left in (("queue", ()), ("prefill", ("queue",)), ("decode", ("queue", "prefill"))):
        starts = [sum(one[f"{before}_s"] or 0.0 for before in left) for one in ordered]
        lengths = [one[f"{name}_s"] or 0.0 for one in ordered]
        slow.barh(range(len(ordered)), lengths, left=starts, color=COLOURS[name], label=name)
    labels = [f"{seconds(one['ended_at'] - one['arrived_at'])}, {one['outcome']}" for one in ordered]
    slow.set_yticks(range(len(ordered)), labels)
    slow.locator_params(axis="x", nbins=5)
    if ordered:
        slow.legend(fontsize=7)
    else:
        _nothing(slow, "no request")
    return _png(figure)


def _times(axes: Any, begin: float) -> None:
    """Seconds from a time of day; few marks, which do not overlap."""
    from matplotlib.ticker import MaxNLocator

    locator: Any = MaxNLocator
    axes.xaxis.set_major_locator(locator(5))
    clock = datetime.fromtimestamp(begin).strftime("%H:%M:%S")  # noqa: DTZ006 - shown to people where they are
    axes.set_xlabel(f"seconds after {clock}", size=8)


def _nothing(axes: Any, reason: str) -> None:
    """Write why there is nothing to draw, without axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.text(0.5, 0.5, reason, ha="center", va="center", size=8, transform=axes.transAxes)


def _titled(axes: Any, title: str) -> None:
    axes.set_title(title, size=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _cache(axes: Any, histories: Sequence[Mapping[str, Any]]) -> None:
    _titled(axes, "tokens in the KV cache")
    for document in histories[:1]:
        history = document["history"]
        known = [
            row for row in zip(history["at"], history["active"], history["cached"], strict=True) if None not in row[1:]
        ]
        if len(known) < 2:
            continue
        begin = known[0][0]
        axes.stackplot(
            [at - begin for at, _, _ in known],
            [active for _, active, _ in known],
            [cached for _, _, cached in known],
            colors=[COLOURS["decode"], COLOURS["span"]],
            labels=["of running requests", "kept for the next one"],
            alpha=0.75,
        )
        _times(axes, begin)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, loc="upper left")
        return
    _nothing(axes, "the run was too short: samples are a second apart")


def _latency(axes: Any, summary: Mapping[str, Any]) -> None:
    _titled(axes, "latency, seconds: p50, p95, p99")
    names = ("queue_s", "time_to_first_token_s", "time_per_output_token_s", "end_to_end_s")
    for index, name in enumerate(names):
        for step, share in enumerate(("p50", "p95", "p99")):
            value = summary[name][share]
            if value is not None:
                axes.barh(index + (step - 1) * 0.27, value, height=0.25, color=COLOURS["span"], alpha=0.5 + step * 0.25)
    axes.set_yticks(range(len(names)), ["queue", "first token", "per token", "end to end"])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1e-3)
