"""``last_trace()`` and ``report()``: this process's requests, for a notebook or a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel.errors import UsageError

if TYPE_CHECKING:
    from llamatel.telemetry.kept_spans import KeptSpan, KeptSpans

_FAILURES = 3
"""Most failed calls at the top of a report."""


class Trace:
    """The spans of a trace, drawn as a waterfall: HTML in Jupyter, text elsewhere."""

    def __init__(self, spans: Sequence[KeptSpan], warnings: Sequence[str] = ()) -> None:
        self.spans = tuple(spans)
        self.warnings = tuple(warnings)
        """Warnings about the servers at that time."""

    @property
    def trace_id(self) -> str:
        """As shown in Tempo and Jaeger."""
        return self.spans[0].trace_id

    def __str__(self) -> str:
        from llamatel.ui.view.glyphs import glyphs_for
        from llamatel.ui.view.trace_view import trace_text

        text = trace_text(self.spans, 100, glyphs_for(sys.stdout.encoding)).plain
        return "\n".join([*(f"warning: {warning}" for warning in self.warnings), text])

    __repr__ = __str__

    @property
    def html(self) -> str:
        """An HTML fragment."""
        from llamatel.ui.view.trace_view import trace_html

        return trace_html(self.spans, self.warnings)

    def _repr_html_(self) -> str:
        return self.html

    def png(self) -> bytes:
        """A picture. Raises UsageError without matplotlib (extra ``plot``)."""
        from llamatel.ui.view.png_figures import trace_png

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
        """Its figures as JSON-ready data (see ``llamatel.ui.live``)."""
        self.title = title
        self._histories = histories
        self._traces = traces

    @property
    def html(self) -> str:
        """One self-contained HTML file."""
        from llamatel.ui.view.run_report import report_html

        return report_html(self.document, self._histories, lambda trace_id: self._traces.get(trace_id, ()), self.title)

    def png(self) -> bytes:
        """Its charts as a picture. Raises UsageError without matplotlib (extra ``plot``)."""
        from llamatel.ui.view.png_figures import report_png

        return report_png(self.document, self._histories, self.title)

    def save(self, path: str | Path) -> Path:
        """Write it to a file: ``.html`` or ``.png``."""
        return _save(Path(path), self.html, self.png)

    def __repr__(self) -> str:
        from llamatel.ui.view.number_format import plural

        total = self.document["summary_of_all"]["requests"]["total"]
        warnings = "".join(f"warning: {alarm['text']}\n" for alarm in self.document["alarms"])
        return f"{warnings}<llamatel report of {plural(total, 'request')}: .save('report.html')>"

    def _repr_html_(self) -> str:
        from llamatel.ui.view.run_report import report_fragment

        return report_fragment(
            self.document, self._histories, lambda trace_id: self._traces.get(trace_id, ()), self.title
        )


@dataclass(frozen=True, slots=True)
class KeptRun:
    """The data of ``last_trace()`` and ``report()``; after ``shutdown()`` the state at that time."""

    spans: KeptSpans | None
    document: Mapping[str, Any]
    histories: Sequence[Mapping[str, Any]]
    service_name: str | None

    def trace(self) -> Trace:
        """The last finished trace. Raises UsageError."""
        if self.spans is None:
            raise UsageError("no spans are kept: use llamatel.init(keep_traces=True)")
        spans = self.spans.trace()
        if not spans:
            raise UsageError("no trace has finished yet")
        return Trace(spans, [str(alarm["text"]) for alarm in self.document["alarms"]])

    def report(self, title: str | None) -> Report:
        """A report of all requests, with the last failed calls as warnings."""
        from llamatel.ui.view.run_report import slowest

        document = dict(self.document)
        failures = [] if self.spans is None else self.spans.failed_calls(_FAILURES)
        document["alarms"] = [
            *document["alarms"],
            *(
                {"at": failed.ended_at, "name": "failed_call", "text": f"a call failed: {failed.reason}"}
                for failed in failures
            ),
        ]
        wanted = [one["trace_id"] for one in slowest(document["requests"]) if one["trace_id"]]
        traces = {} if self.spans is None else {trace_id: self.spans.trace(trace_id) for trace_id in wanted}
        return Report(document, self.histories, traces, title or f"Report of {self.service_name or 'llamatel'}")


def _save(path: Path, html: str, png: Any) -> Path:
    if path.suffix == ".png":
        path.write_bytes(png())
    elif path.suffix in (".html", ".htm"):
        path.write_text(html, encoding="utf-8")
    else:
        raise UsageError(f"'{path}' ends neither in .html nor in .png")
    return path
