"""One start of the real llama-server: what it allocated for its caches, to the byte, or why it did not start."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.parts import MissingPart

SOURCE = Path(__file__).with_name("allocations.c")
READY = "listening on http"
TIMEOUT = 60.0
UNSUPPORTED = re.compile(
    r"unknown model architecture|unsupported model architecture|invalid argument|unknown value"
    r"|error while handling argument|wrong number of tensors|missing tensor|tensor '[^']+' not found|wrong shape"
    r"|key not found in model|error loading model hyperparameters"
)
"""What a build says of a model or a flag that it does not know, or knows otherwise."""


@dataclass(frozen=True)
class Allocation:
    """What llama-server did. ``tensors`` are (name, bytes) in the order in which llama.cpp made them."""

    outcome: str
    """started; refused (it said why and exited); aborted (by llama.cpp's own check, or after it had allocated); crashed
    (any other signal); unsupported (it does not know this model or flag)."""
    tensors: tuple[tuple[str, int], ...] = ()
    output: str = field(default="", repr=False)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.tensors)

    def bytes_of(self, part: str) -> int:
        """Bytes of a part: k, v, r, s or other (states that are none of these)."""
        return sum(size for name, size in self.tensors if part_of(name) == part)


def variables_of(words: Sequence[str]) -> tuple[dict[str, str], Sequence[str]]:
    """``LLAMA_ARG_*=value`` words, and the flags."""
    variables = dict(word.split("=", 1) for word in words if word.startswith("LLAMA_ARG_"))
    return variables, [word for word in words if not word.startswith("LLAMA_ARG_")]


def part_of(name: str) -> str:
    """The part that a cache tensor belongs to, by llama.cpp's name for it."""
    found = re.match(r"cache_(?:idx_)?([kvrs])_l\d+$", name)
    return found[1] if found else "other"


def preloaded_library(folder: Path) -> Path:
    """Compile the library that notes allocations. Raises MissingPart."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        raise MissingPart("a C compiler on Linux", "sudo apt-get install gcc")
    library = folder / "allocations.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def _fits(flags: Sequence[str]) -> bool:
    """Whether llama-server fits the context to memory."""
    given = [value for flag, value in pairwise(flags) if flag == "-fit"]
    return given[-1:] != ["off"]


def _last_round(tensors: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Fitting makes all caches several times to measure them, at last as they stay: the end is there twice."""
    total = len(tensors)
    period = next((n for n in range(1, total // 2 + 1) if tensors[-n:] == tensors[-2 * n : -n]), total)
    return tuple(tensors[total - period :])


def _listen(child: subprocess.Popen[bytes], deadline: float) -> str:
    """The child's output until it is ready, ends, or the time is up."""
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
    """A server program to start, one start at a time."""

    server: Path
    library: Path
    port: int
    record: Path

    always: tuple[str, ...] = ("--no-warmup", "-fit", "off")
    """Flags of every start: neither a warm-up nor fitting the context to memory."""

    def allocate(self, model: Path, flags: Sequence[str]) -> Allocation:
        """Start the server with ``flags`` (and variables before them) on a model, note its cache tensors, end it."""
        variables, flags = variables_of(flags)
        self.record.unlink(missing_ok=True)
        argv = [
            str(self.server),
            "-m",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            *self.always,
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
        environment |= variables | {
            "LD_PRELOAD": str(self.library),
            "CACHE_TENSORS": str(self.record),
            "GGML_NO_BACKTRACE": "1",
        }
        with subprocess.Popen(
            [*argv, "-t", "1", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        ) as child:
            try:
                output = _listen(child, time.monotonic() + TIMEOUT)
                ready = READY in output
                if not ready:
                    try:
                        child.wait(5)
                    except subprocess.TimeoutExpired:
                        output += "\n(neither ready nor gone)"
            finally:
                child.send_signal(signal.SIGKILL)
            code = child.wait()
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
