"""Writes docs/metrics.md and docs/spans.md from the tables (``make docs``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from llamatel.metrics import METRICS, SERVER_ATTRIBUTES, Metric
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name
from llamatel.telemetry.span_table import ATTRIBUTES, CLIENT, DECORATED, IN_PROCESS, LATENCY, OBSERVED, SPANS

DOCS = Path(__file__).resolve().parents[2] / "docs"
_MADE = "<!-- Made by `make docs`; do not edit. -->\n"


def metrics_page() -> str:
    """docs/metrics.md."""
    server = ", ".join(f"`{name}`" for name in SERVER_ATTRIBUTES)
    labels = ", ".join(f"`{prometheus_label(name)}`" for name in SERVER_ATTRIBUTES)
    about = f"""# Metrics

{_MADE}
Generated from the table in [llamatel/metrics.py](../llamatel/metrics.py). Unknown values are absent, never zero.

Every metric about a server has the attributes {server} (in Prometheus: {labels}), and
those listed below. In Prometheus names, dots become underscores and the unit becomes a suffix; histograms have
`_bucket`, `_sum` and `_count`. OTLP uses the names in the first column. An OpenTelemetry Collector that forwards metrics to Prometheus appends `_ratio` to gauges
of unit 1; the configuration in [deploy/](../deploy/README.md) prevents that, because our dashboards and rules use the
names in the last column.

"""
    return about + "\n".join(_metric_groups()) + _buckets()


def _metric_groups() -> Iterable[str]:
    groups: dict[str, list[Metric]] = {}
    for row in METRICS:
        words = row.name.split(".")
        groups.setdefault(".".join(words[: 2 if words[0] != "hw" else 1]), []).append(row)
    merged: dict[str, list[Metric]] = {}
    for name, rows in groups.items():
        merged.setdefault(name if len(rows) > 1 else f"{name.split('.')[0]}, others", []).extend(rows)
    for name, rows in merged.items():
        yield f"## {name}\n"
        yield "| metric | kind, unit | attributes | what | in Prometheus |\n| --- | --- | --- | --- | --- |"
        for row in rows:
            attributes = ", ".join(f"`{attribute}`" for attribute in row.attributes) or "–"
            kind = "counter" if row.kind.value == "total" else row.kind.value
            yield (
                f"| `{row.name}` | {kind}, {_code(row.unit)} | {attributes} | {_cell(row.help)} "
                f"| `{prometheus_name(row)}` |"
            )
        yield ""


def _buckets() -> str:
    lines = ["## Buckets of histograms\n", "| metric | upper bounds |", "| --- | --- |"]
    lines += [
        f"| `{row.name}` | {', '.join(f'{bound:g}' for bound in row.buckets)} |" for row in METRICS if row.buckets
    ]
    return "\n".join(lines) + "\n"


def spans_page() -> str:
    """docs/spans.md."""
    spans = "\n".join(f"| `{row.name}` | {row.kind} | {_cell(row.help)} |" for row in SPANS)
    attributes, latency, in_process, client, decorated, observed = (
        "\n".join(f"| `{row.name}` | {row.type} | {_cell(row.help)} |" for row in rows)
        for rows in (ATTRIBUTES, LATENCY, IN_PROCESS, CLIENT, DECORATED, OBSERVED)
    )
    return f"""# Spans

{_MADE}
Generated from the table in [span_table.py](../llamatel/telemetry/span_table.py). Names follow the OpenTelemetry GenAI
conventions; names without a convention start with `llamacpp.`. Spans contain no text of prompts or answers, unless
content capture is enabled.

| span | kind | what |
| --- | --- | --- |
{spans}

`queue`, `prefill` and `decode` are children of the request's span and have no attributes. An unknown phase
has no span. All spans are written when the request has finished.

## Attributes of a request

| attribute | type, unit | what |
| --- | --- | --- |
{attributes}

With `LLAMATEL_LATENCY_ATTRIBUTES=true` also the attributes that vLLM and SGLang write (see [semconv.md](semconv.md)):

| attribute | type, unit | what |
| --- | --- | --- |
{latency}

## Attributes of a call of llama-cpp-python

Its span is INTERNAL, and a child of the current span; its operation is chat,
text_completion or embeddings. It has no address, slot, task or queue. See [in-process.md](in-process.md).

| attribute | type, unit | what |
| --- | --- | --- |
{in_process}

## Attributes of a client call

Its span is CLIENT, `{{gen_ai.operation.name}} {{gen_ai.request.model}}`, with its own children `queue`,
`prefill` and `decode`; an estimated `queue` has `llamacpp.queue.estimated`. See [tracing.md](tracing.md).

| attribute | type, unit | what |
| --- | --- | --- |
{client}

## Attributes of your own code

`@llamatel.task` and `llamatel.span` write INTERNAL spans of the name you give, `@llamatel.workflow`
`invoke_workflow NAME`.

| attribute | type, unit | what |
| --- | --- | --- |
{decorated}

## Attributes of an observed request

It has the model, server, slot and task and, once it generates, the input tokens. See [attach.md](attach.md).

| attribute | type, unit | what |
| --- | --- | --- |
{observed}
"""


def pages() -> dict[str, str]:
    """Each generated page by its file's name."""
    return {"metrics.md": metrics_page(), "spans.md": spans_page()}


def _code(unit: str) -> str:
    return f"`{unit}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
