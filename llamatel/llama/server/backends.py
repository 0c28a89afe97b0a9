"""Selects the llama.cpp server to run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from llamatel.errors import BackendNotFound, install_command
from llamatel.inputs.text_file import user_path

PATH_VARIABLE = "LLAMATEL_LLAMA_SERVER"
LLAMA_SERVER = "llama-server"
XLLAMACPP = "xllamacpp"
_VERSION_S = 5.0
_VERSION = re.compile(r"version: (?:\S+ \(build )?(\d+)(?:, commit | \()(\w+)\)")


@dataclass(frozen=True, slots=True)
class Backend:
    """A llama.cpp server that can be started."""

    name: str
    """``llama-server`` or ``xllamacpp``."""
    command: tuple[str, ...]
    """The command; llama-server's flags follow."""
    why: str
    """Why it was chosen."""
    version: str | None = None
    """The wheel's version; a binary reports its version only when it runs."""
    rejected: tuple[str, ...] = ()
    """Backends with higher priority, and why they were not chosen."""


def _binary(path: str, environ: Mapping[str, str]) -> str | None:
    """The absolute path of an executable, given as a path or a name on PATH."""
    if os.sep in path:
        full = user_path(path).absolute()
        return str(full) if full.is_file() and os.access(full, os.X_OK) else None
    return shutil.which(path, path=environ.get("PATH", os.defpath))


def _xllamacpp(why: str, rejected: tuple[str, ...]) -> Backend | None:
    if importlib.util.find_spec(XLLAMACPP) is None:
        return None
    return _module(XLLAMACPP, "llamatel.llama.server.xllamacpp_server", why, rejected)


def _module(name: str, module: str, why: str, rejected: tuple[str, ...] = ()) -> Backend:
    """A Python package's server, run by a module of llamatel."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:  # a build tree on PATH
        version = None
    return Backend(name, (sys.executable, "-m", module), why, version=version, rejected=rejected)


def build_of(backend: Backend) -> str | None:
    """llama.cpp's build without starting a server: from the wheel or ``--version``; None if neither reports it.

    In the words of ``/props``, such as ``b6301-a8bca68f``.
    """
    if backend.version is not None:
        return backend.version
    try:
        command = [*backend.command, "--version"]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(done.stderr + done.stdout)
    return f"b{found.group(1)}-{found.group(2)}" if found is not None else None


def find_backend(choice: str | None = None, environ: Mapping[str, str] = os.environ) -> Backend:
    """The backend to use.

    ``choice``: None, ``"llama-server"``, ``"xllamacpp"`` or a path to a llama-server. Without one: the path in
    LLAMATEL_LLAMA_SERVER, ``llama-server`` on PATH, the xllamacpp wheel, in this order; ``"llama-server"`` is the one
    in the variable, if it is set. Raises BackendNotFound with what was tried and the command to install one.
    """
    install = f"install one with: {Path(sys.executable).name} -m {install_command('server')}"
    if choice == XLLAMACPP:
        backend = _xllamacpp("it was requested", ())
        if backend is None:
            raise BackendNotFound(f"xllamacpp is not installed; {install}")
        return backend
    if choice is not None and (choice != LLAMA_SERVER or not environ.get(PATH_VARIABLE)):
        found = _binary(choice, environ)
        if found is None:
            raise BackendNotFound(f"'{choice}' is not an executable llama-server; {install}")
        return Backend(LLAMA_SERVER, (found,), "it was requested")

    rejected: list[str] = []
    named = environ.get(PATH_VARIABLE)
    if named:
        found = _binary(named, environ)
        if found is None:
            raise BackendNotFound(f"{PATH_VARIABLE} is '{named}', which is not executable: correct or unset it")
        return Backend(LLAMA_SERVER, (found,), f"{PATH_VARIABLE} names it")
    rejected.append(f"{PATH_VARIABLE} is not set")
    found = _binary(LLAMA_SERVER, environ)
    if found is not None:
        return Backend(LLAMA_SERVER, (found,), "it is on PATH", rejected=tuple(rejected))
    rejected.append(f"no {LLAMA_SERVER} on PATH")
    backend = _xllamacpp("the wheel is installed", tuple(rejected))
    if backend is not None:
        return backend
    rejected.append("the xllamacpp wheel is not installed")
    raise BackendNotFound(f"no llama.cpp server found ({'; '.join(rejected)}); {install}")
