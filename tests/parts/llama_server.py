"""llama.cpp's own llama-server, built once from llama-cpp-python's source, and cached."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from . import build
from .cache import cache_folder, cached, say
from .missing import MissingPart

VERSION = "0.3.36"
"""Of llama-cpp-python; its llama.cpp is that of October 2026."""
PART = "llama-server"
TARGETS = ("llama-server", "llama-fit-params")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",  # the cache may be copied to another machine
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def cache_name() -> str:
    """Return the cache folder's name: version, machine and flags, so that changes cause a new build."""
    recipe = hashlib.sha256(repr((FLAGS, TARGETS, platform.machine(), platform.system())).encode()).hexdigest()
    return f"llama-server-{VERSION}-{recipe[:8]}"


def _program(name: str, mend: str) -> str:
    """Return a program of this Python's environment, else of PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise MissingPart(name, mend)
    return found


def download_source(folder: Path, log: Path) -> Path:
    """Download llama-cpp-python's source and return its llama.cpp."""
    say(f"getting the source of llama-cpp-python {VERSION} (70 MB)")
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:"]
    build.run(PART, [*pip, "--dest", str(folder), f"llama-cpp-python=={VERSION}"], log, "the download")
    [archive] = folder.glob("llama_cpp_python-*.tar.gz")
    build.run(PART, ["tar", "-xzf", str(archive), "-C", str(folder)], log, "unpacking")
    archive.unlink()
    [source] = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    return source


def _build(folder: Path) -> None:
    """Build the programs in ``folder``; takes about 7 minutes on two cores."""
    build.need_compiler()
    cmake, ninja = _program("cmake", "pip install cmake"), _program("ninja", "pip install ninja")
    log = cache_folder() / f"{cache_name()}.log"
    log.unlink(missing_ok=True)
    work = folder / "work"
    work.mkdir()
    source, made = download_source(work, log), work / "build"
    configure = [cmake, "-S", str(source), "-B", str(made), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *FLAGS]
    say("building llama-server; this takes some minutes, once")
    build.run(PART, configure, log, "configuring llama.cpp")
    jobs = str(len(os.sched_getaffinity(0)))
    build.run(
        PART, [cmake, "--build", str(made), "--target", *TARGETS, "--parallel", jobs], log, "building llama-server"
    )
    for target in TARGETS:
        (made / "bin" / target).rename(folder / target)
    shutil.rmtree(work)


def llama_server() -> Path:
    """Return the llama-server program (``llama-fit-params`` is in the same folder). Raises MissingPart."""
    return cached(cache_name(), _build) / "llama-server"
