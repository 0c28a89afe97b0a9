"""Encodes spans of requests as OTLP protobuf, in a tenth of the time of the SDK's objects and encoder.

Field numbers are those of opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto, which are stable. A test
compares the result with the SDK's encoder.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceState

_double = struct.Struct("<d").pack
_fixed64 = struct.Struct("<Q").pack
_fixed32 = struct.Struct("<I").pack
_BYTE = tuple(bytes((value,)) for value in range(128))
_MAX_CACHED = 4096

_KINDS = {kind: bytes((0x30, kind.value + 1)) for kind in SpanKind}
"""Field 6, an enumeration with 0 for unspecified."""
_REMOTE_KNOWN = 0x100
_REMOTE = 0x200
_STATUS_ERROR = b"\x18\x02"
_DROPPED = (b"\x50", b"\x60", b"\x70")


def _varint(value: int) -> bytes:
    if 0 <= value < 128:
        return _BYTE[value]
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    size = len(content)
    return tag + (_BYTE[size] if size < 128 else _varint(size)) + content


_keys: dict[str, bytes] = {}
_strings: dict[tuple[str, str], bytes] = {}
"""Cached KeyValue messages."""


def _any_value(value: object) -> bytes:
    if isinstance(value, str):
        return _field(b"\x0a", value.encode("utf-8", "replace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value)
    if isinstance(value, float):
        return b"\x21" + _double(value)
    if isinstance(value, (tuple, list)):
        return _field(b"\x2a", b"".join(_field(b"\x0a", _any_value(one)) for one in value))
    return _field(b"\x0a", str(value).encode("utf-8", "replace"))


def key_value(key: str, value: object) -> bytes:
    """A KeyValue message."""
    encoded_key = _keys.get(key)
    if encoded_key is None:
        if len(_keys) >= _MAX_CACHED:
            _keys.clear()
        encoded_key = _keys[key] = _field(b"\x0a", key.encode("utf-8", "replace"))
    return encoded_key + _field(b"\x12", _any_value(value))


def _attributes(attributes: Mapping[str, object], tag: bytes) -> bytes:
    """A repeated KeyValue field. Strings are cached, as they recur in requests; numbers are not."""
    parts = []
    for key, value in attributes.items():
        if isinstance(value, str):
            found = _strings.get((key, value))
            if found is None:
                found = key_value(key, value)
                if len(value) < 200:
                    if len(_strings) >= _MAX_CACHED:
                        _strings.clear()
                    _strings[key, value] = found
        else:
            found = key_value(key, value)
        size = len(found)
        parts.append(tag + (_BYTE[size] if size < 128 else _varint(size)) + found)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a span."""

    name: str
    at_ns: int
    attributes: Mapping[str, Any]


def span(
    context: SpanContext,
    parent: SpanContext | None,
    name: str,
    kind: SpanKind,
    *,
    times: tuple[int, int],
    attributes: Mapping[str, object],
    events: Sequence[Event] = (),
    links: Sequence[Link] = (),
    error: str | None = None,
    ok: bool = False,
    dropped: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """A span as an element of ``ScopeSpans.spans``.

    ``times``: start and end, Unix nanoseconds; ``error``: description of status ERROR; ``ok``: status OK; ``dropped``:
    numbers of attributes, events and links.
    """
    trace_id = context.trace_id.to_bytes(16, "big")
    flags = _REMOTE_KNOWN | (_REMOTE if parent is not None and parent.is_remote else 0)
    parts = [
        b"\x0a\x10", trace_id, b"\x12\x08", context.span_id.to_bytes(8, "big"), _state(context.trace_state, b"\x1a"),
    ]  # fmt: skip
    if parent is not None:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
    parts += (
        _field(b"\x2a", name.encode("utf-8", "replace")), _KINDS[kind], b"\x39", _fixed64(times[0]), b"\x41",
        _fixed64(times[1]), _attributes(attributes, b"\x4a"),
    )  # fmt: skip
    parts += (_field(b"\x5a", _event(event)) for event in events)
    parts += (_field(b"\x6a", _link(link)) for link in links)
    if error is not None:
        parts.append(
            _field(b"\x7a", (_field(b"\x12", error.encode("utf-8", "replace")) if error else b"") + _STATUS_ERROR)
        )
    else:
        parts.append(b"\x7a\x02\x18\x01" if ok else b"\x7a\x00")
    if any(dropped):
        parts += (tag + _varint(count) for tag, count in zip(_DROPPED, dropped, strict=True) if count)
    parts += (b"\x85\x01", _fixed32(flags))
    return _field(b"\x12", b"".join(parts))


def _state(state: TraceState, tag: bytes) -> bytes:
    return _field(tag, state.to_header().encode()) if state else b""


def _event(event: Event) -> bytes:
    name = _field(b"\x12", event.name.encode("utf-8", "replace"))
    return b"\x09" + _fixed64(event.at_ns) + name + _attributes(event.attributes, b"\x1a")


def _link(link: Link) -> bytes:
    context = link.context
    flags = _REMOTE_KNOWN | (_REMOTE if context.is_remote else 0)
    return (
        b"\x0a\x10" + context.trace_id.to_bytes(16, "big") + b"\x12\x08" + context.span_id.to_bytes(8, "big")
        + _state(context.trace_state, b"\x1a") + _attributes(link.attributes or {}, b"\x22") + b"\x35" + _fixed32(flags)
    )  # fmt: skip


def resource(attributes: Mapping[str, object]) -> bytes:
    """A Resource message."""
    return _attributes(attributes, b"\x0a")


def scope(name: str, version: str | None, attributes: Mapping[str, object] | None = None) -> bytes:
    """An InstrumentationScope message."""
    about = _text(b"\x0a", name) + _text(b"\x12", version or "")
    return about + _attributes(attributes, b"\x1a") if attributes else about


def export_request(resource: bytes, resource_schema: str, scopes: Mapping[tuple[bytes, str], Sequence[bytes]]) -> bytes:
    """An ExportTraceServiceRequest for one resource; ``scopes``: results of ``span`` by scope and schema URL."""
    parts = [_field(b"\x0a", resource)]
    for (about, schema), spans in scopes.items():
        parts.append(_field(b"\x12", _field(b"\x0a", about) + b"".join(spans) + _text(b"\x1a", schema)))
    parts.append(_text(b"\x1a", resource_schema))
    return _field(b"\x0a", b"".join(parts))


def sdk_span(span_: ReadableSpan) -> bytes:
    """A span of the SDK as an element of ``ScopeSpans.spans``."""
    context = span_.get_span_context()
    assert context is not None  # noqa: S101 - a finished span has one
    status = span_.status
    events = [Event(event.name, event.timestamp, event.attributes or {}) for event in span_.events]
    return span(
        context, span_.parent, span_.name, span_.kind, times=(span_.start_time or 0, span_.end_time or 0),
        attributes=span_.attributes or {}, events=events,
        links=span_.links, error=(status.description or "") if status.status_code is StatusCode.ERROR else None,
        ok=status.status_code is StatusCode.OK,
        dropped=(span_.dropped_attributes, span_.dropped_events, span_.dropped_links),
    )  # fmt: skip


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "replace")) if text else b""
