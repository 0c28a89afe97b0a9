"""Removes environment values with which importing the OpenTelemetry SDK fails or logs a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping

_log = logging.getLogger(__name__)

_LIMITS = tuple(
    f"OTEL_{name}_LIMIT"
    for name in (
        "ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH",
        "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT",
    )
)  # fmt: skip
_PLUGINS = {
    "OTEL_PROPAGATORS": "opentelemetry_propagator",
    "OTEL_PYTHON_CONTEXT": "opentelemetry_context",
    "OTEL_PYTHON_TRACER_PROVIDER": "opentelemetry_tracer_provider",
    "OTEL_PYTHON_METER_PROVIDER": "opentelemetry_meter_provider",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "opentelemetry_resource_detector",
}
"""By variable: the entry-point group of its value."""


def remove_invalid(environ: MutableMapping[str, str]) -> None:
    """Remove limits that are not numbers, and plug-ins that are not installed; logs a line for each."""
    for name, reason in list(_invalid(environ)):
        _log.warning("%s is '%s': %s; it is ignored", name, environ.pop(name)[:40], reason)


def _invalid(environ: MutableMapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in _LIMITS:
        text = environ.get(name, "").strip()
        try:
            valid = not text or int(text) >= 0
        except ValueError:
            valid = False
        if not valid:
            yield name, "it must be a whole number"
    for name, group in _PLUGINS.items():
        chosen = {part.strip() for part in environ.get(name, "").split(",")} - {""}
        if chosen:
            from importlib.metadata import entry_points

            known = {"none", "*", *entry_points(group=group).names}
            missing = sorted(part for part in chosen if part not in known and part.lower() not in known)
            if missing:
                yield name, f"'{missing[0][:40]}' is not installed"
