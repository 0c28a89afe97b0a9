"""Reads single keys from a terminal and restores its mode."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

_NAMES = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left", "\r": "enter", "\n": "enter"}
_NAMES |= {"\x1b": "escape", "\t": "tab", "\x03": "q", "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right"}
_NAMES |= {"\x7f": "backspace", "\b": "backspace"}
_NAMES |= {"\x1b[H": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1b[4~": "end"}


class Keys:
    """Reads keys without waiting for Enter."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> list[str]:
        """The keys pressed within the timeout, at once if there is one: letters, or names such as ``up``."""
        ready, _, _ = select.select([self._descriptor], [], [], max(timeout_s, 0.0))
        if not ready:
            return []
        text = os.read(self._descriptor, 64).decode("utf-8", "replace")
        return list(split(text)) if text else ["q"]  # the terminal was closed


def split(text: str) -> Iterator[str]:
    """The keys in a terminal's input: one per known escape sequence, none for unknown ones."""
    while text:
        name = next((name for name in sorted(_NAMES, key=len, reverse=True) if text.startswith(name)), None)
        if text.startswith("\x1b[") and (name is None or name == "\x1b"):
            end = next((i for i, letter in enumerate(text[2:], 2) if letter.isalpha() or letter == "~"), len(text) - 1)
            text = text[end + 1 :]
            continue
        yield _NAMES[name] if name is not None else text[0].lower()
        text = text[len(name) if name is not None else 1 :]


@contextlib.contextmanager
def keyboard() -> Iterator[Keys | None]:
    """Keys from standard input; None if it is not a terminal. The terminal's mode is restored at the end."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
