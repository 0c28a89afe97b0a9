"""The two streams that commands write to."""

from __future__ import annotations

from typing import Any

from rich.console import Console

_WIDTH = 80
_MAX_WIDTH = 1000


class PipeConsole(Console):
    """A console that raises BrokenPipeError for a closed pipe (rich itself exits with status 1)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < self.width <= _MAX_WIDTH:  # COLUMNS=0: rich would print nothing
            self.width = _WIDTH

    def on_broken_pipe(self) -> None:
        """Called while the BrokenPipeError is handled: re-raise it."""
        raise  # noqa: PLE0704 - rich calls this from its except clause


def output_console() -> Console:
    """Standard output: colours on a terminal only, one line stays one line in a pipe."""
    return PipeConsole(highlight=False, markup=False, emoji=False)


def note_console() -> Console:
    """Standard error, for banner, progress and notes."""
    return PipeConsole(highlight=False, markup=False, emoji=False, stderr=True)
