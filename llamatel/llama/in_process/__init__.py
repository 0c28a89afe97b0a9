"""llama.cpp inside of this process: llama-cpp-python's ``Llama``, traced and measured.

``LlamaCppInstrumentor().instrument()`` after ``llamatel.init()``; or no code at all: ``opentelemetry-instrument python
script.py``. What is loaded here is light; ``llama_cpp`` is looked at when the script imports it.
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
