"""llama.cpp itself: the server manager, its log, its HTTP interface, its model files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamatel.gguf import GGUFHeader as GGUFHeader
    from llamatel.gguf import parse_gguf_header as parse_gguf_header
    from llamatel.llama.client import LlamaCppClient as LlamaCppClient
    from llamatel.llama.server.manager import ServerManager as ServerManager
    from llamatel.llama.server.supervisor import ServerState as ServerState

__all__ = [
    "GGUFHeader",
    "LlamaCppClient",
    "ServerManager",
    "ServerState",
    "parse_gguf_header",
]

_MODULES = {
    "GGUFHeader": "llamatel.gguf",
    "LlamaCppClient": "llamatel.llama.client",
    "ServerManager": "llamatel.llama.server.manager",
    "ServerState": "llamatel.llama.server.supervisor",
    "parse_gguf_header": "llamatel.gguf",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # What a prompt completes: also what is not loaded yet.
    return sorted({*globals(), *__all__})
