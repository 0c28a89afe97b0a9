"""A program on its own pseudo-terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

_ON_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Text without colours and cursor movements."""
    return _ESCAPES.sub("", text).replace("\r\n", "\n")


class Terminal:
    """Runs a command on a pseudo-terminal; its output is collected in ``text``."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, columns: int = 80, rows: int = 24
    ) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a character
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        # readline exports the size of pytest's own terminal to child processes, such as the workers of pytest-xdist.
        fixed = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        clean = {name: value for name, value in os.environ.items() if name not in fixed}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_ITS_TERMINAL, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**clean, "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()

    def resize(self, columns: int, rows: int) -> None:
        """Resize the terminal."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[object]:
        """Return the terminal's attributes (termios)."""
        return termios.tcgetattr(self._master)

    def hang_up(self) -> None:
        """Close the terminal, like closing its window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def read(self, timeout: float = 0.1) -> bool:
        """Read available output; False at the end."""
        if select.select([self._master], [], [], timeout)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the last process has left the terminal
                return False
            self.text += self._decoder.decode(data)
            return bool(data)
        return True

    def wait_for(self, what: str, timeout: float = 60.0) -> None:
        """Wait until ``what`` is on the screen. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while what not in plain(self.text):
            if not self.read() or time.monotonic() > end:
                raise TimeoutError(f"{what!r} did not appear in:\n{plain(self.text)}")

    def press(self, keys: str) -> None:
        r"""Type; ``\x03`` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the exit and all output; return the exit status. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while self.read() and self.process.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError(f"still running, and shows:\n{plain(self.text)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(end - time.monotonic(), 0.1))
        while self.read(0.05) and select.select([self._master], [], [], 0.05)[0]:
            pass
        return self.process.wait(0.1)
