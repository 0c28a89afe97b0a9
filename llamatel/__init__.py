"""OpenTelemetry for llama.cpp: a trace per request, with prefill and decode.

``init()`` starts telemetry, ``shutdown()`` flushes and stops it; ``llamatel.llama.ServerManager`` runs a server,
``llamatel.llama.LlamaCppClient`` talks to one; ``@task``, ``@workflow`` and ``span()`` trace application code.
Importing this package is light: the OpenTelemetry SDK is loaded by ``init()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatel import providers
from llamatel.errors import LlamatelError as LlamatelError

if TYPE_CHECKING:
    from llamatel.runtime import init as init
    from llamatel.runtime import last_trace as last_trace
    from llamatel.runtime import report as report
    from llamatel.runtime import shutdown as shutdown
    from llamatel.tracing.decorators import carry_context as carry_context
    from llamatel.tracing.decorators import span as span
    from llamatel.tracing.decorators import task as task
    from llamatel.tracing.decorators import workflow as workflow
    from llamatel.tracing.traced_client import trace_client as trace_client

    __version__: str

__all__ = [
    "LlamatelError",
    "__version__",
    "carry_context",
    "init",
    "last_trace",
    "report",
    "shutdown",
    "span",
    "task",
    "trace_client",
    "workflow",
]

_MODULES = {
    "carry_context": "llamatel.tracing.decorators",
    "init": "llamatel.runtime",
    "last_trace": "llamatel.runtime",
    "report": "llamatel.runtime",
    "shutdown": "llamatel.runtime",
    "span": "llamatel.tracing.decorators",
    "task": "llamatel.tracing.decorators",
    "trace_client": "llamatel.tracing.traced_client",
    "workflow": "llamatel.tracing.decorators",
}


providers.register("html", "llamatel.ui.view.html:html_of")
providers.register("zero_code", "llamatel.telemetry.zero_code:zero_code")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        import os
        from importlib import import_module

        from llamatel import sdk_environment

        sdk_environment.remove_invalid(os.environ)
        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("llamatel")
        except PackageNotFoundError:  # run from a source tree that is not installed
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # For completion at a prompt: also names that are not loaded yet.
    return sorted({*globals(), *__all__})
