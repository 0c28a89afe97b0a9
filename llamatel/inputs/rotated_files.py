"""Secrets in files that may be replaced while the program runs, as Kubernetes replaces those of a mounted Secret."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from llamatel.errors import UsageError
from llamatel.inputs.text_file import user_path
from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)

T = TypeVar("T")


class RotatedFiles(Generic[T]):
    """The content of one or more files, read again when one of them is replaced. Thread-safe."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]], read: Callable[[], T]) -> None:
        """``read`` reads them and raises UsageError: only here, as later the previous content is kept instead."""
        self._paths = [user_path(path) for path in paths]
        self._read = read
        self._once = LogOnce(_log)
        self._held: tuple[object, T] = (self._current_version(), read())

    def __call__(self) -> T:
        """The current content."""
        version = self._current_version()
        if version is not None and version != self._held[0]:
            try:
                self._held = (version, self._read())
                self._once.reset("read")
            except UsageError as error:
                self._once.warning("read", "%s: the earlier content is used", error)
        return self._held[1]

    def _current_version(self) -> object:
        """Changes with the files; None where one is missing, or is a pipe, which can be read only once."""
        try:
            found = [path.stat() for path in self._paths]
        except OSError:
            return None
        if not all(stat.S_ISREG(one.st_mode) for one in found):
            return None
        return [(one.st_dev, one.st_ino, one.st_mtime_ns, one.st_size) for one in found]


def current(given: T | RotatedFiles[T] | None) -> T | None:
    """A value that may be in files."""
    return given() if isinstance(given, RotatedFiles) else given
