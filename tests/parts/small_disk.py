"""A small file system that can be filled up, without root: a tmpfs in the mount namespace of a process that waits."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .missing import MissingPart

_MOUNT = 'mount -t tmpfs -o "size=$2" tmpfs "$1" && echo ready && exec sleep infinity'
_CHUNK = b"\0" * 65_536


class SmallDisk:
    """A mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Its folder, for every process of this user."""
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Write until no byte fits."""
        with self._ballast.open("ab", buffering=0) as stream:
            chunk = _CHUNK
            while chunk:
                try:
                    stream.write(chunk)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    chunk = chunk[: len(chunk) // 2]

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """A file system of ``size`` (as mount takes it) for the time of the block. Raises MissingPart."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("unshare") is None:
        raise MissingPart("unshare", "sudo apt-get install util-linux")
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(folder), size]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"ready\n":
                raise MissingPart("a small disk", "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)")
            yield SmallDisk(Path(f"/proc/{holder.pid}/root{folder.resolve()}"))
        finally:
            holder.kill()
