"""Start a Python server often and fast: import it once, then fork for each start.

``python -m tests.exact.fork_server MODULE`` reads a JSON document per line (``argv``, ``environment``, ``output``: a
file), starts MODULE in a fork with them, and prints ``started PID`` and, when it has exited, ``exited CODE``.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_COMMAND = re.compile(r'-m ([\w.]+) "\$@"\n?\Z')
_PRELOADED = ("llamatel.flags.parse", "xllamacpp", "llama_cpp_py_sync._cffi_bindings")


class ForkServer:
    """A process that starts one program, which a script runs as ``python -m MODULE``."""

    def __init__(self, script: Path, preload: Path) -> None:
        text = _COMMAND.sub(r"-m tests.exact.fork_server \1", script.read_text(encoding="utf-8"))
        self._process = subprocess.Popen(
            ["sh", "-c", text, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_PRELOAD": str(preload)},
        )

    def run(self, argv: Sequence[str], environment: Mapping[str, str], output: Path, ready: str, limit: float) -> int:
        """Start the program, wait until ``output`` has the text ``ready`` or it exits, stop it; its exit code."""
        output.write_bytes(b"")
        request = json.dumps({"argv": list(argv), "environment": dict(environment), "output": str(output)})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline().removeprefix("started "))
        deadline = time.monotonic() + limit
        while _is_running(pid) and ready not in output.read_text(errors="replace") and time.monotonic() < deadline:
            time.sleep(0.01)
        if _is_running(pid):
            os.kill(pid, 9)
        return int(self._process.stdout.readline().removeprefix("exited "))

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate(timeout=30)


def fork_server(program: Path, preload: Path) -> ForkServer | None:
    """One for a script that runs a Python module, None for any other program."""
    if program.stat().st_size > 4096 or not _COMMAND.search(program.read_text(errors="replace")):
        return None
    return ForkServer(program, preload)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _child(module: str, request: Mapping[str, Any]) -> None:
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.update(request["environment"])
    sys.argv = [module, *request["argv"]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()


def main(module: str) -> None:
    """Serve until standard input ends."""
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(module, json.loads(line))
            return
        print(f"started {pid}", flush=True)
        print(f"exited {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
