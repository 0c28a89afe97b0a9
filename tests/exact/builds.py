"""The llama.cpp builds whose cache sizes are compared."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llamatel.plan.llama_build import LlamaBuild, parse_build
from tests.parts import MissingPart, library_server, llama_server, sid_llama_server, xllamacpp_server
from tests.parts.cache import say
from tests.parts.wheels import LIBRARY, RELEASES


@dataclass(frozen=True)
class Server:
    """A llama-server of one build."""

    name: str
    program: Path
    build: LlamaBuild
    flags: frozenset[str]
    """All flags of the build."""


def _sid_build(program: Path) -> str:
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"\(build (\d+)", output.stderr + output.stdout)
    return f"b{found[1]}" if found else "sid"


_PROGRAMS: dict[str, Callable[[], Path]] = {
    "built": llama_server,
    "library": library_server,
    "sid": sid_llama_server,
    **{release: partial(xllamacpp_server, release) for release in RELEASES},
}
NAMES = tuple(_PROGRAMS)


def server(name: str) -> Server:
    """One of ``NAMES``. Raises MissingPart."""
    program = _PROGRAMS[name]()
    text = {"built": "0.5.0-dev", "library": f"b{LIBRARY.rpartition('.')[2]}"}.get(name, name)
    if name == "sid":
        text = _sid_build(program)
    build = parse_build(text)
    assert build is not None
    output = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return Server(name, program, build, frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w.-]*", output.stdout)))


def servers(names: Sequence[str] = NAMES) -> Iterator[Server]:
    """Return the available builds, and a line for each one that is not."""
    for name in names:
        try:
            yield server(name)
        except MissingPart as error:
            say(str(error))
