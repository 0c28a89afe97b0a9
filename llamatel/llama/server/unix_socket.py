"""Removes the Unix socket of a launched server: llama.cpp leaves it, and cannot listen there again."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from llamatel.errors import UsageError

_CONNECT_S = 1.0
_LONGEST = 107
"""Bytes of a path that fit into ``sockaddr_un`` (Linux)."""


class UnixSocket:
    """Removes the socket that the server's process created, and no other file.

    The path is the one that was given to the server, never one that its log names.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._ours = False

    def check(self) -> None:
        """Raise UsageError where the server could not listen."""
        if len(os.fsencode(self._path)) > _LONGEST:
            raise UsageError(f"{self._path} is too long for a socket: at most {_LONGEST} bytes")
        if self._exists():
            what = "another server listens there" if self._answers() else "remove it, if no server uses it any more"
            raise UsageError(f"{self._path} exists: {what}")
        if not self._path.parent.is_dir():
            raise UsageError(f"{self._path}: there is no folder {self._path.parent}")

    def before_start(self) -> None:
        """Record, before a process starts, whether a file exists: it is not the process's socket."""
        self._ours = not self._exists()

    def after_end(self) -> None:
        """Remove the socket that the process created, after its exit."""
        if self._ours and self._is_socket() and not self._answers():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _exists(self) -> bool:
        try:
            self._path.lstat()
        except OSError:
            return False
        return True

    def _is_socket(self) -> bool:
        try:
            return stat.S_ISSOCK(self._path.lstat().st_mode)
        except OSError:
            return False

    def _answers(self) -> bool:
        """Whether a process listens on it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_S)
            try:
                probe.connect(str(self._path))
            except OSError:
                return False
        return True
