"""Reads a text file that the user names. No error shows its content: it may be a secret."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from llamatel.errors import UsageError

_LARGEST = 8 << 20
"""Largest file in bytes."""
_FILE_NAME = re.compile(r"[\w ./-]{0,200}\.[A-Za-z]{1,5}|[A-Z]{1,8}|[a-z]{1,12}")
"""A name with an extension, or too simple for a secret."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that the user gives; ``~`` is the home folder, ``~NAME`` stays as it is where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError there


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as messages show it. A word that is none is not shown: it may be the secret instead of its file."""
    text = os.fspath(path)
    is_path = text.startswith(("/", "./", "../", "~")) or _FILE_NAME.fullmatch(text) is not None
    try:
        is_path = is_path or os.path.lexists(text)
    except ValueError:  # a NUL
        is_path = False
    return text if is_path else "(not shown: it may be a secret)"


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The whole text (UTF-8), line ends as they are; ``~`` is the home folder.

    ``what`` the file is (``the header file``) is for the UsageError where it cannot be read, or is too large.
    """
    try:
        # Without waiting for the writer of a pipe that has none.
        descriptor = os.open(user_path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            os.set_blocking(descriptor, True)
            data = file.read(_LARGEST + 1)
            pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        if pipe and not data:
            raise UsageError(f"cannot read {what} {shown_path(path)}: it is a pipe that nothing was written to")
        if len(data) > _LARGEST:
            raise UsageError(f"cannot read {what} {shown_path(path)}: it has more than {_LARGEST >> 20} MiB")
        return data.decode()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text"
        raise UsageError(f"cannot read {what} {shown_path(path)}: {reason}") from None


def read_token(path: str | os.PathLike[str], what: str) -> str:
    """The only line of a file, stripped. Raises UsageError, also for no line or several."""
    token = read_text(path, what).strip()
    if not token:
        raise UsageError(f"{what} {shown_path(path)} is empty")
    if not token.isprintable():
        raise UsageError(f"{what} {shown_path(path)} contains more than one line, or a control character")
    return token
