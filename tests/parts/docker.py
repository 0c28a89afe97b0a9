"""A Docker daemon of Debian's package, unpacked but not installed, with images made here: no registry is reached."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from . import apt, debian_sid
from .cache import cached
from .missing import MissingPart
from .processes import Child, wait_until

_PACKAGES = ("docker.io", "containerd", "runc")
# libstdc++6: apt depends on it, so it is in every Debian image.
_PYTHON = (
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "libstdc++6",
    "passwd",
    "python3",
    "python3-pip",
    "python3-venv",
    "sed",
)
_SUITE = "bookworm"


def _unpack_engine(folder: Path) -> None:
    for package in _PACKAGES:
        if not apt.unpack(package, folder):
            raise MissingPart("docker", "a Debian machine with apt-get")
        for archive in folder.glob("*.deb"):
            archive.unlink()


def _unpack_python(folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    if not debian_sid.unpack(_PYTHON, root, closure=True, suite=_SUITE):
        raise MissingPart("a root file system with Python", f"a Debian machine whose mirror has {_SUITE}")
    (root / "usr/bin/python").symlink_to("python3")
    for name in ("tmp", "root", "proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shadow").write_text("")
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("dash")


class Docker:
    """A running daemon with its own socket and storage in ``folder``; a context manager. Raises MissingPart."""

    def __init__(self, folder: Path) -> None:
        """Needs root, as each Docker daemon does."""
        if os.geteuid() != 0 or platform.machine() != "x86_64":
            raise MissingPart("docker", "a run as root on x86_64")
        root = cached(f"docker-debian-{platform.machine()}", _unpack_engine)
        self._env = {"PATH": f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"}
        self.socket = f"unix://{folder}/docker.sock"
        self._folder = folder
        argv: list[str | Path] = [
            root / "usr/sbin/dockerd",
            "--bridge=none",
            "--iptables=false",
            "--data-root",
            folder / "data",
        ]
        argv += ["--exec-root", folder / "exec", "--pidfile", folder / "docker.pid", "--host", self.socket]
        self._daemon = Child(argv, folder / "dockerd.log", self._env)
        try:
            wait_until(lambda: self.try_run("version").returncode == 0, 60, "the Docker daemon", every=0.2)
        except TimeoutError:
            self._daemon.stop()
            raise MissingPart("docker", f"its daemon does not start here: {self._daemon.output()[-500:]}") from None

    def try_run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``docker WORDS``."""
        argv = ["docker", "--host", self.socket, *map(str, words)]
        env = {**os.environ, **self._env, "DOCKER_BUILDKIT": "0"}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    def run(self, *words: str | Path) -> str:
        """Run ``docker WORDS``; its output. Raises AssertionError where it fails."""
        done = self.try_run(*words)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def import_python(self, name: str, files: Callable[[Path], None] = lambda _: None) -> None:
        """Make an image ``name`` of Debian's Python, in place of one of a registry; ``files`` adds to its tree."""
        tree = self._folder / "tree"
        shutil.copytree(cached(f"python-{_SUITE}-{platform.machine()}", _unpack_python) / "root", tree, symlinks=True)
        files(tree)
        archive = self._folder / "tree.tar"
        subprocess.run(["tar", "-cf", archive, "-C", tree, "."], check=True)
        self.run("import", archive, name)
        shutil.rmtree(tree)
        archive.unlink()

    def __enter__(self) -> Docker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._daemon.stop()
        for mount in (self._folder / "exec" / "netns").glob("*"):
            subprocess.run(["umount", "--lazy", mount], check=False)
