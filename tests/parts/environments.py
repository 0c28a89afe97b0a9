"""Pythons with packages that our own environment must not have, from ``NAME.txt``; made once, kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart

_OPENAI_V2 = ("opentelemetry-instrumentation-openai-v2==2.4b0", "opentelemetry-util-genai==0.4b0")


def client_libraries() -> Path:
    """The Python of client libraries that build on openai, and instrumentations of them. Raises MissingPart."""
    return _python("clients")


def openai_v2() -> Path:
    """A folder for ``PYTHONPATH`` with the predecessor of genai-openai. Raises MissingPart.

    Both need ``opentelemetry-util-genai``, in versions that exclude each other.
    """
    recipe = hashlib.sha256(repr(_OPENAI_V2).encode()).hexdigest()[:8]
    return cached(f"openai-v2-{recipe}", lambda folder: _install(sys.executable, "--target", str(folder), *_OPENAI_V2))


def application_servers() -> Path:
    """The Python of gunicorn, uvicorn, FastAPI, Streamlit, marimo and JupyterLab. Raises MissingPart."""
    return _python("applications")


def phoenix() -> Path:
    """The Python of Arize Phoenix (850 MB). Raises MissingPart."""
    return _python("phoenix")


def aiperf() -> Path:
    """The Python of aiperf, a load generator. Raises MissingPart."""
    return _python("aiperf")


def llama_benchy() -> Path:
    """The Python of llama-benchy, another one. Raises MissingPart."""
    return _python("llama_benchy")


def _python(name: str) -> Path:
    """All packages have their versions: some pin versions of the others, and resolving takes pip minutes."""
    versions = Path(__file__).with_name(f"{name}.txt")
    recipe = hashlib.sha256(versions.read_bytes() + repr(sys.version_info[:2]).encode()).hexdigest()[:8]

    def make(folder: Path) -> None:
        say(f"installing {name} ({versions.name}); this takes a minute, once")
        try:
            subprocess.run([sys.executable, "-m", "venv", "--copies", str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingPart(f"a Python for {name} ({error})", "python -m tests.parts") from error
        _install(str(folder / "bin" / "python"), "-r", str(versions))

    return cached(f"{name}-{recipe}", make) / "bin" / "python"


def _install(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise MissingPart(f"Python packages ({' '.join(reason)})", "python -m tests.parts") from error
