"""Telemetry settings: the ``OTEL_*`` environment, overridden by flags and arguments.

Only llamatel's own settings are read here: exporters, their targets, and listening addresses. ``otlp_options`` reads
headers, certificates, compression and timeout; the OpenTelemetry SDK reads sampler, span limits, exemplar filter and
resource attributes.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from llamatel.errors import UsageError
from llamatel.inputs.credentials import trust
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.metrics import DEFAULT_METRICS_ADDR

PAGE_TOKEN_VARIABLE = "LLAMATEL_PAGE_TOKEN"  # noqa: S105 - a variable's name
URL_VARIABLE = "LLAMATEL_URL"
CA_FILE_VARIABLE = "LLAMATEL_CA_FILE"

_TRACES_EXPORTERS = ("otlp", "console", "none")
_METRICS_EXPORTERS = ("otlp", "prometheus", "console", "none")
_PYTHON_NAMES = {"otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}
"""Names of the SDK's exporters, which ``opentelemetry-instrument`` also accepts, and their protocol."""
_OLD_NAMES = {"logging": "console"}
_PROTOCOLS = ("grpc", "http/protobuf")
_DEFAULT_PORTS = {"grpc": 4317, "http/protobuf": 4318}


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """The OTLP target of one signal."""

    endpoint: str
    """The URL; over HTTP with the path ``/v1/traces`` or ``/v1/metrics``."""
    protocol: str
    """``grpc`` or ``http/protobuf``."""
    guessed: bool = False
    """Whether neither environment nor port determine the protocol: the exporter detects it (``otlp_transport``)."""

    def __repr__(self) -> str:
        return f"OtlpTarget({self.url!r}, {self.protocol!r}, guessed={self.guessed})"

    @property
    def url(self) -> str:
        """The URL without user, password and query, which may be a key."""
        return _redacted(self.endpoint)

    @property
    def shown(self) -> str:
        """The endpoint as configured, without the signal's path, user and password; for start messages."""
        parts = urlsplit(self.url)
        return parts._replace(path=parts.path.removesuffix("/v1/traces").removesuffix("/v1/metrics")).geturl()


@dataclass(frozen=True, slots=True)
class Settings:
    """Requested telemetry; ``pipeline_builder.build`` turns it into providers."""

    service_name: str | None = None
    """None: ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, else ``llamatel``."""
    disabled: bool = False
    """``OTEL_SDK_DISABLED``: nothing is recorded, nothing listens."""
    traces_otlp: OtlpTarget | None = None
    metrics_otlp: OtlpTarget | None = None
    traces_console: bool = False
    metrics_console: bool = False
    metrics_addr: tuple[str, int] | None = None
    """Host and port of the Prometheus endpoint; port 0: a free one, None: no endpoint."""
    page_token: str | RotatedFiles[str] | None = field(default=None, repr=False)
    """Token of the web page; without one the page is shown on loopback only."""
    llamatel_url: str | None = None
    """``LLAMATEL_URL``: the llamatel that watches the servers that this process calls; ``none``: no llamatel.
    Without it the default address is queried, for servers of this machine."""
    llamatel_ca_file: str | None = None
    """``LLAMATEL_CA_FILE``: certificates that are trusted at ``llamatel_url``, instead of the system's."""
    keep_traces: int = 0
    """Spans kept in memory for ``last_trace()`` and ``report()``; 0: none."""
    span_queue_size: int = 16384
    """Most spans in the export queue (``OTEL_BSP_MAX_QUEUE_SIZE``); others are dropped and counted."""
    span_batch_size: int = 512
    """Most spans in one export (``OTEL_BSP_MAX_EXPORT_BATCH_SIZE``); at most the queue's size."""
    otlp_spool: str | None = None
    """Folder for spans until they are delivered (``LLAMATEL_OTLP_SPOOL``)."""
    collectors: tuple[str, ...] = ()
    """The only collectors to run; empty: all installed ones."""
    without: tuple[str, ...] = ()
    """Collectors not to run."""
    schedule_delay_s: float = 5.0
    """Time between exports of spans (``OTEL_BSP_SCHEDULE_DELAY``)."""
    export_interval_s: float = 60.0
    """Time between exports of metrics (``OTEL_METRIC_EXPORT_INTERVAL``)."""
    shutdown_timeout_s: float = 5.0
    """How long shutdown may wait for exporters."""
    problems: tuple[str, ...] = ()
    """Ignored mistakes in the environment, one line each; only if ``from_env`` was not strict."""

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        service_name: str | None = None,
        otlp_endpoint: str | None = None,
        otlp_protocol: str | None = None,
        otlp_spool: str | None = None,
        metrics_addr: str | None = None,
        keep_traces: int = 0,
        page_token: str | RotatedFiles[str] | None = None,
        collectors: Iterable[str] = (),
        without: Iterable[str] = (),
        shutdown_timeout_s: float = 5.0,
        strict: bool = True,
    ) -> Settings:
        """Read the environment; given arguments override it.

        ``otlp_endpoint`` is a base such as ``http://collector:4318`` or ``collector:4317`` for both signals;
        ``metrics_addr`` is ``HOST:PORT``, or ``none``. Which exporters run is up to ``OTEL_TRACES_EXPORTER`` and
        ``OTEL_METRICS_EXPORTER``; where they are not set, spans and metrics are sent over OTLP if an endpoint is known,
        and metrics are served to Prometheus too. Raises UsageError for invalid arguments and, if ``strict``, for
        mistakes in the environment; otherwise those are passed over and listed in ``problems``.
        """
        env = _Environment(os.environ if environ is None else environ, strict=strict)
        if shutdown_timeout_s <= 0:
            raise UsageError(f"the shutdown timeout must be more than 0 seconds, not {shutdown_timeout_s:g}")
        if otlp_protocol is not None and otlp_protocol not in _PROTOCOLS:
            raise UsageError(f"the OTLP protocol '{otlp_protocol}' is not supported: use {' or '.join(_PROTOCOLS)}")
        if (env.get("OTEL_SDK_DISABLED") or "").lower() == "true":
            return cls(service_name=service_name, disabled=True, shutdown_timeout_s=shutdown_timeout_s)
        base = _without_signal(_with_scheme(otlp_endpoint), "the OTLP endpoint", env) if otlp_endpoint else None
        traces_at = metrics_at = None
        if base is None:
            general = env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            base = _without_signal(general, "OTEL_EXPORTER_OTLP_ENDPOINT", env) if general else None
            traces_at = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            metrics_at = env.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
        traces, traces_by = _exporters(
            env, "OTEL_TRACES_EXPORTER", _TRACES_EXPORTERS, ("otlp",) if traces_at or base else ()
        )
        metrics, metrics_by = _exporters(
            env,
            "OTEL_METRICS_EXPORTER",
            _METRICS_EXPORTERS,
            ("prometheus", "otlp") if metrics_at or base else ("prometheus",),
        )
        queue_size = env.positive("OTEL_BSP_MAX_QUEUE_SIZE", 16384)
        return cls(
            service_name=service_name,
            traces_otlp=_target(env, "traces", base, traces_at, otlp_protocol or traces_by)
            if "otlp" in traces
            else None,
            metrics_otlp=(
                _target(env, "metrics", base, metrics_at, otlp_protocol or metrics_by) if "otlp" in metrics else None
            ),
            traces_console="console" in traces,
            metrics_console="console" in metrics,
            metrics_addr=_metrics_addr(env, metrics_addr, prometheus="prometheus" in metrics),
            page_token=page_token or env.get(PAGE_TOKEN_VARIABLE),
            llamatel_url=_llamatel_url(env, page_token or env.get(PAGE_TOKEN_VARIABLE)),
            llamatel_ca_file=_llamatel_ca_file(env),
            keep_traces=keep_traces,
            otlp_spool=otlp_spool or env.get("LLAMATEL_OTLP_SPOOL"),
            span_queue_size=queue_size,
            span_batch_size=min(queue_size, env.positive("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
            collectors=tuple(collectors),
            without=tuple(without),
            schedule_delay_s=env.positive("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
            export_interval_s=env.positive("OTEL_METRIC_EXPORT_INTERVAL", 60000) / 1000,
            shutdown_timeout_s=shutdown_timeout_s,
            problems=tuple(env.problems),
        )


class _Environment:
    """Environment variables; an empty one counts as unset."""

    def __init__(self, environ: Mapping[str, str], *, strict: bool) -> None:
        self._environ = environ
        self._strict = strict
        self.problems: list[str] = []

    def get(self, variable: str) -> str | None:
        """The variable's value, stripped."""
        return self._environ.get(variable, "").strip() or None

    def problem(self, message: str) -> None:
        """A mistake in the environment: raises UsageError if strict, else it is listed."""
        if self._strict:
            raise UsageError(message)
        self.note(message)

    def note(self, message: str) -> None:
        """List a problem that is logged in any case."""
        if message not in self.problems:
            self.problems.append(message)

    def positive(self, variable: str, default: int) -> int:
        """A whole number above 0."""
        text = self.get(variable)
        if text is None:
            return default
        if not text.isdecimal() or len(text) > 12 or int(text) == 0:
            self.problem(f"{variable} is '{text[:40]}': it must be a whole number above 0")
            return default
        return int(text)


def _exporters(
    env: _Environment, variable: str, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[tuple[str, ...], str | None]:
    """The exporters of a signal, and the protocol that their names imply."""
    names, protocol = [], None
    given = [name.strip() for name in (env.get(variable) or "").split(",") if name.strip()]
    for name in given:
        protocol = _PYTHON_NAMES.get(name, protocol)
        plain = "otlp" if name in _PYTHON_NAMES else _OLD_NAMES.get(name, name)
        if plain in known:
            names.append(plain)
        else:
            env.problem(f"{variable} names an exporter that is not known, '{name[:40]}': use {', '.join(known)}")
    if "none" in names and len(names) > 1:
        env.problem(f"{variable}: 'none' cannot be combined with others")
        names = ["none"]
    return (tuple(names) or (("none",) if given else default)), protocol


def _target(env: _Environment, signal: str, base: str | None, own: str | None, given: str | None) -> OtlpTarget | None:
    """The target of one signal: ``own`` is its own endpoint, used as it is; ``base`` gets the signal's path."""
    variables = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = given or next((value for value in map(env.get, variables) if value), None) or ""
    if protocol and protocol not in _PROTOCOLS:
        env.problem(f"the OTLP protocol '{protocol[:40]}' is not supported: use {' or '.join(_PROTOCOLS)}")
        protocol = "http/protobuf" if protocol.startswith("http") else ""
    endpoint = own or base
    if endpoint is None:
        protocol = protocol or "grpc"
        endpoint = f"http://localhost:{_DEFAULT_PORTS[protocol]}"
    try:
        parts = _split(endpoint)
        guessed = False
        if not protocol:
            # gRPC has no paths, and 4318 is the port of OTLP over HTTP: with either, only one protocol makes sense.
            protocol = "http/protobuf" if parts.port == 4318 or parts.path.strip("/") else "grpc"
            guessed = protocol == "grpc" and parts.port != 4317
        if protocol == "http/protobuf" or guessed:
            if "://" not in endpoint:
                if protocol == "http/protobuf":
                    raise UsageError(f"the OTLP endpoint '{_redacted(endpoint)}' has no scheme: write http://...")
                guessed = False
            elif own is None:
                before, query = _before_query(endpoint)
                endpoint = f"{before.rstrip('/')}/v1/{signal}{query}"
    except UsageError as error:
        env.problem(str(error))
        return None
    return OtlpTarget(endpoint, protocol, guessed)


def _without_signal(endpoint: str, origin: str, env: _Environment) -> str:
    """The base URL without a signal's path, which is often copied from a backend's instructions."""
    base, query = _before_query(endpoint)
    base = base.rstrip("/")
    for signal in ("traces", "metrics", "logs"):
        if base.lower().endswith(f"/v1/{signal}"):
            env.note(f"{origin} ends in /v1/{signal}, which is added for each signal: it was left out")
            return base[: -len(f"/v1/{signal}")] + query
    return endpoint


def _before_query(endpoint: str) -> tuple[str, str]:
    """An endpoint split into the part before its query, and the query with its question mark."""
    base, mark, query = endpoint.partition("?")
    return base, mark + query


def _redacted(endpoint: str) -> str:
    """An endpoint for display: without user, password and query."""
    scheme, separator, rest = endpoint.rpartition("://")
    host, *hidden = re.split(r"[?#]", rest)
    shown = "..." if hidden and "@" in rest else host.rpartition("@")[2]  # either may be part of a password
    return f"{scheme}{separator}{shown}"[:2000]


def _with_scheme(endpoint: str) -> str:
    if "://" not in endpoint and not re.search(r":\d+(?:/|$)", endpoint):
        raise UsageError(f"'{_redacted(endpoint)}' is not an OTLP endpoint: write it like http://127.0.0.1:4317")
    _split(endpoint)
    # Without a scheme the gRPC exporter would use TLS; a host:port on the command line means a collector without it.
    return endpoint if "://" in endpoint else f"http://{endpoint}"


def _split(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        valid = bool(parts.hostname) and parts.scheme in ("", "http", "https") and parts.port != 0
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        valid = False
    if not valid:
        raise UsageError(f"'{_redacted(endpoint)}' is not an OTLP endpoint: write it like http://127.0.0.1:4317")
    return parts


def _metrics_addr(env: _Environment, given: str | None, *, prometheus: bool) -> tuple[str, int] | None:
    if given is not None:
        return _address(given, "--metrics-addr")
    if not prometheus:
        return None
    default_host, _, default_port = DEFAULT_METRICS_ADDR.rpartition(":")
    host = env.get("OTEL_EXPORTER_PROMETHEUS_HOST") or default_host
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    port = env.get("OTEL_EXPORTER_PROMETHEUS_PORT") or default_port
    try:
        return _address(f"{host}:{port}", "OTEL_EXPORTER_PROMETHEUS_HOST and _PORT")
    except UsageError as error:
        env.problem(str(error))
        return _address(DEFAULT_METRICS_ADDR, "")


def _address(text: str, origin: str) -> tuple[str, int] | None:
    if text.lower() == "none":
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host and text.startswith(":"):
        bare = "0.0.0.0"  # noqa: S104 - Prometheus's own form for all addresses
    if not bare or (":" in bare and bare == host) or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{origin}: '{text}' is not an address: write it like {DEFAULT_METRICS_ADDR}, or none")
    return bare, int(port)


def _llamatel_url(env: _Environment, token: object) -> str | None:
    """The URL of a llamatel: of this machine, or over TLS, as the token must not be readable on the way."""
    url = env.get(URL_VARIABLE)
    if url is None or url.lower() == "none":
        return url and "none"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        parts, host, port = urlsplit(""), "", None
    shown_host = f"[{host}]" if ":" in host else host
    if parts.username is None and parts.scheme == "http" and port and is_loopback(host):
        return f"http://{shown_host}:{port}"
    if parts.username is None and parts.scheme == "https" and host and token:
        return f"https://{shown_host}:{port or 443}{parts.path.removesuffix('/metrics').rstrip('/')}"
    env.problem(
        f"{URL_VARIABLE} must be http://127.0.0.1:PORT (a llamatel of this machine, or a tunnel), https://HOST with "
        f"{PAGE_TOKEN_VARIABLE}, or none"
    )
    return None


def _llamatel_ca_file(env: _Environment) -> str | None:
    path = env.get(CA_FILE_VARIABLE)
    if path is None:
        return None
    try:
        trust(path)
    except UsageError as error:
        env.problem(f"{CA_FILE_VARIABLE}: {error}")
        return None
    return path


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
