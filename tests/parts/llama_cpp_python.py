"""llama-cpp-python (llama.cpp in Python): its wheel is built once, cached, and installed in the test environment.

PyPI has only its source. Its dependencies are in the extra ``dev``, so that this installs one file without resolving.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from . import build
from .cache import cache_folder, cached, locked, say
from .llama_server import VERSION
from .missing import MissingPart

NAME = "llama-cpp-python"
FLAGS = (
    "-DGGML_NATIVE=OFF",  # the cache may be copied to another machine
    "-DLLAVA_BUILD=OFF",  # no images here
)


def cache_name() -> str:
    """Return the cache folder's name: version, machine and flags. The wheel is for every Python (``py3-none``)."""
    recipe = hashlib.sha256(repr((FLAGS, platform.machine(), platform.system())).encode()).hexdigest()
    return f"{NAME}-{VERSION}-{recipe[:8]}"


def _build(folder: Path) -> None:
    """Build the wheel in ``folder``; takes about 5 minutes on two cores."""
    build.need_compiler()
    log = cache_folder() / f"{cache_name()}.log"
    log.unlink(missing_ok=True)
    say(f"building {NAME} {VERSION}; this takes some minutes, once")
    pip = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-binary", NAME, "--no-cache-dir"]
    environment = {
        "CMAKE_ARGS": " ".join(FLAGS),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
    }
    build.run(NAME, [*pip, "--wheel-dir", str(folder), f"{NAME}=={VERSION}"], log, f"building {NAME}", environment)


def _installed() -> str | None:
    importlib.invalidate_caches()
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return None


def llama_cpp_python() -> Path:
    """Install llama-cpp-python in this Python; return the folder of its wheel. Raises MissingPart."""
    folder = cached(cache_name(), _build)
    [wheel] = folder.glob("*.whl")
    with locked(Path(sysconfig.get_path("data")) / f".{NAME}.lock", NAME):
        if _installed() != VERSION:
            pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", str(wheel)]
            done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MissingPart(NAME, f"{wheel} cannot be installed: {done.stderr.strip()}")
    return folder
