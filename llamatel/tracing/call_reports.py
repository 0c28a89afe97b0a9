"""Reports of client calls, sent to the llamatel that watches the server from another process.

With them a request becomes the child of its call there, too (see ``joining``). ``call_reporter`` sends them,
``call_report_receiver`` receives them; this is the message, JSON over HTTP:

- ``GET /servers.json`` returns the receiver's id and the servers that it watches;
- ``POST /calls.json`` names the servers being called, and describes the calls that are open and those that have
  finished. A process reports its open calls when it starts to call, then every second; the last time when it has had
  none for half a second. The responses have the receiver's time, so that clocks may differ (``clock_offset``).

Before its first call a process also sends a datagram on loopback (``call_announcements``).

Times, counts and the context of the call's span: never text of a prompt or an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)

from llamatel.inputs.documents import parse_json
from llamatel.records import ClientCall, Outcome, ServerInfo
from llamatel.tracing.joining import OpenCall, OpenCalls
from llamatel.tracing.server_addresses import Endpoint, endpoint_of

SERVERS_PATH = "/servers.json"
CALLS_PATH = "/calls.json"
TIME_HEADER = "Llamatel-Time"
"""Of the receiver's responses: its Unix time."""
MAX_BYTES = 65536
"""Most bytes of one message."""
MAX_CALLS = 64
"""Most calls, and servers, in one message; 64 calls take some 35 KiB."""
RENEWED_S = 1.0
"""Interval of reporting open calls."""
EXPECTED_S = 10.0
"""How long calls to a server are expected after it was announced."""
MAX_OPEN = 64
"""Most open calls in one message; the oldest ones."""

_LONGEST_TEXT = 255
_LARGEST_NUMBER = 2**53
_OPERATIONS = ("chat", "text_completion", "embeddings", "rerank")


class InvalidCallReport(ValueError):
    """The body is not a call report."""


def read_text(value: Any) -> str:
    """A short text. Raises InvalidCallReport."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TEXT:
        raise InvalidCallReport("text is missing, or too long")
    return value


def read_number(value: Any) -> float:
    """A number that is not negative. Raises InvalidCallReport."""
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST_NUMBER:  # also refuses NaN
        raise InvalidCallReport("a number is missing, or out of range")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST_NUMBER:
        raise InvalidCallReport("a count is missing, or out of range")
    return value


def _status(value: Any) -> int:
    if type(value) is not int or not 100 <= value <= 599:
        raise InvalidCallReport("an HTTP status is missing, or out of range")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidCallReport("a flag is missing")
    return value


def _operation(value: Any) -> str:
    if value not in _OPERATIONS:
        raise InvalidCallReport("the operation is unknown")
    return str(value)


_REQUIRED: dict[str, Callable[[Any], Any]] = {
    "operation": _operation, "started_at": read_number, "sent_at": read_number, "ended_at": read_number,
    "outcome": Outcome, "tasks": _count, "has_usage": _flag,
}  # fmt: skip
_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "headers_at": read_number, "prefill_s": read_number, "decode_s": read_number, "input_tokens": _count,
    "output_tokens": _count, "cached_tokens": _count, "prompt_computed": _count, "slot": _count, "http_status": _status,
}  # fmt: skip
"""The fields of ClientCall that identify its request, or that the server's spans depend on."""
_TIMES = ("started_at", "sent_at", "ended_at", "headers_at")


@dataclass(frozen=True, slots=True)
class ReportedCall:
    """A call in flight in another process: a ``joining.OpenCall``."""

    server: ServerInfo
    started_at: float
    headers_at: float | None


@dataclass(frozen=True, slots=True)
class CallReport:
    """A message."""

    servers: Sequence[Endpoint]
    """Servers that are being called."""
    calls: Sequence[ClientCall]
    """Finished calls."""
    open_calls: OpenCalls | None = None
    clock_offset_s: float = 0.0
    """The receiver's clock minus the sender's; all times here are by the sender's."""


def write(report: CallReport) -> bytes:
    """Encode a message, with times by the receiver's clock."""
    offset = report.clock_offset_s
    document: dict[str, Any] = {
        "servers": list(report.servers),
        "calls": [_call_as_dict(call, offset) for call in report.calls],
        "clock_offset": offset,
    }
    if (about := report.open_calls) is not None:
        calls = about.calls
        found = None if calls is None else [_open_as_list(one, offset) for one in calls]
        document["open"] = {"client": about.client, "as_of": about.as_of + offset, "calls": found}
    return json.dumps(document, separators=(",", ":")).encode()


def read(body: bytes) -> CallReport:
    """Parse a message; its times are by our clock. Raises InvalidCallReport for what ``write`` does not produce."""
    try:
        document = parse_json(body, largest=MAX_BYTES)
        servers, calls = document["servers"], document["calls"]
        if not isinstance(servers, list) or not isinstance(calls, list) or max(len(servers), len(calls)) > MAX_CALLS:
            raise InvalidCallReport("the lists are missing, or too long")
        about = _open_calls(document["open"]) if "open" in document else None
        offset = _offset(document.get("clock_offset", 0.0))
        return CallReport([read_endpoint(entry) for entry in servers], [_call(entry, offset) for entry in calls], about)
    except InvalidCallReport:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidCallReport(f"not a call report: {type(error).__name__}") from error


def _open_calls(value: Any) -> OpenCalls:
    client, as_of, calls = read_text(value["client"]), read_number(value["as_of"]), value["calls"]
    if calls is not None and (not isinstance(calls, list) or len(calls) > MAX_OPEN):
        raise InvalidCallReport("the list of open calls is missing, or too long")
    return OpenCalls(client, as_of, None if calls is None else [_open_call(entry) for entry in calls])


def _open_call(entry: Any) -> ReportedCall:
    if not isinstance(entry, list) or len(entry) != 4:
        raise InvalidCallReport("an open call is [address, port, started, headers]")
    headers_at = None if entry[3] is None else read_number(entry[3])
    return ReportedCall(ServerInfo(*read_endpoint(entry[:2])), read_number(entry[2]), headers_at)


def read_endpoint(value: Any) -> Endpoint:
    """A server's endpoint. Raises InvalidCallReport."""
    if not isinstance(value, list) or len(value) != 2:
        raise InvalidCallReport("a server is [address, port]")
    return read_text(value[0]), None if value[1] is None else _count(value[1])


def has_trace(call: ClientCall) -> bool:
    """Whether there is a trace that the request can belong to."""
    return get_current_span(_context(call)).get_span_context().is_valid


def _context(call: ClientCall) -> Context:
    return call.span if isinstance(call.span, Context) else Context()


def _open_as_list(call: OpenCall, offset: float) -> list[Any]:
    headers_at = None if call.headers_at is None else call.headers_at + offset
    return [*endpoint_of(call.server), call.started_at + offset, headers_at]


def _offset(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_NUMBER:
        raise InvalidCallReport("a clock offset is out of range")
    return float(value)


def _call_as_dict(call: ClientCall, offset: float) -> dict[str, Any]:
    about = get_current_span(_context(call)).get_span_context()
    known = {name: getattr(call, name) for name in (*_REQUIRED, *_OPTIONAL)}
    known |= {name: known[name] + offset for name in _TIMES if known[name] is not None}
    return {
        "server": endpoint_of(call.server),
        "trace": format_trace_id(about.trace_id),
        "span": format_span_id(about.span_id),
        "sampled": about.trace_flags.sampled,
        **{name: value for name, value in known.items() if value is not None},
        "outcome": call.outcome.value,
    }


def _call(entry: Any, offset: float) -> ClientCall:
    if not isinstance(entry, dict) or entry.keys() - _REQUIRED.keys() - _OPTIONAL.keys() != {
        "server",
        "trace",
        "span",
        "sampled",
    }:
        raise InvalidCallReport("a call has unknown fields, or lacks some")
    address, port = read_endpoint(entry["server"])
    trace, span = _identifier(entry["trace"], 32), _identifier(entry["span"], 16)
    flags = TraceFlags(TraceFlags.SAMPLED if _flag(entry["sampled"]) else TraceFlags.DEFAULT)
    about = SpanContext(trace, span, is_remote=True, trace_flags=flags)
    values: dict[str, Any] = {name: check(entry[name]) for name, check in _REQUIRED.items()}
    values.update({name: check(entry[name]) for name, check in _OPTIONAL.items() if name in entry})
    if (
        not values["started_at"] <= values["sent_at"] <= values["ended_at"]
        or not 1 <= values["tasks"] <= MAX_CALLS * MAX_CALLS
    ):
        raise InvalidCallReport("a call's times or tasks are impossible")
    return ClientCall(
        key=(trace, span),
        span=set_span_in_context(NonRecordingSpan(about), Context()),
        server=ServerInfo(address, port),
        elsewhere=True,
        clock_offset_s=offset,
        **values,
    )


def _identifier(value: Any, digits: int) -> int:
    text = read_text(value)
    if len(text) != digits or not set(text) <= set("0123456789abcdef") or not int(text, 16):
        raise InvalidCallReport("an identifier is not a trace or span id")
    return int(text, 16)
