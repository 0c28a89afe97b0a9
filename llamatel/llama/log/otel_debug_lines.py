"""Reads log records that the OpenTelemetry Collector's debug exporter printed, with ``verbosity: detailed``.

A record is some twenty lines: resource attributes, then for each log record its timestamps, ``Body: Str(...)`` and
attributes. Source: opentelemetry-collector, exporter/internal/otlptext/logs.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from llamatel.inputs.documents import InvalidDocument, parse_json

START = re.compile(r"(?:[^\"'{}]{1,80}\t)?(?:ResourceLog|LogRecord) #\d{1,9}$")
_RECORD = re.compile(r"(?:LogRecord|ScopeLogs|ResourceLog) #\d{1,9}$")
_ATTRIBUTE = re.compile(r"\s{1,20}-> ([\w.@/-]{1,128}): \w{1,10}\((.{0,1000})\)$")
_TIME = re.compile(r"(?:Observed)?Timestamp: (?!1970-)(\d{4}-.{15,60})$")
_BODY = re.compile(r"Body: (\w{1,10})\((.*)", re.DOTALL)
_OTHER = re.compile(
    r"(?:Resource|ScopeLogs) SchemaURL:|Resource attributes:|InstrumentationScope |Severity(?:Text|Number):|EventName:"
    r"|Timestamp: |ObservedTimestamp: |Span ID:|Flags:|DroppedAttributesCount:|Attributes:"
)
_AFTER_BODY = re.compile(r"(?:Attributes|Trace ID):")
_MOST_ATTRIBUTES = 64
_LONGEST_BODY = 1 << 16

Record = Mapping[str, object]


class OtelDebugLines:
    """The records of one stream of such lines."""

    def __init__(self) -> None:
        self._resource: dict[str, object] = {}
        self._record: dict[str, object] | None = None
        """The record that is not complete; None between records."""
        self._body: str | None = None
        """Its body, which may have several lines."""
        self._kind = ""
        """The body's type."""

    def feed(self, line: str) -> tuple[bool, Record | None]:
        """Whether a line is a part of such a record, and the record that it completes."""
        record = self._record
        if self._body is not None and _AFTER_BODY.match(line) is None and len(self._body) < _LONGEST_BODY:
            self._body += f"\n{line}"
            return True, None
        if self._body is not None and record is not None:
            record["body"], self._body = _value(self._kind, self._body.rstrip().removesuffix(")")), None
        start = START.match(line) or _RECORD.match(line)
        if start is not None or line.startswith("Trace ID:"):
            if "ResourceLog #" in line:
                self._resource = {}
            self._record = {} if "LogRecord #" in line else None
            return True, {**self._resource, **record} if record and "body" in record else None
        if (time := _TIME.match(line)) is not None and record is not None:
            record["timestamp"] = time.group(1).replace(" +", "+").removesuffix(" UTC")
        elif (body := _BODY.match(line)) is not None and record is not None:
            self._kind, self._body = body.groups()
        elif (attribute := _ATTRIBUTE.match(line)) is not None:
            into = self._resource if record is None else record
            if len(into) < _MOST_ATTRIBUTES:
                into.setdefault(attribute.group(1), attribute.group(2))
        else:
            return _OTHER.match(line) is not None, None
        return True, None


def _value(kind: str, text: str) -> object:
    """A body: a map is printed as JSON."""
    if kind != "Map":
        return text
    try:
        return parse_json(text)
    except InvalidDocument:
        return text
