"""OTLP options from the ``OTEL_EXPORTER_OTLP_*`` environment: headers, TLS files, compression, timeout.

A value of a headers variable is never part of a message.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamatel.errors import PipelineError
from llamatel.inputs.text_file import user_path
from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)
_once = LogOnce(_log)

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MAX_FILE = 4 << 20
_COMPRESSIONS = ("none", "gzip", "deflate")
_FALLBACK_CA = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Used only if no OTLP certificate is configured: company images set these for all programs."""


@dataclass(frozen=True, slots=True)
class OtlpOptions:
    """Options of one signal."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 10.0
    """For one export, retries included."""
    compression: str = "none"
    ca: bytes | None = field(default=None, repr=False)
    """PEM certificates to trust instead of the system's."""
    client_certificate: str | None = None
    client_key: str | None = None
    insecure: bool | None = None
    """gRPC without TLS, for an endpoint without a scheme; None: the scheme decides."""

    def tls(self) -> ssl.SSLContext:
        """The TLS settings. Raises PipelineError for certificates that cannot be used."""
        try:
            context = ssl.create_default_context(cadata=None if self.ca is None else self.ca.decode("ascii", "replace"))
            if self.client_certificate is not None:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except (OSError, ssl.SSLError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not a PEM file"
            raise PipelineError(f"the OTLP certificates cannot be used: {reason}") from None
        return context

    @classmethod
    def from_env(
        cls, signal: str, endpoint: str, environ: Mapping[str, str], problem: Callable[[str], None]
    ) -> OtlpOptions:
        """Read the variables of ``signal`` (traces, metrics), which override the general ones.

        ``problem`` is called with a line for each mistake that is ignored. Raises PipelineError for files that
        cannot be read, as nothing may be sent to an endpoint whose certificate is not checked as configured.
        """

        def get(name: str) -> tuple[str, str]:
            """The name of the variable that is set, and its value."""
            for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
                if value := environ.get(variable, "").strip():
                    return variable, value
            return f"OTEL_EXPORTER_OTLP_{name}", ""

        headers = _headers(*get("HEADERS"))
        user = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        if user.username is not None and "authorization" not in headers:
            pair = f"{unquote(user.username)}:{unquote(user.password or '')}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        variable, text = get("TIMEOUT")
        timeout_s = 10.0
        try:
            timeout_s = float(text or 10.0)
        except ValueError:
            problem(f"{variable} is '{text[:40]}': it must be a number of seconds")
        if not 0 < timeout_s < 3600:
            problem(f"{variable} is '{text[:40]}': it must be more than 0 seconds")
            timeout_s = 10.0
        variable, compression = get("COMPRESSION")
        compression = compression.lower() or "none"
        if compression not in _COMPRESSIONS:
            problem(f"{variable} is '{compression[:40]}': use {', '.join(_COMPRESSIONS)}")
            compression = "none"
        insecure = get("INSECURE")[1].lower()
        return cls(
            headers=headers,
            timeout_s=timeout_s,
            compression=compression,
            ca=_ca(*get("CERTIFICATE"), environ),
            client_certificate=_readable(*get("CLIENT_CERTIFICATE")),
            client_key=_readable(*get("CLIENT_KEY")),
            insecure=None if not insecure else insecure == "true",
        )


def _headers(variable: str, text: str) -> dict[str, str]:
    """``name=value,name=value``, percent-encoded; values that are not encoded are used unchanged."""
    headers: dict[str, str] = {}
    for entry in text.split(","):
        if not entry.strip():
            continue
        name, equals, value = (unquote(part).strip() for part in entry.partition("="))
        if not equals or not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            _once.warning(
                f"{variable}={text}", "%s has an entry that is not NAME=VALUE in ASCII: it is left out", variable
            )
        else:
            headers[name.lower()] = value
    return headers


def _ca(variable: str, path: str, environ: Mapping[str, str]) -> bytes | None:
    if path:
        return _read(variable, path)
    for fallback in _FALLBACK_CA:
        found = environ.get(fallback, "")
        if found and Path(found).is_file():
            return _read(fallback, found)
    return None


def _readable(variable: str, path: str) -> str | None:
    if not path:
        return None
    _read(variable, path)
    return path


def _read(variable: str, path: str) -> bytes:
    try:
        # Without waiting for the writer of a FIFO.
        with open(os.open(user_path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            return file.read(_MAX_FILE)
    except OSError as error:
        raise PipelineError(f"{variable}: cannot read {path}: {error.strerror or error}") from None
