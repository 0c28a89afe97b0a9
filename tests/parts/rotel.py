"""rotel, a real OpenTelemetry collector, from its wheel."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from types import TracebackType

from . import apt
from .cache import cached, say
from .missing import MissingPart
from .otlp import OtlpSink
from .processes import Child, accepts, free_port

_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _unpack_libpython(folder: Path) -> None:
    say(f"getting Debian's lib{_PYTHON}")
    work = folder / "work"
    work.mkdir()
    if not apt.unpack(f"lib{_PYTHON}", work):
        raise MissingPart(f"lib{_PYTHON}, which rotel needs,", f"sudo apt-get install lib{_PYTHON}")
    [library] = work.glob(f"usr/lib/*/lib{_PYTHON}.so.1.0")
    library.rename(folder / library.name)
    shutil.rmtree(work)


def _folder_of_libpython() -> Path:
    """Return the folder of libpython: rotel is linked to it, Debian's python3 is not. Raises MissingPart."""
    variables = sysconfig.get_config_vars("LIBDIR", "MULTIARCH")
    libdir, multiarch = (Path(str(variable or "")) for variable in variables)
    for folder in (libdir, libdir / multiarch, Path(sys.base_prefix) / "lib"):
        if (folder / f"lib{_PYTHON}.so.1.0").exists():
            return folder
    return cached(f"lib{_PYTHON}-{platform.machine()}", _unpack_libpython)


def rotel_program() -> tuple[Path, dict[str, str]]:
    """Return the ``rotel-agent`` program of the rotel wheel, and its environment. Raises MissingPart."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        raise MissingPart("rotel", "pip install rotel==0.0.1a15")
    return Path(found.origin).parent / "rotel-agent", {"LD_LIBRARY_PATH": str(_folder_of_libpython())}


class RotelAgent:
    """rotel, a real OpenTelemetry collector: receives OTLP over gRPC and HTTP, exports to ``sink`` over OTLP/HTTP.

    A context manager. ``stop`` and ``kill`` may be followed by ``start``, which uses the same ports again.
    """

    def __init__(self, sink: OtlpSink, folder: Path) -> None:
        self.sink = sink
        self.folder = folder
        self.grpc_port = free_port()
        self.http_port = free_port()
        self.grpc_endpoint = f"http://127.0.0.1:{self.grpc_port}"
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT with OTEL_EXPORTER_OTLP_PROTOCOL=grpc."""
        self.http_endpoint = f"http://127.0.0.1:{self.http_port}"
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT with OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf."""
        self.child: Child | None = None

    def start(self) -> RotelAgent:
        """Start it and wait until both ports accept connections. Raises PartFailed, or MissingPart."""
        program, env = rotel_program()
        self.child = Child(
            [
                program,
                "start",
                *("--pid-file", self.folder / "rotel.pid", "--log-file", self.folder / "rotel-agent.log"),
                *("--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc_port}"),
                *("--otlp-http-endpoint", f"127.0.0.1:{self.http_port}"),
                *("--exporter", "otlp", "--otlp-exporter-protocol", "http"),
                *("--otlp-exporter-endpoint", self.sink.endpoint),
                *("--otlp-exporter-retry-initial-backoff", "100ms", "--batch-timeout", "50ms"),
            ],
            self.folder / "rotel.out",
            env,
        )
        self.child.wait_ready(lambda: accepts(self.grpc_port) and accepts(self.http_port))
        return self

    def stop(self) -> int:
        """SIGTERM, which flushes. Returns the exit status, 0 on success."""
        assert self.child is not None, "not started"
        return self.child.stop()

    def kill(self) -> None:
        """SIGKILL, without a flush."""
        assert self.child is not None, "not started"
        self.child.kill()

    def __enter__(self) -> RotelAgent:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
