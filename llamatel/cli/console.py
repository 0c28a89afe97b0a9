"""The two streams that commands write to."""

from __future__ import annotations

from rich.console import Console


class PipeConsole(Console):
    """A console that raises BrokenPipeError for a closed pipe (rich itself exits with status 1)."""

    def on_broken_pipe(self) -> None:
        """Called while the BrokenPipeError is handled: hand it on."""
        raise  # noqa: PLE0704 - rich calls this from its except clause


def output_console() -> Console:
    """Standard output: colours on a terminal only, one line stays one line in a pipe."""
    return PipeConsole(highlight=False, markup=False, emoji=False)


def note_console() -> Console:
    """Standard error, for what accompanies the output: banner, progress, notes."""
    return PipeConsole(highlight=False, markup=False, emoji=False, stderr=True)
