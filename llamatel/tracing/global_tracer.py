"""The process's global tracer provider, if an application has set one."""

from __future__ import annotations

import os
import weakref

from opentelemetry import trace

from llamatel.tracing import openinference

_SCOPE = "llamatel"
_shut_down: weakref.WeakSet[object] = weakref.WeakSet()
"""Our providers that were shut down. A global provider cannot be replaced, so it may still be one of these."""


def mark_shut_down(provider: object) -> None:
    """Record that a provider of ours was shut down."""
    _shut_down.add(provider)


def is_shut_down(provider: object) -> bool:
    """Whether it is one of ours that was shut down."""
    return provider in _shut_down


def provider() -> trace.TracerProvider | None:
    """The global provider; None where there is only the API's placeholder, or one of ours that was shut down."""
    current = trace.get_tracer_provider()
    placeholder = isinstance(current, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
    return None if placeholder or is_shut_down(current) else current


class _Cached:
    provider: trace.TracerProvider | None = None
    tracer: trace.Tracer | None = None


def tracer() -> trace.Tracer | None:
    """A tracer of the global provider; None where there is none."""
    found = provider()
    if found is None:
        return None
    if found is not _Cached.provider:
        _Cached.tracer, _Cached.provider = openinference.traced(found.get_tracer(_SCOPE), os.environ), found
    return _Cached.tracer
