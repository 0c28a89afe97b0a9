"""The cache of built or unpacked parts, shared by concurrent test runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/llamatel`` or ``~/.cache/llamatel``, outside the checkout, so that clones share it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "llamatel"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """A lock between processes; ``what`` is printed while waiting for another run."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what}: another run is at it, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder ``name``; if it does not exist, ``make`` creates its content.

    ``make`` gets a temporary folder, which is renamed only after success, so an interrupted run leaves no partial
    result. Of two runs at once, the second waits for the first.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        with locked(folder.with_name(f"{name}.lock"), name):
            if not folder.is_dir():
                for stale in folder.parent.glob(f"{name}.*/"):  # left by a killed run, since this process has the lock
                    shutil.rmtree(stale, ignore_errors=True)
                work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
                try:
                    make(work)
                    work.chmod(0o755)
                    work.rename(folder)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    return folder


def say(text: str) -> None:
    """Progress in one line."""
    print(f"test parts: {text}", file=sys.stderr, flush=True)


class Progress:
    """``label: done/total, seconds``: rewritten in place on a terminal, else one line per tenth."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._started = time.monotonic()
        self._tenth = -1
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, total: int) -> None:
        """Print the progress."""
        text = f"test parts: {self.label}: {done}/{total}, {time.monotonic() - self._started:.0f} s"
        if self._terminal:
            end = "\n" if done == total else ""
            print(f"\r{text}", end=end, file=sys.stderr, flush=True)
        elif (tenth := done * 10 // max(total, 1)) > self._tenth:
            self._tenth = tenth
            print(text, file=sys.stderr, flush=True)
