"""Runs the xllamacpp wheel's llama.cpp server with llama-server's own command line.

Started by the server manager as a separate process: ``python -m llamatel.llama.server.xllamacpp_server FLAGS...``.

The wheel's Python API accepts a parameter object, not flags. llama.cpp's parser (``common_params_parse``,
common/arg.cpp) is exported by the wheel's extension module, so it fills that object for us: flags, their errors and the
``LLAMA_ARG_*`` environment are llama.cpp's own. What this relies on is checked at start, and an unknown build is
refused: the object's layout by two sentinel values, the parser's ``llama_example`` number by a flag that only the
server knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VERBOSITY = "common_log_verbosity_thold"
_LEVEL_OF = "_Z24common_log_get_verbosity14ggml_log_level"
_INFO = 2
"""GGML_LOG_LEVEL_INFO, at which the library logs what it allocates."""
_DEFAULT_VERBOSITY = 3
_PARSE = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
_SENTINELS = (0x1234567, 0x7654321)


class UnknownBuild(RuntimeError):
    """The installed xllamacpp does not have the layout that this module expects."""


def _parser(extension: str) -> Any:
    try:
        parse = getattr(ctypes.CDLL(extension), _PARSE)
    except AttributeError:
        raise UnknownBuild("it does not export llama.cpp's command-line parser") from None
    parse.restype = ctypes.c_bool
    parse.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p), ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return parse


def _address_of_params(params: Any) -> int:
    """Where the C++ ``common_params`` starts: right after the Python object's header."""
    before = params.n_predict, params.n_ctx
    params.n_predict, params.n_ctx = _SENTINELS
    address = id(params) + object.__basicsize__
    found = tuple((ctypes.c_int32 * 2).from_address(address))
    params.n_predict, params.n_ctx = before
    if found != _SENTINELS:
        raise UnknownBuild("its parameter object has another layout")
    return address


@contextlib.contextmanager
def _stderr_muted() -> Iterator[None]:
    keep = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(keep, 2)
        os.close(keep)


@contextlib.contextmanager
def library_heard(extension: str, params: Any) -> Iterator[None]:
    """Make llama.cpp's library log what it allocates; only while the model loads, because it logs a lot later.

    From May 2026 on the server hides these lines at its default verbosity. This has no effect with another verbosity,
    in builds that print them anyway (before May), and in builds that do not export what it needs (before September).
    """
    library = ctypes.CDLL(extension)
    try:
        threshold = ctypes.c_int.in_dll(library, _VERBOSITY)
        level_of = getattr(library, _LEVEL_OF)
        chosen = params.verbosity
    except (AttributeError, ValueError):
        yield
        return
    level_of.restype, level_of.argtypes = ctypes.c_int, [ctypes.c_int]
    needed = level_of(_INFO)
    if not threshold.value == chosen == _DEFAULT_VERBOSITY < needed:
        yield
        return
    params.verbosity = needed  # the server's constructor sets the threshold to it
    try:
        yield
    finally:
        threshold.value = chosen


def parse_arguments(xllamacpp: Any, arguments: list[str]) -> Any | None:
    """Parameters from llama-server's command line; None if llama.cpp refused it (its message is on stderr)."""
    parse = _parser(xllamacpp.xllamacpp.__file__)

    def attempt(example: int, *flags: str) -> Any | None:
        params = xllamacpp.CommonParams()
        argv = [os.fsencode(flag) for flag in ("llama-server", *flags)]
        array = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
        return params if parse(len(argv), array, _address_of_params(params), example, None) else None

    # LLAMA_EXAMPLE_SERVER has been 12 for a year; a build that moved it is found by trying.
    with _stderr_muted():
        for example in (12, *range(12), *range(13, 32)):
            probe = attempt(example, "--metrics")
            if probe is not None and probe.endpoint_metrics:
                break
        else:
            raise UnknownBuild("its parser knows no server flags")
    return attempt(example, *arguments)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT. Exit status as llama-server's: 0, or 1 for bad flags and failed loads."""
    import xllamacpp

    print(f"xllamacpp: wheel {xllamacpp.__version__}", file=sys.stderr, flush=True)
    try:
        params = parse_arguments(xllamacpp, arguments)
    except UnknownBuild as error:
        print(
            f"error: xllamacpp {xllamacpp.__version__} cannot be driven: {error}; install a llama-server, "
            "or another release: pip install 'xllamacpp>=2026.4'",
            file=sys.stderr,
        )
        return 1
    if params is None:
        return 1

    # A signal while the model loads ends the process at once, as there is nothing to clean up yet.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with library_heard(xllamacpp.xllamacpp.__file__, params):
            server = xllamacpp.Server(params)
    except (RuntimeError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    # llama.cpp installs its own handlers, which end its loop but not this process: replace them. (A signal between is
    # lost, and the server manager repeats it. While it loads, the wheel holds the interpreter's lock.)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    stop.wait()
    del server  # the destructor ends the loop and joins it
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
