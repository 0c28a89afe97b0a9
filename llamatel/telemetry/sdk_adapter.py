"""All private parts of opentelemetry-python that llamatel uses; each has a fallback.

``tests/test_sdk_adapter.py`` fails when one of them moves; pyproject.toml bounds the version.
"""

from __future__ import annotations

from types import ModuleType

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider

PARTS = ((trace, "_TRACER_PROVIDER_SET_ONCE"), (metrics, "_METER_PROVIDER_SET_ONCE"))
"""Where the API remembers that a global provider was set: module and name."""


def is_placeholder(provider: object) -> bool:
    """Whether a global provider is only the API's placeholder; the one for metrics has no public name."""
    return isinstance(provider, trace.ProxyTracerProvider) or type(provider).__name__ == "_ProxyMeterProvider"


def set_global(provider: trace.TracerProvider | MeterProvider) -> None:
    """Make a provider the process's global one, so that the application can still register its own later.

    The API lets a global provider be set once. Fallback: ours stays, and a later registration is refused with the
    API's warning.
    """
    if isinstance(provider, trace.TracerProvider):
        _allow_another(*PARTS[0])
        trace.set_tracer_provider(provider)
        _allow_another(*PARTS[0])
    else:
        _allow_another(*PARTS[1])
        metrics.set_meter_provider(provider)
        _allow_another(*PARTS[1])


def _allow_another(module: ModuleType, name: str) -> bool:
    for place in (module, getattr(module, "_internal", None)):
        once = getattr(place, name, None)
        if isinstance(getattr(once, "_done", None), bool):
            once._done = False  # type: ignore[union-attr]
            return True
    return False
