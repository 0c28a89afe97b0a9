"""One attempt to send one OTLP message over HTTP or gRPC, and its outcome.

The SDK's exporters are not used: they follow redirects, ignore rejected data, put credentials and their own texts into
log messages, and let variables of other libraries replace the configured certificates.
"""

from __future__ import annotations

import gzip
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from llamatel.errors import HttpError
from llamatel.inputs.address import Address
from llamatel.inputs.http import HttpClient
from llamatel.telemetry.otlp_options import OtlpOptions
from llamatel.telemetry.settings import OtlpTarget

_METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_RETRYABLE_STATUS = frozenset({408, 429, 502, 503, 504})
_UNSUPPORTED_STATUS = frozenset({404, 405, 415, 501})
_RETRYABLE_CODES = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The start of an HTTP/2 connection with an empty SETTINGS frame."""
_SETTINGS_FRAME = 4
_PROBE_S = 2.0
_MAX_RESPONSE = 1 << 20
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Sent:
    """The outcome of one attempt."""

    delivered: bool
    reason: str = ""
    """Why it failed, or why part of it was rejected; one line without credentials."""
    retry: bool = False
    """Whether another attempt may succeed."""
    retry_after_s: float | None = None
    unsupported: bool = False
    """Whether the endpoint has no such signal."""
    rejected: int = 0
    """Spans or data points that the endpoint received and rejected."""


class Transport(Protocol):
    """Sends messages of one signal to one endpoint."""

    def send(self, message: bytes, timeout_s: float) -> Sent:
        """Send a serialized Export...ServiceRequest; does not raise."""

    def reset(self) -> None:
        """Drop connections, in a forked child."""

    def close(self) -> None:
        """Close connections."""


def transport(signal: str, target: OtlpTarget, options: OtlpOptions) -> Transport:
    """The transport for a target. Raises PipelineError for certificates that cannot be used."""
    if target.guessed:
        return _Guessing(signal, target, options)
    return _Grpc(signal, target, options) if target.protocol == "grpc" else _Http(signal, target, options)


def one_line(text: str) -> str:
    """An external text, bounded, for a message."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:_MAX_REASON]


class _Http:
    """OTLP over HTTP with protobuf. Redirects are not followed."""

    def __init__(self, signal: str, target: OtlpTarget, options: OtlpOptions) -> None:
        self._signal = signal
        parts = urlsplit(target.endpoint)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        self._address = Address(parts.scheme, parts.hostname or "", port)
        self._tls = options.tls() if parts.scheme == "https" else None
        self._compression = options.compression
        self._headers = {**options.headers, "content-type": "application/x-protobuf"}
        if self._compression != "none":
            self._headers["content-encoding"] = self._compression
        self.reset()

    def reset(self) -> None:
        self._client = HttpClient(self._address, headers=self._headers, tls=self._tls, use_proxy=True)

    def close(self) -> None:
        self._client.close()

    def send(self, message: bytes, timeout_s: float) -> Sent:
        body = message
        if self._compression != "none":
            body = (gzip if self._compression == "gzip" else zlib).compress(message)
        try:
            response = self._client.request(self._path, total_s=timeout_s, body=body, largest=_MAX_RESPONSE)
        except HttpError as error:
            hint = "; does it speak gRPC? (--otlp-protocol grpc)" if error.kind in ("invalid", "closed") else ""
            return Sent(False, f"{one_line(str(error))}{hint}", retry=error.kind not in ("tls", "host_not_found"))
        if 200 <= response.status < 300:
            return _accepted(self._signal, response.data)
        reason = f"HTTP {response.status}"
        if 300 <= response.status < 400:
            where = urlsplit(response.headers.get("Location", ""))
            to = f"{where.scheme}://{where.hostname}" if where.hostname else "elsewhere"
            return Sent(False, f"{reason}: it redirects to {one_line(to)}, which is not followed")
        unsupported = response.status in _UNSUPPORTED_STATUS
        if unsupported and self._signal == "metrics":
            reason += " (a backend for traces alone? OTEL_METRICS_EXPORTER=prometheus or none)"
        return Sent(
            False, reason, response.status in _RETRYABLE_STATUS, _seconds(response.headers.get("Retry-After", "")),
            unsupported=unsupported,
        )  # fmt: skip


class _Grpc:
    """OTLP over gRPC."""

    def __init__(self, signal: str, target: OtlpTarget, options: OtlpOptions) -> None:
        self._signal = signal
        parts = urlsplit(target.endpoint if "://" in target.endpoint else f"//{target.endpoint}")
        self._where = parts.netloc.rpartition("@")[2]
        plain = parts.scheme == "http" if options.insecure is None or parts.scheme else options.insecure
        self._options = options
        self._metadata = tuple(options.headers.items())
        if not plain:
            options.tls()  # reports certificates that cannot be used
        self._plain = plain
        self._channel: Any = None
        self._abandoned: list[Any] = []
        # Imported here, if it may be used, because imports during the interpreter's exit can fail.
        self._call: Callable[..., bytes] | None = None if target.guessed else self._connect()

    def reset(self) -> None:
        self._abandoned.append(self._channel)  # closing it would affect the parent's connections
        self._channel = self._call = None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _connect(self) -> Callable[..., bytes]:
        import grpc

        compression = grpc.Compression.Gzip if self._options.compression == "gzip" else grpc.Compression.NoCompression
        if self._plain:
            self._channel = grpc.insecure_channel(self._where, compression=compression)
        else:
            files = [
                None if path is None else open(path, "rb").read()  # noqa: PTH123, SIM115
                for path in (self._options.client_key, self._options.client_certificate)
            ]
            credentials = grpc.ssl_channel_credentials(self._options.ca, *files)
            self._channel = grpc.secure_channel(self._where, credentials, compression=compression)
        call: Callable[..., bytes] = self._channel.unary_unary(_METHODS[self._signal])
        return call

    def send(self, message: bytes, timeout_s: float) -> Sent:
        import grpc
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        try:
            if self._call is None:
                self._call = self._connect()
            with suppress_instrumentation():  # gRPC's own retries, which the application may have enabled
                answer = self._call(message, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            code, details = error.code().name, one_line(error.details() or "")
            unsupported = code == "UNIMPLEMENTED"
            return Sent(False, _grpc_reason(code, details), code in _RETRYABLE_CODES, unsupported=unsupported)
        except (OSError, ValueError) as error:  # removed certificates, a closed channel
            return Sent(False, one_line(str(error)))
        return _accepted(self._signal, answer)


class _Guessing:
    """Detects at the first attempt whether an endpoint on an unusual port speaks HTTP/2 without TLS, as gRPC does."""

    def __init__(self, signal: str, target: OtlpTarget, options: OtlpOptions) -> None:
        self._grpc = _Grpc(signal, target, options)
        self._http = _Http(signal, target, options)
        parts = urlsplit(target.endpoint)
        self._plain = parts.scheme == "http"
        self._address = (parts.hostname or "", parts.port or 80)
        self._chosen: Transport | None = None if self._plain else self._grpc

    def reset(self) -> None:
        self._grpc.reset()
        self._http.reset()

    def close(self) -> None:
        self._grpc.close()
        self._http.close()

    def send(self, message: bytes, timeout_s: float) -> Sent:
        if self._chosen is None:
            started = time.monotonic()
            speaks = speaks_http2(self._address, min(_PROBE_S, timeout_s))
            timeout_s = max(0.1, timeout_s - (time.monotonic() - started))
            if speaks is not None:
                self._chosen = self._grpc if speaks else self._http
        return (self._chosen or self._grpc).send(message, timeout_s)


def speaks_http2(address: tuple[str, int], timeout_s: float) -> bool | None:
    """Whether a server answers an HTTP/2 preface in HTTP/2; None if that is unknown."""
    try:
        with socket.create_connection(address, timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except OSError:
        return None
    return len(answer) >= 4 and answer[3] == _SETTINGS_FRAME and not answer.startswith(b"HTTP")


def _grpc_reason(code: str, details: str) -> str:
    if "HTTP/2" in details or "Stream removed" in details or code in ("UNIMPLEMENTED", "UNKNOWN"):
        return f"{code}: {details}; does it speak HTTP? (--otlp-protocol http/protobuf)"
    if "refused" in details:
        return "connection refused"
    return f"{code}: {details}" if details else code


def _accepted(signal: str, answer: bytes) -> Sent:
    """A success, of which a part may be rejected."""
    if not answer:
        return Sent(True)
    from google.protobuf.message import DecodeError

    try:
        if signal == "traces":
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

            spans = ExportTraceServiceResponse.FromString(answer).partial_success
            rejected, message = spans.rejected_spans, spans.error_message
        else:
            from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

            points = ExportMetricsServiceResponse.FromString(answer).partial_success
            rejected, message = points.rejected_data_points, points.error_message
    except DecodeError:  # a server that answers with text or JSON
        return Sent(True)
    return Sent(True, one_line(message), rejected=max(0, rejected))


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and len(text) < 6 else None
