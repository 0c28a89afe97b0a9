"""A wall clock of one process (and its children) that can be set while it runs: a library that is loaded first."""

from __future__ import annotations

import hashlib
import platform
import struct
import subprocess
from pathlib import Path

from .build import need_compiler
from .cache import cached

_SOURCE = Path(__file__).with_suffix(".c")


def _build(folder: Path) -> None:
    need_compiler()
    library = folder / "fake_clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", library, _SOURCE, "-ldl"], check=True)


class FakeClock:
    """A wall clock that is off by a number of seconds; the monotonic clock and waits are the machine's."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingPart without a compiler."""
        recipe = hashlib.sha256(_SOURCE.read_bytes() + platform.machine().encode()).hexdigest()[:8]
        library = cached(f"fake-clock-{recipe}", _build) / "fake_clock.so"
        self._offset = folder / "clock"
        self._offset.write_bytes(struct.pack("=q", 0))
        self.environment = {"LD_PRELOAD": str(library), "FAKE_CLOCK": str(self._offset)}
        """Of the process whose clock it is."""

    def step(self, seconds: int) -> None:
        """Set the clock so many seconds off the machine's."""
        with self._offset.open("r+b", buffering=0) as stream:
            stream.write(struct.pack("=q", seconds))
