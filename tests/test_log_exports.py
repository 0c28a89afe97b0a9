"""llama.cpp's lines as exports of log stores hold them: JSON documents, CSV tables, quoted lines."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.llama.log.json_records import JsonStream
from llamatel.llama.log.line_buffer import DocumentPart, LineBuffer
from llamatel.llama.log.log_source import Backlog
from llamatel.llama.log.wrapped_lines import WrappedLines
from llamatel.llama.watch.log_streams import LogStreams
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, ServerInfo
from tests.golden.reading import ZERO, log_lines, read_streams, reading, timed
from tests.test_log_wrappers import date, essence, rfc3339

Lines = Sequence[tuple[str, float]]
Export = Callable[[Lines], str]
LABELS = {"pod": "llama-0", "app": "x"}


def ns(now: float) -> str:
    return f"{round(now * 1e9)}"


def ms(now: float) -> int:
    return round(now * 1e3)


def table(
    rows: list[list[object]], header: list[str] | None = None, delimiter: str = ",", *, quote: bool = False
) -> str:
    out = io.StringIO()
    writer = csv.writer(
        out, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL, delimiter=delimiter, lineterminator="\n"
    )
    writer.writerows([header, *rows] if header else rows)
    return out.getvalue()


def each(form: Callable[[str, float], str], between: str = "\n") -> Export:
    return lambda lines: between.join(form(line, now) for line, now in lines)


def groups(form: Callable[[Lines], object]) -> Export:
    """A JSON document a line, each with some lines."""
    return lambda lines: "\n".join(json.dumps(form(lines[at : at + 7])) for at in range(0, len(lines), 7))


def push(lines: Lines) -> object:
    return {"streams": [{"stream": LABELS, "values": [[ns(now), line] for line, now in lines]}]}


def query_range(lines: Lines) -> object:
    result = {"stream": {"other": "a"}, "values": [[ns(now), line, {"trace": "x" * 60}] for line, now in lines]}
    return {"status": "success", "data": {"resultType": "streams", "result": [result], "stats": {"summary": {"b": 1}}}}


def otlp(lines: Lines) -> object:
    resource = {"attributes": [{"key": "k8s.pod.name", "value": {"stringValue": "llama-0"}}]}
    logs = [{"timeUnixNano": ns(now), "body": {"stringValue": line}} for line, now in lines]
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {}, "logRecords": logs}]}]}


def search_hits(lines: Lines) -> object:
    hits = [
        {"_index": "i", "_source": {"@timestamp": rfc3339(now), "message": line}, "sort": [1]} for line, now in lines
    ]
    return {"took": 1, "hits": {"total": {"value": 3}, "hits": hits}}


def log_events(lines: Lines) -> object:
    events = [{"timestamp": ms(now), "message": line, "ingestionTime": ms(now) + 1} for line, now in lines]
    return {"events": events, "nextForwardToken": "f/1"}


def insights(lines: Lines) -> object:
    rows = [
        [
            {"field": "@timestamp", "value": date(now, "%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"},
            {"field": "@message", "value": line},
        ]
        for line, now in lines
    ]
    return {"results": rows, "status": "Complete"}


def subscription(lines: Lines) -> object:
    return {"logStream": "s", "logEvents": [{"id": "1", "timestamp": ms(now), "message": line} for line, now in lines]}


def cloud_logging(lines: Lines) -> object:
    resource = {"labels": {"pod_name": "llama-0"}, "type": "k8s_container"}
    return [
        {"insertId": "a", "resource": resource, "jsonPayload": {"message": line}, "timestamp": rfc3339(now)}
        for line, now in lines
    ]


def azure(lines: Lines) -> object:
    columns = [{"name": "TimeGenerated", "type": "datetime"}, {"name": "LogEntry", "type": "string"}]
    return {"tables": [{"columns": columns, "rows": [[rfc3339(now), line] for line, now in lines]}]}


def explore(lines: Lines) -> object:
    return [{"line": line, "timestamp": ns(now), "date": rfc3339(now), "fields": LABELS} for line, now in lines]


def otel_debug(line: str, now: float) -> str:
    """As the debug exporter of the OpenTelemetry Collector 0.115 prints it, ``verbosity: detailed``."""
    body = f"Map({json.dumps({'log': line, 'stream': 'stderr'})})" if "launch_slot" in line else f"Str({line})"
    return f"""{rfc3339(now)}\tinfo\tResourceLog #0
Resource SchemaURL:\x20
Resource attributes:
     -> k8s.pod.name: Str(llama-0)
ScopeLogs #0
ScopeLogs SchemaURL:\x20
InstrumentationScope\x20\x20
LogRecord #0
ObservedTimestamp: {date(now, "%Y-%m-%d %H:%M:%S.%f")} +0000 UTC
Timestamp: 1970-01-01 00:00:00 +0000 UTC
SeverityText:\x20
SeverityNumber: Unspecified(0)
Body: {body}
Attributes:
     -> log.file.name: Str(llama.log)
Trace ID:\x20
Span ID:\x20
Flags: 0
\t{{"otelcol.component.id": "debug", "otelcol.component.kind": "exporter", "otelcol.signal": "logs"}}"""


def windows_event(line: str, now: float) -> str:
    return (
        "<Event xmlns='http://schemas.microsoft.com/win/2004/08/events/event'><System><Provider Name='llama'/>"
        f"<TimeCreated SystemTime='{rfc3339(now)}'/><Computer>GPU-1</Computer></System>"
        f"<EventData><Data>{html.escape(line)}</Data></EventData></Event>"
    )


def log4j(line: str, now: float) -> str:
    head = f'<log4j:event logger="llama" timestamp="{ms(now)}" level="INFO">'
    return f"{head}\n<log4j:message><![CDATA[{line}]]></log4j:message>\n</log4j:event>"


def in_one(form: Callable[[Lines], object], indent: int | None = None) -> Export:
    return lambda lines: json.dumps(form(lines), indent=indent)


DATED: dict[str, Export] = {
    "Loki push": in_one(push),
    "Loki push, several": groups(push),
    "Loki query_range": in_one(query_range),
    "Loki query_range, indented": in_one(query_range, 2),
    "Grafana Explore": in_one(explore),
    "Grafana Explore, indented": in_one(explore, 2),
    "Grafana Explore, text": each(lambda line, now: f"{rfc3339(now)}\t{line}"),
    "OTLP": in_one(otlp),
    "OTLP, several": groups(otlp),
    "Elasticsearch": in_one(search_hits),
    "Elasticsearch, indented": in_one(search_hits, 1),
    "Elasticsearch bulk": each(
        lambda line, now: f'{{"index":{{}}}}\n{json.dumps({"@timestamp": rfc3339(now), "message": line})}'
    ),
    "elasticdump": each(
        lambda line, now: json.dumps({"_id": "x", "_source": {"@timestamp": rfc3339(now), "message": line}})
    ),
    "CloudWatch get-log-events": in_one(log_events, 4),
    "CloudWatch get-log-events, text": each(lambda line, now: f"EVENTS\t{ms(now) + 1}\t{line}\t{ms(now)}"),
    "CloudWatch Insights": in_one(insights),
    "CloudWatch subscription": groups(subscription),
    "aws logs tail": each(lambda line, now: f"{rfc3339(now)} ecs/llama/4be8 {line}"),
    "aws logs tail --format json": each(
        lambda line, now: f"{rfc3339(now)} ecs/llama/4be8 {json.dumps({'log': line}, indent=4)}"
    ),
    "Cloud Logging": in_one(cloud_logging, 2),
    "Cloud Logging, YAML": each(lambda line, now: f"---\ntextPayload: {json.dumps(line)}\ntimestamp: '{rfc3339(now)}'"),
    "Azure table": in_one(azure),
    "Splunk HEC": each(lambda line, now: json.dumps({"time": now, "host": "h", "event": line})),
    "Splunk export": each(lambda line, now: json.dumps({"offset": 0, "result": {"_raw": line, "_time": rfc3339(now)}})),
    "VictoriaLogs": each(lambda line, now: json.dumps({"_time": rfc3339(now), "_stream": '{pod="a"}', "_msg": line})),
    "CSV, Kibana": lambda lines: table(
        [[rfc3339(now), line, "llama-0"] for line, now in lines], ["@timestamp", "message", "kubernetes.pod.name"]
    ),
    "CSV, Grafana": lambda lines: table(
        [[rfc3339(now), line, ns(now), "{}"] for line, now in lines], ["Date", "Line", "tsNs", "labels"], quote=True
    ),
    "CSV, CloudWatch": lambda lines: table([[ms(now), line] for line, now in lines], ["timestamp", "message"]),
    "CSV, Azure": lambda lines: table(
        [[rfc3339(now), "c", line] for line, now in lines], ["TimeGenerated [UTC]", "ContainerName", "LogEntry"]
    ),
    "CSV, semicolons": lambda lines: table([[rfc3339(now), line] for line, now in lines], ["time", "log"], ";"),
    "CSV, tabs": lambda lines: table([[rfc3339(now), "a", line] for line, now in lines], ["time", "pod", "log"], "\t"),
    "CSV, no header": lambda lines: table([[rfc3339(now), "pod-1", line] for line, now in lines]),
    "CSV, other header": lambda lines: table(
        [[rfc3339(now), "a", line] for line, now in lines], ["zeit", "ding", "zeile"], quote=True
    ),
    "array a line": each(lambda line, now: json.dumps([rfc3339(now), "pod", line])),
    "svlogd, TAI64N": each(lambda line, now: f"@{(int(now) + (1 << 62) + 10):016x}{int(now % 1 * 1e9):08x} {line}"),
    "gh run view": each(lambda line, now: f"build\tRun tests\t\ufeff{rfc3339(now)} {line}"),
    "tracing of Rust": each(lambda line, now: f'{rfc3339(now)}  INFO run{{model="x"}}: srv::child: {line}'),
    "klog": each(lambda line, now: f'{rfc3339(now)} I 1 child.go:12] "line" text={json.dumps(line)}'),
    "Collector, debug exporter": each(otel_debug),
    "Windows events": each(windows_event),
    "Windows events, one document": lambda lines: (
        f'\ufeff<?xml version="1.0"?><Events>{"".join(windows_event(*each) for each in lines)}</Events>'
    ),
    "log4j XML": each(log4j),
    "HTML table": each(lambda line, now: f"<tr><td>{rfc3339(now)}</td><td>{html.escape(line)}</td></tr>"),
    "structlog": each(lambda line, now: f"{rfc3339(now)} [info     ] {line:<30} [app] model=tiny.gguf pid=12"),
    "structlog, coloured": each(
        lambda line, now: (
            f"\x1b[2m{rfc3339(now)}\x1b[0m [\x1b[32minfo\x1b[0m] \x1b[1m{line}\x1b[0m \x1b[36mpid\x1b[0m=12"
        )
    ),
    "structlog, line in a field": each(lambda line, now: f"{rfc3339(now)} [info] child  line={line!r} pid=12"),
    "Monolog": each(lambda line, now: f'[{rfc3339(now)}] app.INFO: {line} {{"pid":1}} []'),
    "Rich": each(lambda line, now: f"[{rfc3339(now)}] INFO     {line}                 child.py:42"),
    "Airflow": each(lambda line, now: f"[{rfc3339(now)}] {{subprocess.py:93}} INFO - {line}"),
    "Markdown table": each(lambda line, now: f"| {rfc3339(now)} | {line} |"),
    "Python dict": each(lambda line, now: repr({"ts": now, "message": line})),
    "TOML": each(lambda line, now: f"[[log]]\nts = {rfc3339(now)}\nline = {json.dumps(line)}"),
    "base64": each(lambda line, now: json.dumps({"data": base64.b64encode(line.encode()).decode(), "ts": now})),
    "deeply nested": each(lambda line, now: json.dumps({"a": {"b": {"c": {"d": {"e": {"f": line}}}}}, "ts": now})),
    "two fields for messages": each(
        lambda line, now: json.dumps({"kubernetes": {"message": "x"}, "log": {"message": line}, "time": rfc3339(now)})
    ),
    "LTSV": each(lambda line, now: f"time:{rfc3339(now)}\thost:gpu-1\tmessage:{line}"),
    "request number": lambda lines: "\n".join(
        f"{rfc3339(now)} [req-{number}] {line}" for number, (line, now) in enumerate(lines)
    ),
}
"""Exports whose records have a time."""
UNDATED: dict[str, Export] = {
    "spaces after the line": each(lambda line, _: f"{line}   "),
    "columns": each(lambda line, _: f"{line:<200}|"),
    "cat -A": each(lambda line, _: f"{line}$"),
    "tab before the line": each(lambda line, _: f"\t{line}"),
    "syslog message with a space": each(lambda line, _: json.dumps({"msg": f" {line}"})),
    "asciicast": lambda lines: "\n".join(json.dumps([0.5, "o", f"{line}\r\n"]) for line, _ in lines),
    "array": lambda lines: json.dumps([line for line, _ in lines]),
    "array, indented": lambda lines: json.dumps({"lines": [line for line, _ in lines]}, indent=1),
    "ansible": lambda lines: "ok: [h] => " + json.dumps({"r.stdout_lines": [line for line, _ in lines]}, indent=4),
    "one string": lambda lines: json.dumps({"log": "\n".join(line for line, _ in lines)}),
    "quoted": each(lambda line, _: json.dumps(line)),
    "repr of bytes": each(lambda line, _: repr(line.encode() + b"\n")),
    "YAML": each(lambda line, _: f"- {json.dumps(line)}"),
    "YAML, single quotes": each(lambda line, _: "- '" + line.replace("'", "''") + "'"),
    "YAML, records": each(lambda line, _: f"- message: {json.dumps(line)}\n  level: info"),
    "YAML, block": lambda lines: "log: |\n" + "\n".join(f"  {line}" for line, _ in lines),
    "indented": each(lambda line, _: f"{'':8}{line}"),
    "CR LF": each(lambda line, _: line, "\r\n"),
    "CR CR LF": each(lambda line, _: line, "\r\r\n"),
    "progress bar": each(lambda line, _: f"\rloading 10%\rloading 100%\r{line}"),
    "terminal": each(lambda line, _: f"\x1b]0;title\x07\x1b[?2004l\x1b(B\x1b[m\x1b[2K\r{line}\x1b[K"),
    "typescript": lambda lines: "Script started on x\r\n" + "\r\n".join(line for line, _ in lines) + "\r\nScript done",
    "supervisord": each(lambda line, _: f"2026-11-26 10:00:00,123 DEBG 'llama' stderr output:\n{line}"),
    "pm2 --time": each(lambda line, _: f"0|llama    | 2026-09-21T14:13:20: {line}"),
    "Nomad": each(lambda line, _: json.dumps({"alloc_id": "1", "task": "llama", "data": line})),
    "ts, other format": each(lambda line, _: f"21/Sep/2026:14:13:20 {line}"),
    "Ray": each(lambda line, _: f"\x1b[36m(Server pid=12, ip=10.0.0.1)\x1b[0m {line}"),
    "markdown": lambda lines: "```\n" + "\n".join(line for line, _ in lines) + "\n```",
}


def split(text: str, size: int = 50_000) -> list[str]:
    buffer, data = LineBuffer(documents=True), text.encode()
    return [line for at in range(0, len(data), size) for line in buffer.feed(data[at : at + size])] + buffer.flush()


def read(text: str) -> list[Completion]:
    return read_streams([Backlog(split(text), ZERO + 60)])


@pytest.mark.parametrize("name", ["unstamped", "jsonl"])
@pytest.mark.parametrize("export", [*DATED, *UNDATED])
def test_export_all_requests(export: str, name: str) -> None:
    lines = timed(log_lines(name))
    found = read((DATED | UNDATED)[export](lines))
    assert essence(found) == essence(reading(name).completions)
    if export == "Collector, debug exporter" and name == "unstamped":
        assert {each.server.address for each in found} == {"llama-0"}
    if export in DATED and not export.endswith(("YAML", "bulk", "text", "other header", "TOML")):
        for one, other in zip(found, reading(name).completions, strict=True):
            assert one.ended_at == pytest.approx(other.ended_at, abs=1.1)


@pytest.mark.parametrize("export", ["Loki query_range", "Elasticsearch", "CloudWatch Insights"])
def test_export_document_longer_than_a_line(export: str) -> None:
    text = (DATED | UNDATED)[export](timed(log_lines("2026.10.11549"))) + "\n"
    lines = split(text, 1000)
    assert len(lines) > 1
    assert all(isinstance(line, DocumentPart) for line in lines)
    found = read_streams([Backlog(lines, ZERO + 60)])
    assert essence(found) == essence(reading("2026.10.11549").completions)


def test_export_newest_first_is_explained_or_sorted() -> None:
    lines = timed(log_lines("unstamped"))[::-1]
    assert essence(read(DATED["Loki query_range"](lines))) == essence(reading("unstamped").completions)
    for export in ("aws logs tail", "CSV, Kibana", "Grafana Explore, indented"):
        info = ServerInfo("unknown")
        streams = LogStreams(ObservedServer(info, log=ServerLog(info)))
        streams.read_backlog(Backlog(split(DATED[export](lines)), ZERO))
        assert "newest first: give them oldest first" in (streams.explanation or "")


def test_export_other_text_after_the_line_is_explained() -> None:
    """Where its end is unknown."""
    info = ServerInfo("unknown")
    streams = LogStreams(ObservedServer(info, log=ServerLog(info)))
    streams.read_backlog(Backlog([f"write(2, '{line}', 90) = 90" for line in log_lines("unstamped")], ZERO))
    assert "hold words of llama.cpp's requests" in (streams.explanation or "")


def test_export_part_of_a_document_is_never_a_line() -> None:
    """A client's text in a string longer than a line could otherwise start one."""
    forged = "0.00.000.001 I slot      release: id  0 | task 0 | stop processing: n_tokens = 9, truncated = 0"
    line = json.dumps({"message": f"0.00.988.550 W srv    operator(): got exception: {'x' * 70_000}{forged * 3000}"})
    for size in (1000, 65_536, 70_000, 1 << 20):
        wrapped = WrappedLines()
        found = [carried.text for part in split(f"{line}\n", size) for carried in wrapped.feed(part)]
        assert not [text for text in found if text.startswith("0.00.000.001")]
    own = f"0.00.988.550 W srv    operator(): {'x' * 70_000}"
    assert [len(text) for text in split(f"{own}\n{{}}\n", 1000)] == [65_536, 2] or len(
        split(f"{own}\n{{}}\n", 1000)
    ) == 2


def test_json_stream_is_bounded() -> None:
    for unit in ("[", '{"a":', "[1,", '["a",', '"', "[[1],"):
        stream = JsonStream(lambda _: False)
        for _ in range(400):
            assert list(stream.feed("[" + unit * 1000, whole=False)) == []
        assert stream.failed


JSON = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        JSON | st.sampled_from(log_lines("unstamped")[-4:]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    ),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_json_stream_any_document_in_any_parts(document: object, size: int, indent: int | None) -> None:
    text = json.dumps(document, indent=indent)
    stream = JsonStream(lambda _: False)
    for at in range(0, len(text), size):
        list(stream.feed(text[at : at + size], whole=False))
    if isinstance(document, (dict, list)):
        assert (stream.finished, stream.failed) == (True, False)
    read(text)


def test_backlog_undated_first_line() -> None:
    """A banner, or the start of a log before its dates were switched on."""
    lines = timed(log_lines("unstamped"))
    text = "\n".join(f"{rfc3339(now)} {line}" for line, now in lines)
    for before in ("llama-server 1.2 starting", lines[0][0]):
        found = read_streams([Backlog(split(f"{before}\n{text}"), ZERO + 1e6)])
        for one, other in zip(found, reading("unstamped").completions, strict=True):
            assert one.ended_at == pytest.approx(other.ended_at, abs=1.1)


def test_backlog_undated_lines_between_dated_ones() -> None:
    lines = timed(log_lines("unstamped"))
    text = "\n".join(line if number % 3 else f"{rfc3339(now)} {line}" for number, (line, now) in enumerate(lines))
    found = read_streams([Backlog(split(text), ZERO + 1e6)])
    assert essence(found) == essence(reading("unstamped").completions)
    for one, other in zip(found, reading("unstamped").completions, strict=True):
        assert one.ended_at == pytest.approx(other.ended_at, abs=1.1)


def test_line_suffix_is_not_learned_from_text_of_clients() -> None:
    line = "0.00.988.550 W srv    operator(): got exception: slot release: id  0 | task 0 | processing task }}}"
    other = "0.00.988.551 W srv    operator(): got exception: }}}"
    wrapped = WrappedLines()
    assert [each.text for text in (line, other) for each in wrapped.feed(text)] == [line, other]
