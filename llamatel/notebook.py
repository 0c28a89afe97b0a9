"""``last_trace()`` and ``report()``: what this process has just done, to look at in a notebook or a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel import runtime
from llamatel.errors import UsageError

if TYPE_CHECKING:
    from llamatel.export.kept_spans import KeptSpan

_FRESH_S = 1.0
_LAST_LINES_S = 0.1


class Trace:
    """The spans of a trace, drawn as a waterfall: HTML in Jupyter, text elsewhere."""

    def __init__(self, spans: Sequence[KeptSpan]) -> None:
        self.spans = tuple(spans)

    @property
    def trace_id(self) -> str:
        """As in Tempo or Jaeger."""
        return self.spans[0].trace_id

    def __str__(self) -> str:
        from llamatel.view.glyphs import glyphs_for
        from llamatel.view.trace import trace_text

        return trace_text(self.spans, 100, glyphs_for(sys.stdout.encoding)).plain

    __repr__ = __str__

    @property
    def html(self) -> str:
        """An HTML fragment."""
        from llamatel.view.trace import trace_html

        return trace_html(self.spans)

    def _repr_html_(self) -> str:
        return self.html

    def png(self) -> bytes:
        """A picture. Raises UsageError without matplotlib (extra ``plot``)."""
        from llamatel.view.figure import trace_png

        return trace_png(self.spans)

    def save(self, path: str | Path) -> Path:
        """Write it to a file: ``.html`` or ``.png``."""
        return _save(Path(path), self.html, self.png)


class Report:
    """A run on one page. ``html`` is a whole document that needs no network."""

    def __init__(
        self, document: Mapping[str, Any], histories: Sequence[Mapping[str, Any]], traces: Mapping[str, Any], title: str
    ) -> None:
        self.document = document
        """The figures behind it, as JSON-ready data (see ``llamatel.live``)."""
        self.title = title
        self._histories = histories
        self._traces = traces

    @property
    def html(self) -> str:
        """One self-contained HTML file."""
        from llamatel.view.report import report_html

        return report_html(self.document, self._histories, lambda trace_id: self._traces.get(trace_id, ()), self.title)

    def png(self) -> bytes:
        """Its charts as a picture. Raises UsageError without matplotlib (extra ``plot``)."""
        from llamatel.view.figure import report_png

        return report_png(self.document, self._histories, self.title)

    def save(self, path: str | Path) -> Path:
        """Write it to a file: ``.html`` or ``.png``."""
        return _save(Path(path), self.html, self.png)

    def __repr__(self) -> str:
        from llamatel.view.figures import plural

        total = self.document["summary_of_all"]["requests"]["total"]
        return f"<llamatel report of {plural(total, 'request')}: .save('report.html')>"

    def _repr_html_(self) -> str:
        # In a frame of its own, so that its styles and the notebook's do not meet.
        frame = "width:100%;height:640px;border:1px solid #8884;border-radius:6px"
        return f'<iframe sandbox srcdoc="{escape(self.html, quote=True)}" style="{frame}"></iframe>'


def last_trace() -> Trace:
    """The trace that ended last: your own spans, the calls in them, their prefill and decode.

    Spans are kept where ``init()`` runs in a notebook or at Python's prompt, or was told so (``keep_traces=True``).
    Raises UsageError where none are kept, or there is no trace yet.
    """
    running = _running()
    kept = running.pipeline.kept_spans
    if kept is None:
        raise UsageError(
            "no spans are kept: say so to llamatel.init(keep_traces=True)"
            if not running.settings.keep_spans
            else "no spans are kept: they go to the tracer provider that this process had before llamatel.init()"
        )
    spans = kept.trace()
    if not spans:
        raise UsageError("no trace has ended yet")
    return Trace(spans)


def report(path: str | Path | None = None, *, title: str | None = None) -> Report:
    """What ran since ``init()``: requests, percentiles, KV cache over time, decoding speed, the slowest traces.

    With a ``path`` it is written there, too (``.html`` or ``.png``). Counts are of all requests, percentiles of the
    last 2,000; charts and traces show the last 100 requests, and the last 600 looks at each server. Raises UsageError
    before ``init()``.
    """
    from llamatel.view.report import slowest

    running = _running()
    state = running.observer.snapshot(_FRESH_S)
    document = running.live.document(state)
    histories = [running.live.document(state, server["key"]) for server in document["servers"]]
    kept = running.pipeline.kept_spans
    wanted = [one["trace_id"] for one in slowest(document["requests"]) if one["trace_id"]]
    traces = {} if kept is None else {trace_id: kept.trace(trace_id) for trace_id in wanted}
    made = Report(document, histories, traces, title or f"Report of {running.settings.service_name or 'llamatel'}")
    if path is not None:
        made.save(path)
    return made


def _running() -> runtime.Runtime:
    """The telemetry that runs, with all of its requests written."""
    running = runtime.current()
    if running is None:
        raise UsageError("there is nothing to show: llamatel.init() first, and look before llamatel.shutdown()")
    if running.observer.watching:
        time.sleep(_LAST_LINES_S)  # a client has its answer a moment before the server's log says so
    running.observer.flush(2.0)
    return running


def _save(path: Path, html: str, png: Any) -> Path:
    if path.suffix == ".png":
        path.write_bytes(png())
    elif path.suffix in (".html", ".htm"):
        path.write_text(html, encoding="utf-8")
    else:
        raise UsageError(f"'{path}' ends neither in .html nor in .png")
    return path
