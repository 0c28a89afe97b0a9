"""llama.cpp itself: the server manager, its log, its HTTP interface, its model files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamatel.llama.server import ServerManager as ServerManager
    from llamatel.llama.server import ServerState as ServerState

__all__ = ["ServerManager", "ServerState"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from llamatel.llama import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
