"""Text out of a file that the user names. No error shows what is in it: it may be a secret."""

from __future__ import annotations

import os
from pathlib import Path

from llamatel.errors import UsageError


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The whole text (UTF-8), line ends as they are; ``~`` is the home folder.

    ``what`` the file is (``the header file``) is for the UsageError where it cannot be read.
    """
    try:
        return Path(path).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read {what} {os.fspath(path)}: {reason}") from None


def read_token(path: str | os.PathLike[str], what: str) -> str:
    """The one line of a file, without the space around it. Raises UsageError, also where there is none, or more."""
    token = read_text(path, what).strip()
    if not token:
        raise UsageError(f"{what} {os.fspath(path)} is empty")
    if not token.isprintable():
        raise UsageError(f"{what} {os.fspath(path)} holds more than one line, or a control character")
    return token
