"""Helpers for tests of servers: requests, processes, descriptors."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from tests.parts import wait_until

BACKENDS = ("xllamacpp", "llama-server")
LONG = 3500
"""Tokens of a request that runs long enough to be observed; the tiny model's context is 4096."""


def stop_process(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait for that: until its first thread handles the signal, the others go on."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, every=0.001)


def choose_backend(request: pytest.FixtureRequest) -> str:
    """Return the ``backend`` of ServerManager for a fixture with ``params=BACKENDS``."""
    return str(request.getfixturevalue("llama_server_binary")) if request.param == "llama-server" else "xllamacpp"


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's settings of llama.cpp and llamatel from the environment."""
    for name in [name for name in os.environ if name.startswith(("LLAMA", "OTEL_"))]:
        if name != "LLAMATEL_TEST_SESSION":
            monkeypatch.delenv(name)


def complete(
    url: str, tokens: int = 4, *, prompt: str = "Hello", key: str | None = None, model: str | None = None
) -> int | None:
    """Send a completion; return its status, or None if the connection broke. ``model``: one of a router's."""
    named = {} if model is None else {"model": model}
    body = json.dumps({"prompt": prompt, "n_predict": tokens, "ignore_eos": True, **named}).encode()
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/completion", body, headers), timeout=120
        ) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError, HTTPException):  # a truncated response
        return None


def complete_in_background(
    url: str, number: int, tokens: int = LONG, *, model: str | None = None
) -> list[threading.Thread]:
    """Send requests in the background."""
    more = {} if model is None else {"model": model}
    threads = [threading.Thread(target=complete, args=(url, tokens), kwargs=more, daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def has_exited(pid: int) -> bool:
    """Whether a process has exited. A zombie counts: without an init process that reaps orphans it stays one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descriptors() -> set[str]:
    """Return this process's file descriptors and their targets."""
    return set(_descriptors())


def _descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            yield f"{entry.name} {entry.readlink()}"
        except FileNotFoundError:
            continue  # the descriptor of the listing itself


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path
