"""One start of the real llama-server: its cache allocations in bytes, or why it did not start."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.parts import MissingPart

from .fork_server import ForkServer

SOURCE = Path(__file__).with_name("allocations.c")
READY = "listening on http"
TIMEOUT = 60.0
UNSUPPORTED = re.compile(
    r"unknown model architecture|unsupported model architecture|invalid argument|unknown value"
    r"|error while handling argument|wrong number of tensors|missing tensor|tensor '[^']+' not found|wrong shape"
    r"|key not found in model|error loading model hyperparameters"
)
"""A build's messages about unknown models or flags."""


@dataclass(frozen=True)
class Allocation:
    """The result of a start. ``tensors`` are (name, bytes) in the order of their creation."""

    outcome: str
    """started; refused (exited with a message); aborted (by llama.cpp's own check, or after allocations); crashed
    (any other signal); unsupported (it does not know this model or flag)."""
    tensors: tuple[tuple[str, int], ...] = ()
    output: str = field(default="", repr=False)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.tensors)

    def bytes_of(self, part: str) -> int:
        """Return the bytes of a part: k, v, r, s or other (any other state)."""
        return sum(size for name, size in self.tensors if part_of(name) == part)


def variables_of(arguments: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
    """Split arguments into ``LLAMA_ARG_*=value`` variables and flags."""
    variables = dict(word.split("=", 1) for word in arguments if word.startswith("LLAMA_ARG_"))
    return variables, [word for word in arguments if not word.startswith("LLAMA_ARG_")]


def part_of(name: str) -> str:
    """Return the part of a cache tensor, by llama.cpp's name."""
    found = re.match(r"cache_(?:idx_)?([kvrs])_l\d+$", name)
    return found[1] if found else "other"


def preloaded_library(folder: Path) -> Path:
    """Compile the library that records allocations. Raises MissingPart."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        raise MissingPart("a C compiler on Linux", "sudo apt-get install gcc")
    library = folder / "allocations.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def _fits(flags: Sequence[str]) -> bool:
    """Whether llama-server fits the context to memory."""
    values = [value for flag, value in pairwise(flags) if flag == "-fit"]
    return values[-1:] == ["on"]


def _last_round(tensors: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Keep the last allocation: fitting allocates all caches several times, and the final ones twice."""
    total = len(tensors)
    period = next((n for n in range(1, total // 2 + 1) if tensors[-n:] == tensors[-2 * n : -n]), total)
    return tuple(tensors[total - period :])


def _listen(child: subprocess.Popen[bytes], deadline: float) -> str:
    """Return the child's output until it is ready, exits or times out."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while READY.encode() not in output and (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            chunk = os.read(descriptor, 65536)
            if not chunk:
                break
            output += chunk
    return output.decode(errors="replace")


@dataclass(frozen=True)
class Bench:
    """Starts a server program, one start at a time."""

    server: Path
    library: Path
    port: int
    record: Path

    always: tuple[str, ...] = ("--no-warmup", "-fit", "off")
    """Flags of every start: neither a warm-up nor fitting the context to memory."""
    forks: ForkServer | None = None
    """Starts a server in Python faster."""

    def allocate(self, model: Path, flags: Sequence[str]) -> Allocation:
        """Start the server with ``flags`` (preceded by variables) on a model, return its cache tensors, stop it."""
        variables, flags = variables_of(flags)
        self.record.unlink(missing_ok=True)
        argv = ["-m", str(model), "--host", "127.0.0.1", "--port", str(self.port), *self.always, "-t", "1", *flags]
        added = variables | {"CACHE_TENSORS": str(self.record), "GGML_NO_BACKTRACE": "1"}
        code, output = self._forked(argv, added) if self.forks is not None else self._started(argv, added)
        ready = READY in output
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        tensors = tuple((name, int(size)) for name, size in (line.split() for line in lines))
        if _fits([*self.always, *flags]):
            tensors = _last_round(tensors)
        outcome = "started" if ready else "refused" if code == 1 else "aborted"
        if not ready and UNSUPPORTED.search(output):
            outcome = "unsupported"
        elif outcome == "aborted" and not tensors and "GGML_ASSERT" not in output and "GGML_ABORT" not in output:
            outcome = "crashed"
        return Allocation(outcome, tensors, output)

    def _forked(self, argv: Sequence[str], added: Mapping[str, str]) -> tuple[int, str]:
        assert self.forks is not None
        output = self.record.with_suffix(".log")
        code = self.forks.run(argv, added, output, READY, TIMEOUT)
        return code, output.read_text(errors="replace")

    def _started(self, argv: Sequence[str], added: Mapping[str, str]) -> tuple[int, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
        with subprocess.Popen(
            [str(self.server), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment | dict(added) | {"LD_PRELOAD": str(self.library)},
        ) as child:
            try:
                output = _listen(child, time.monotonic() + TIMEOUT)
                if READY not in output:
                    try:
                        child.wait(5)
                    except subprocess.TimeoutExpired:
                        output += "\n(neither ready nor exited)"
            finally:
                child.send_signal(signal.SIGKILL)
            return child.wait(), output
