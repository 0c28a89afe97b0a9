"""Where parts that are built or unpacked are kept, and how two test runs share them."""

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
    """``$XDG_CACHE_HOME/llamatel`` or ``~/.cache/llamatel``, outside of the checkout so that a fresh clone finds it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "llamatel"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Held by one process at a time; ``what`` is said to the person who waits for another run."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what}: another run is at it, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache; where it is not there yet, ``make`` fills it.

    ``make`` gets a folder beside it, which takes the name only when all is well, so a cut-off run leaves nothing half
    done. Two runs at once: the second waits for the first.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        with locked(folder.with_name(f"{name}.lock"), name):
            if not folder.is_dir():
                for stale in folder.parent.glob(f"{name}.*/"):  # of a run that was killed, as we hold the lock
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
    """One line for the person who waits."""
    print(f"test parts: {text}", file=sys.stderr, flush=True)


class Progress:
    """``label: done/total, seconds``: rewritten in place on a terminal, else a line for every tenth."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._started = time.monotonic()
        self._tenth = -1
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, total: int) -> None:
        """Say how far it is."""
        text = f"test parts: {self.label}: {done}/{total}, {time.monotonic() - self._started:.0f} s"
        if self._terminal:
            end = "\n" if done == total else ""
            print(f"\r{text}", end=end, file=sys.stderr, flush=True)
        elif (tenth := done * 10 // max(total, 1)) > self._tenth:
            self._tenth = tenth
            print(text, file=sys.stderr, flush=True)
