"""A cached virtual environment with client libraries based on openai, and their instrumentations."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart

VERSIONS = Path(__file__).with_suffix(".txt")
"""All packages with their versions: some pin versions of others, and pip needs minutes to resolve them."""


def client_libraries() -> Path:
    """Return its Python. Raises MissingPart."""
    recipe = hashlib.sha256(VERSIONS.read_bytes() + repr(sys.version_info[:2]).encode()).hexdigest()[:8]
    return cached(f"client-libraries-{recipe}", _make) / "bin" / "python"


def _make(folder: Path) -> None:
    say("installing client libraries; this takes a minute, once")
    try:
        subprocess.run([sys.executable, "-m", "venv", "--copies", str(folder)], check=True, capture_output=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "-r", str(VERSIONS)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise MissingPart(f"a Python with client libraries ({' '.join(reason)})", "python -m tests.parts") from error
