"""Functions that lower packages call and higher packages provide.

``llamatel/__init__.py`` names each provider as ``"module:function"``; the module is imported at the first call. Data
classes get their HTML representation this way without importing the UI, and llama-cpp-python's instrumentor its
telemetry.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_providers: dict[str, str] = {}


def register(name: str, provider: str) -> None:
    """Let ``call(name)`` call ``provider``, which is written ``module:function``."""
    _providers[name] = provider


def call(name: str, *arguments: object) -> Any:
    """Call the registered function. Raises KeyError for an unregistered name."""
    module, _, function = _providers[name].partition(":")
    return getattr(import_module(module), function)(*arguments)


class HtmlRepresentation:
    """A value that notebooks show as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(call("html", self))
