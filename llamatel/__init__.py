"""OpenTelemetry for llama.cpp: every request a trace, with its prefill and its decode.

``init()`` turns telemetry on, ``shutdown()`` writes out what waits; ``llamatel.llama.ServerManager`` runs a server.
Importing this package is light: the OpenTelemetry SDK is loaded by ``init()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatel.errors import LlamatelError as LlamatelError

if TYPE_CHECKING:
    from llamatel.runtime import init as init
    from llamatel.runtime import shutdown as shutdown

    __version__: str

__all__ = ["LlamatelError", "__version__", "init", "shutdown"]


def __getattr__(name: str) -> object:
    if name in ("init", "shutdown"):
        from llamatel import runtime

        return getattr(runtime, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("llamatel")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
