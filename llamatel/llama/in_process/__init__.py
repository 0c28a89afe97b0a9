"""llama.cpp in this process: traces and measures llama-cpp-python's ``Llama``.

``LlamaCppInstrumentor().instrument()`` after ``llamatel.init()``; or no code at all: ``opentelemetry-instrument python
script.py``. Importing this is light; ``llama_cpp`` is instrumented when the script imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamatel.llama.in_process.instrumentor import LlamaCppInstrumentor as LlamaCppInstrumentor

__all__ = ["LlamaCppInstrumentor"]


def __getattr__(name: str) -> object:
    if name == "LlamaCppInstrumentor":
        from llamatel.llama.in_process.instrumentor import LlamaCppInstrumentor

        return LlamaCppInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
