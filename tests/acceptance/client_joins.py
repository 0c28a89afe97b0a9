"""10,000 calls of the openai package with identical prompts, eight at once: none is joined with another's request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.client_matrix import OtherProcess, measure
from tests.parts import OtlpSink
from tests.parts.environments import client_libraries
from tests.tiny_gguf import write_tiny_model

CALLS = 5000
"""In each of two processes."""


def run(folder: Path) -> dict[str, Any]:
    """Every call has timings, so all are joined, or linked where two are equal to the microsecond."""
    found: dict[str, Any] = {}
    with OtlpSink() as sink:
        model = write_tiny_model(folder / "tiny.gguf")
        serving = OtherProcess(sink, model, folder)
        try:
            for process, elsewhere in (("same process", None), ("other process", serving)):
                python = client_libraries()
                count = measure(sink, "openai", "", CALLS, model=model, elsewhere=elsewhere, python=python)
                found[process] = asdict(count)
                assert (count.calls, count.wrong) == (CALLS, 0), count
                assert count.joined >= 0.98 * CALLS, count
        finally:
            serving.child.stop()
    return found
