"""A Python with client libraries that build on openai, and instrumentations of them; made once, kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart

# In steps: some of them pin versions of the others.
STEPS = (
    ("openai>=3,<4", "langchain-openai==1.7.4", "pydantic-ai-slim[openai]==2.68.0", "requests"),
    ("instructor==1.17.0",),
    ("litellm==1.110.2",),
    ("click", "huggingface_hub", "prometheus-client", "psutil", "pyyaml", "rich", "urllib3", "xllamacpp"),
    (
        "opentelemetry-exporter-otlp", "opentelemetry-exporter-prometheus==0.66b1", "opentelemetry-distro==0.66b1",
        "opentelemetry-instrumentation-genai-openai==1.3b0", "opentelemetry-util-genai==1.3b0",
        "openinference-instrumentation-openai==0.1.66", "openinference-instrumentation-langchain==0.1.80",
    ),
)  # fmt: skip


def client_libraries() -> Path:
    """Its Python. Raises MissingPart."""
    recipe = hashlib.sha256(repr((STEPS, sys.version_info[:2])).encode()).hexdigest()[:8]
    return cached(f"client-libraries-{recipe}", _make) / "bin" / "python"


def _make(folder: Path) -> None:
    say("installing client libraries; this takes a minute, once")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--copies", str(folder)], check=True, capture_output=True)
        for step in STEPS:
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            subprocess.run([*pip, *step], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise MissingPart(f"a Python with client libraries ({' '.join(reason)})", "python -m tests.parts") from error
