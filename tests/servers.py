"""What tests of the server manager share: asking a server for something, and looking at processes."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BACKENDS = ("xllamacpp", "llama-server")
LONG = 3500
"""Tokens of a request that is still running when a test looks; the tiny model's context is 4096."""


def choose_backend(request: pytest.FixtureRequest) -> str:
    """What ServerManager takes for a fixture with ``params=BACKENDS``."""
    return str(request.getfixturevalue("llama_server_binary")) if request.param == "llama-server" else "xllamacpp"


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide from llama.cpp and llamatel what the person who runs the tests has set for them."""
    for name in [name for name in os.environ if name.startswith(("LLAMA", "OTEL_"))]:
        if name != "LLAMATEL_TEST_SESSION":
            monkeypatch.delenv(name)


def ask(
    url: str, tokens: int = 4, *, prompt: str = "Hello", key: str | None = None, model: str | None = None
) -> int | None:
    """The status of a completion's answer; None if the connection broke. ``model``: of a router's."""
    named = {} if model is None else {"model": model}
    body = json.dumps({"prompt": prompt, "n_predict": tokens, "ignore_eos": True, **named}).encode()
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/completion", body, headers), timeout=120) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError):  # an answer that was cut off
        return None


def ask_at_once(url: str, number: int, tokens: int = LONG) -> list[threading.Thread]:
    """Send requests that nobody waits for."""
    threads = [threading.Thread(target=ask, args=(url, tokens), daemon=True) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def gone(pid: int) -> bool:
    """Whether a process has ended. A zombie has: where nobody collects orphans, it stays one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descriptors() -> set[str]:
    """What the file descriptors of this process are open on."""
    return set(_descriptors())


def _descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            yield f"{entry.name} {entry.readlink()}"
        except FileNotFoundError:
            continue  # the one that listed them


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path
