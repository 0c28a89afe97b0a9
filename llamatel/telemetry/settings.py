"""What the user asked of telemetry: the ``OTEL_*`` environment, with flags and arguments on top.

Only what llamatel itself has to decide is read here: which exporters there are, where they send, what listens where.
Everything else (headers, certificates, compression, timeouts, sampler, span limits, batch sizes, export interval,
temporality, histogram aggregation, exemplar filter, resource attributes) the OpenTelemetry SDK reads itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from llamatel.errors import UsageError
from llamatel.metrics import DEFAULT_METRICS_ADDR

PAGE_TOKEN_VARIABLE = "LLAMATEL_PAGE_TOKEN"  # noqa: S105 - a variable's name
URL_VARIABLE = "LLAMATEL_URL"

_TRACES_EXPORTERS = ("otlp", "console", "none")
_METRICS_EXPORTERS = ("otlp", "prometheus", "console", "none")
_PROTOCOLS = ("grpc", "http/protobuf")
_DEFAULT_PORTS = {"grpc": 4317, "http/protobuf": 4318}


@dataclass(frozen=True, slots=True)
class OtlpTarget:
    """Where one signal goes over OTLP."""

    endpoint: str
    """What the exporter is given: over HTTP the whole URL, with ``/v1/traces`` or ``/v1/metrics``."""
    protocol: str
    """``grpc`` or ``http/protobuf``."""

    @property
    def shown(self) -> str:
        """The endpoint for people: the base that they know, and no user and password should it hold them."""
        parts = urlsplit(self.endpoint)
        path = parts.path.removesuffix("/v1/traces").removesuffix("/v1/metrics")
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path).geturl()


@dataclass(frozen=True, slots=True)
class Settings:
    """Telemetry as it was asked for; ``pipeline.build`` turns it into providers."""

    service_name: str | None = None
    """None leaves it to ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, else ``llamatel``."""
    disabled: bool = False
    """``OTEL_SDK_DISABLED``: nothing is recorded, nothing listens."""
    traces_otlp: OtlpTarget | None = None
    metrics_otlp: OtlpTarget | None = None
    traces_console: bool = False
    metrics_console: bool = False
    metrics_addr: tuple[str, int] | None = None
    """Host and port of the Prometheus endpoint; port 0 is a free one, None is no endpoint."""
    page_token: str | None = field(default=None, repr=False)
    """What the web page beside /metrics asks for; without it the page is shown on loopback only."""
    llamatel_url: str | None = None
    """``LLAMATEL_URL``: the page of the llamatel that watches the servers which are called from here; ``none`` is none.
    Without it the default address is asked, of servers of this machine."""
    keep_traces: int = 0
    """Spans that are kept in memory for ``last_trace()`` and ``report()``; 0 is none."""
    span_queue_size: int = 2048
    """Spans that wait for export at most (``OTEL_BSP_MAX_QUEUE_SIZE``); more are dropped and counted."""
    span_batch_size: int = 512
    """Spans in one export at most (``OTEL_BSP_MAX_EXPORT_BATCH_SIZE``); never more than the queue holds."""
    collectors: tuple[str, ...] = ()
    """The only collectors to run; empty means all that are installed."""
    without: tuple[str, ...] = ()
    """Collectors not to run."""
    shutdown_timeout_s: float = 5.0
    """The longest that shutting down may wait for exporters."""

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        service_name: str | None = None,
        otlp_endpoint: str | None = None,
        otlp_protocol: str | None = None,
        metrics_addr: str | None = None,
        keep_traces: int = 0,
        page_token: str | None = None,
        collectors: Iterable[str] = (),
        without: Iterable[str] = (),
        shutdown_timeout_s: float = 5.0,
    ) -> Settings:
        """Read the environment; arguments that are given win over it.

        ``otlp_endpoint`` is a base such as ``http://collector:4318`` or ``collector:4317`` for both signals;
        ``metrics_addr`` is ``HOST:PORT``, or ``none``. Which exporters run is up to ``OTEL_TRACES_EXPORTER`` and
        ``OTEL_METRICS_EXPORTER``; where they are not set, spans and metrics go over OTLP if an endpoint is known, and
        metrics are shown to Prometheus too. Raises UsageError for what cannot be.
        """
        env = {key: value.strip() for key, value in (os.environ if environ is None else environ).items()}
        flag = None if otlp_endpoint is None else _with_scheme(otlp_endpoint)
        base = flag or env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None
        traces_at = None if flag else env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or None
        metrics_at = None if flag else env.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or None
        traces = _exporters(env, "OTEL_TRACES_EXPORTER", _TRACES_EXPORTERS, ("otlp",) if traces_at or base else ())
        metrics = _exporters(
            env,
            "OTEL_METRICS_EXPORTER",
            _METRICS_EXPORTERS,
            ("prometheus", "otlp") if metrics_at or base else ("prometheus",),
        )
        if metrics_addr is not None:
            addr = _address(metrics_addr, "--metrics-addr")
        elif "prometheus" in metrics:
            addr = _address(_prometheus_env(env), "OTEL_EXPORTER_PROMETHEUS_HOST and _PORT")
        else:
            addr = None
        if shutdown_timeout_s <= 0:
            raise UsageError(f"the shutdown timeout must be more than 0 seconds, not {shutdown_timeout_s:g}")
        # The SDK answers nonsense here with a traceback on the terminal.
        _positive(env, "OTEL_BSP_SCHEDULE_DELAY", 5000)
        _positive(env, "OTEL_BSP_EXPORT_TIMEOUT", 30000)
        queue_size = _positive(env, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        return cls(
            service_name=service_name,
            disabled=env.get("OTEL_SDK_DISABLED", "").lower() == "true",
            traces_otlp=_target(env, "traces", base, traces_at, otlp_protocol) if "otlp" in traces else None,
            metrics_otlp=_target(env, "metrics", base, metrics_at, otlp_protocol) if "otlp" in metrics else None,
            traces_console="console" in traces,
            metrics_console="console" in metrics,
            metrics_addr=addr,
            page_token=page_token or env.get(PAGE_TOKEN_VARIABLE) or None,
            llamatel_url=_here(env.get(URL_VARIABLE) or None),
            keep_traces=keep_traces,
            span_queue_size=queue_size,
            span_batch_size=min(queue_size, _positive(env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
            collectors=tuple(collectors),
            without=tuple(without),
            shutdown_timeout_s=shutdown_timeout_s,
        )


def _exporters(
    env: Mapping[str, str], variable: str, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    names = tuple(name.strip() for name in env.get(variable, "").split(",") if name.strip())
    for name in names:
        if name not in known:
            raise UsageError(f"{variable} names an exporter that is not known, '{name}': use {', '.join(known)}")
    if "none" in names and len(names) > 1:
        raise UsageError(f"{variable} is '{env[variable]}': 'none' stands alone")
    return names or default


def _target(
    env: Mapping[str, str], signal: str, base: str | None, own: str | None, protocol_flag: str | None
) -> OtlpTarget:
    """The target of one signal: ``own`` is its own endpoint, used as it is; ``base`` gets the signal's path."""
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    protocol = protocol_flag or env.get(variable) or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
    if protocol and protocol not in _PROTOCOLS:
        raise UsageError(f"the OTLP protocol '{protocol}' is not supported: use {' or '.join(_PROTOCOLS)}")
    endpoint = own or base
    if endpoint is None:
        protocol = protocol or "grpc"
        endpoint = f"http://localhost:{_DEFAULT_PORTS[protocol]}"
    parts = _split(endpoint)
    # gRPC has no paths, and 4318 is the port of OTLP over HTTP: with either, only one protocol makes sense.
    protocol = protocol or ("http/protobuf" if parts.port == 4318 or parts.path.strip("/") else "grpc")
    if protocol == "http/protobuf":
        if "://" not in endpoint:
            raise UsageError(f"the OTLP endpoint '{endpoint}' has no scheme: write http://{endpoint}")
        if own is None:
            endpoint = f"{endpoint.rstrip('/')}/v1/{signal}"
    return OtlpTarget(endpoint, protocol)


def _with_scheme(endpoint: str) -> str:
    if "://" not in endpoint and not re.search(r":\d+(?:/|$)", endpoint):
        raise UsageError(f"'{endpoint}' is no OTLP endpoint: write it like http://127.0.0.1:4317")
    # Without a scheme the gRPC exporter would use TLS; someone who types host:port has a collector without it.
    return endpoint if "://" in endpoint else f"http://{endpoint}"


def _split(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        valid = bool(parts.hostname) and parts.scheme in ("", "http", "https") and parts.port != 0
    except ValueError:  # a port that is no number, or a broken IPv6 address
        valid = False
    if not valid:
        raise UsageError(f"'{endpoint}' is no OTLP endpoint: write it like http://127.0.0.1:4317")
    return parts


def _prometheus_env(env: Mapping[str, str]) -> str:
    host, _, port = DEFAULT_METRICS_ADDR.rpartition(":")
    host = env.get("OTEL_EXPORTER_PROMETHEUS_HOST") or host
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{env.get('OTEL_EXPORTER_PROMETHEUS_PORT') or port}"


def _address(text: str, origin: str) -> tuple[str, int] | None:
    if text.lower() == "none":
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{origin}: '{text}' is no address: write it like {DEFAULT_METRICS_ADDR}, or none")
    return bare, int(port)


def _here(url: str | None) -> str | None:
    """The URL of a llamatel of this machine, without what follows its port: its clock must be ours."""
    if url is None or url.lower() == "none":
        return url and "none"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a port that is no number, or a broken IPv6 address
        parts, host, port = urlsplit(""), "", None
    if parts.scheme != "http" or not is_loopback(host) or parts.username is not None or not port:
        raise UsageError(f"{URL_VARIABLE} must be http://127.0.0.1:PORT, a llamatel of this machine, or none")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address or host name leads nowhere but to this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _positive(env: Mapping[str, str], variable: str, default: int) -> int:
    text = env.get(variable) or str(default)
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{variable} is '{text}': it must be a whole number above 0")
    return int(text)
