"""``import llamatel`` is light: heavy modules are imported only where they are needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "gguf",
    "grpc",
    "huggingface_hub",
    "llama_cpp",
    "llamatel_collectors",
    "numpy",
    "openai",
    "opentelemetry.instrumentation",
    "opentelemetry.exporter",
    "opentelemetry.sdk",
    "prometheus_client",
    "pydantic",
    "requests",
    "rich",
    "xllamacpp",
)


@pytest.mark.parametrize(
    "statement",
    [
        "import llamatel",
        "from llamatel.llama import ServerManager",
        "import llamatel.cli.main",
        "import llamatel.collectors",
        "from llamatel import task, workflow, span, carry_context",
    ],
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    program = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_dir_lists_lazy_names() -> None:
    program = "import llamatel, llamatel.llama; print(*dir(llamatel)); print(*dir(llamatel.llama))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours, llamas = (set(line.split()) for line in done.stdout.splitlines())
    assert ours >= {"init", "last_trace", "report", "shutdown", "span", "task", "workflow"}
    assert llamas >= {"LlamaCppClient", "ServerManager", "parse_gguf_header"}
